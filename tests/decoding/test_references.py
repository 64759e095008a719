"""References change no token, whatever they hold, and are refused where they cannot be drafted from."""

import pytest
import torch
from architectures import NEW, PROMPT, VOCABULARY, build, build_tokenizer

from hdraft.decoding import Statistics, custom_generate, generate, stream
from hdraft.drafting import Source
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter


def prompt():
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(5))


def drafter(vocabulary=VOCABULARY):
    made = HierarchyDrafter(vocabulary)
    made.uses_costs = False  # whatever a busy machine measures
    return made


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 2.0}], ids=["greedy", "sampled"])
def test_the_answer_itself_another_text_and_none_give_the_same_tokens(step, options):
    model = build("llama")
    torch.manual_seed(0)
    expected = model.generate(prompt(), max_new_tokens=NEW, **options)
    answer = expected[0, PROMPT:].tolist()
    other = torch.randint(2, VOCABULARY, (200,), generator=torch.Generator().manual_seed(6)).tolist()
    steps = []
    for references in ([answer], [other, answer[:20]], [other], [[]], []):
        statistics = Statistics()
        torch.manual_seed(0)
        output = generate(
            model,
            prompt(),
            drafter(),
            max_new_tokens=NEW,
            references=references,
            statistics=statistics,
            step=step,
            **options,
        )
        assert torch.equal(output, expected)
        assert statistics.accepted[Source.REFERENCE] > 10 or answer[:20] not in [each[:20] for each in references]
        assert any(references) or not statistics.accepted[Source.REFERENCE]
        steps.append(statistics.steps)
    assert steps[0] <= 4


def test_texts_are_made_ids_by_the_tokenizer_and_need_one():
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("def get", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=30)
    text = tokenizer.decode(expected[0, ids.shape[1] :])
    same = tokenizer(text, add_special_tokens=False).input_ids == expected[0, ids.shape[1] :].tolist()
    statistics = Statistics()
    options = {"max_new_tokens": 30, "references": [text], "statistics": statistics}
    output = generate(model, ids, drafter(len(tokenizer)), tokenizer=tokenizer, **options)
    assert torch.equal(output, expected)
    assert not same or statistics.accepted[Source.REFERENCE] > 0
    tokens = list(stream(model, ids, drafter(len(tokenizer)), tokenizer=tokenizer, **options))
    assert [token.id for token in tokens] == expected[0, ids.shape[1] :].tolist()
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        generate(model, ids, drafter(len(tokenizer)), **options)
    with pytest.raises(ValueError, match="must be a list"):
        generate(model, ids, tokenizer=tokenizer, max_new_tokens=3, references=text)


def test_within_generate_of_transformers():
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    statistics = Statistics()
    method = custom_generate(drafter(), references=[expected[0, PROMPT:].tolist()], statistics=statistics)
    assert torch.equal(model.generate(prompt(), custom_generate=method, max_new_tokens=NEW), expected)
    assert statistics.accepted[Source.REFERENCE] > 0


def test_what_cannot_be_drafted_from_is_refused_and_needs_no_drafter():
    model = build("llama")
    with pytest.raises(ValueError, match="takes no references"):
        generate(model, prompt(), PromptLookupDrafter(VOCABULARY), max_new_tokens=3, references=[[3, 4]])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        generate(model, prompt(), max_new_tokens=3, references=[[VOCABULARY]])
    expected = model.generate(prompt(), max_new_tokens=3)
    assert torch.equal(generate(model, prompt(), None, max_new_tokens=3, references=[[3, 4]]), expected)
