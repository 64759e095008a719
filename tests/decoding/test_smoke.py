"""A minute that finds whether another version of a package breaks decoding: run with the newest and the oldest."""

import pytest
import torch
from architectures import PROMPT, VOCABULARY, build, build_tokenizer
from oracle import OracleDrafter

from hdraft.decoding import Statistics, custom_generate, generate, stream
from hdraft.decoding.models.names import output_cache_field
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter


def prompt(seed=5):
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 20}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "bloom", "glm4"])
def test_six_families(name, options):
    model = build(name, "eager" if name == "bloom" else "sdpa")
    options = options | {"max_new_tokens": 40}
    torch.manual_seed(1)
    expected = model.generate(prompt(), **options)
    statistics, oracle = Statistics(), OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    torch.manual_seed(1)
    assert generate(model, prompt(), oracle, statistics=statistics, **options).tolist() == expected.tolist()
    assert statistics.mean_accepted_tokens > 1.5
    torch.manual_seed(1)
    tokens = stream(model, prompt(), HierarchyDrafter.for_model(model), **options)
    assert [token.id for token in tokens] == expected[0, PROMPT:].tolist()
    torch.manual_seed(1)
    method = custom_generate(HierarchyDrafter.for_model(model))
    assert model.generate(prompt(), custom_generate=method, **options).tolist() == expected.tolist()


def test_text_and_stop_strings():
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("def get", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :]
    drafter = HierarchyDrafter.for_model(model)
    pieces = [token.text for token in stream(model, ids, drafter, tokenizer=tokenizer, max_new_tokens=40)]
    assert "".join(pieces) == tokenizer.decode(expected)
    options = {"max_new_tokens": 40, "stop_strings": [tokenizer.decode(expected[9:11])], "tokenizer": tokenizer}
    assert generate(model, ids, drafter, **options).tolist() == model.generate(ids, **options).tolist()


def test_going_on():
    model = build("llama")
    first = generate(model, prompt(), None, max_new_tokens=20, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, prompt(9)), dim=1)
    expected = model.generate(longer, max_new_tokens=20)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), longer.shape[1])
    options = {output_cache_field(): first[output_cache_field()], "max_new_tokens": 20}
    assert generate(model, longer, oracle, **options).tolist() == expected.tolist()
