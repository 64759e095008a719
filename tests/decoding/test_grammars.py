"""Grammars: the logits processors of xgrammar and outlines, which follow the text token by token, beside drafts."""

import json
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hdraft
from hdraft.demo import MODEL

SCHEMA = {
    "type": "object",
    "properties": {
        "drink": {"enum": ["cappuccino", "iced mocha", "latte"]},
        "size": {"enum": ["small", "medium", "large"]},
        "extras": {
            "type": "array",
            "items": {"enum": ["whipped cream", "oat milk", "vanilla syrup"]},
            "minItems": 3,
            "maxItems": 3,
        },
        "note": {"type": "string", "maxLength": 12},
        "price": {"enum": [3, 4, 5]},
    },
    "required": ["drink", "size", "extras", "note", "price"],
    "additionalProperties": False,
}

PROMPT = (
    'Barista: {"drink":"latte","size":"small","extras":["oat milk","whipped cream","oat milk"],'
    '"note":"to go","price":4}\n'
    'Barista: {"drink": "latte", "size": "small", "extras": ["oat milk", "whipped cream", "oat milk"], "note": "to go",'
    ' "price": 4}\n'
    "Customer: One small cappuccino with whipped cream, please.\nBarista: "
)

Make = Callable[[], Any]
Generate = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def makers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Make]:
    """By its name, what makes fresh processors of one kind; skips where their package is not installed."""

    def xgrammar() -> Make:
        xgr = pytest.importorskip("xgrammar", reason="xgrammar is not installed")
        from xgrammar.contrib.hf import LogitsProcessor

        information = xgr.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
        compiled = xgr.GrammarCompiler(information).compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)
        return lambda: LogitsProcessor(compiled)

    def outlines(backend: str) -> Make:
        package = pytest.importorskip("outlines", reason="outlines is not installed")
        from outlines.backends import get_json_schema_logits_processor

        if backend == "xgrammar":
            pytest.importorskip("xgrammar", reason="xgrammar is not installed")
        steered = package.from_transformers(model, tokenizer)
        pattern = None if backend == "xgrammar" else ""
        unused = get_json_schema_logits_processor(backend, steered, json.dumps(SCHEMA), pattern)
        return lambda: copy(unused)  # to compile a grammar takes a second

    made: dict[str, Make] = {}
    by_name = {
        "xgrammar": xgrammar,
        "outlines": lambda: outlines("outlines_core"),
        "outlines with xgrammar": lambda: outlines("xgrammar"),
    }

    def maker(name: str) -> Make:
        if name not in made:
            made[name] = by_name[name]()
        return made[name]

    return maker


@pytest.fixture
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return tokenizer(PROMPT, return_tensors="pt").input_ids


@pytest.fixture(params=["xgrammar", "outlines", "outlines with xgrammar"])
def fresh(request: pytest.FixtureRequest, makers: Callable[[str], Make]) -> Make:
    return makers(request.param)


def drafter(model: PreTrainedModel) -> hdraft.HierarchyDrafter:
    """It drafts whatever a step costs: a busy machine may measure that drafts do not pay."""
    made = hdraft.HierarchyDrafter(model.config.vocab_size, learn=True)
    made.uses_costs = False
    return made


def outcome(call: Generate, *arguments: Any, **options: Any) -> object:
    """The tokens, or the error that stands in their place."""
    try:
        tokens: object = call(*arguments, **options).tolist()
        return tokens
    except Exception as error:
        return type(error), str(error)


def both(model: PreTrainedModel) -> tuple[Generate, Generate]:
    """`model.generate`, and ours with a new drafter."""
    return model.generate, lambda ids, **options: hdraft.generate(model, ids, drafter(model), **options)


def parsed(tokenizer: PreTrainedTokenizerBase, output: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    assert set(value) == set(SCHEMA["required"])  # type: ignore[call-overload]
    assert value["drink"] in SCHEMA["properties"]["drink"]["enum"]  # type: ignore[index]
    return value


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5}, {"repetition_penalty": 1.2}])
@pytest.mark.parametrize("kind", ["xgrammar", "outlines"])  # the third allows spaces without end
def test_the_tokens_are_those_of_generate_and_parse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    makers: Callable[[str], Make],
    ids: torch.Tensor,
    kind: str,
    options: dict[str, Any],
) -> None:
    fresh = makers(kind)
    for seed in range(2 if "do_sample" in options else 1):
        common = {"max_new_tokens": 160, **options}
        torch.manual_seed(seed)
        expected = model.generate(ids, logits_processor=[fresh()], **common)
        torch.manual_seed(seed)
        statistics = hdraft.Statistics()
        found = hdraft.generate(model, ids, drafter(model), logits_processor=[fresh()], statistics=statistics, **common)
        assert found.tolist() == expected.tolist()
        parsed(tokenizer, found, ids)
        assert max(statistics.accepted_lengths) >= 3
        assert statistics.steps < len(found[0]) - ids.shape[1]


def test_what_an_earlier_request_wrote_is_drafted_in_long_runs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, fresh: Make
) -> None:
    learning = drafter(model)
    expected = model.generate(ids, logits_processor=[fresh()], max_new_tokens=70)
    for _ in range(2):
        statistics = hdraft.Statistics()
        found = hdraft.generate(
            model, ids, learning, logits_processor=[fresh()], statistics=statistics, max_new_tokens=70
        )
        assert found.tolist() == expected.tolist()
    assert max(statistics.accepted_lengths) >= 8


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 90, "min_new_tokens": 80},  # longer than the grammar goes on
        {"max_new_tokens": 7},  # cut short
        {"max_new_tokens": 70, "eos_token_id": [0, 14]},  # an end that the grammar does not know
        {"max_new_tokens": 70, "stop_strings": ["extras"]},
        {"max_new_tokens": 90, "min_new_tokens": 80, "do_sample": True},
        {"max_new_tokens": 70, "no_repeat_ngram_size": 2},
    ],
    ids=lambda options: " ".join(options),
)
def test_other_ends_and_other_processors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor,
    fresh: Make,
    options: dict[str, Any],
) -> None:
    """Errors too are those of `generate`: where the grammar and another processor leave no token at all, for one."""
    outcomes = []
    for generate in both(model):
        torch.manual_seed(0)
        outcomes.append(outcome(generate, ids, logits_processor=[fresh()], tokenizer=tokenizer, **options))
    assert outcomes[0] == outcomes[1]


def test_a_processor_used_again_does_what_it_does_under_generate(
    model: PreTrainedModel, ids: torch.Tensor, fresh: Make
) -> None:
    outcomes: list[list[object]] = []
    for generate in both(model):
        processor = fresh()
        outcomes.append([outcome(generate, ids, logits_processor=[processor], max_new_tokens=100) for _ in range(3)])
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0][0], list)


def test_a_processor_cut_short_goes_on_as_under_generate(
    model: PreTrainedModel, ids: torch.Tensor, fresh: Make
) -> None:
    """It follows the text: the same processor, given what it has seen, goes on in its middle."""
    outcomes = []
    for generate in both(model):
        processor = fresh()
        begun = generate(ids, logits_processor=[processor], max_new_tokens=9)
        outcomes.append(outcome(generate, begun, logits_processor=[processor], max_new_tokens=70))
    assert outcomes[0] == outcomes[1]


def test_streamed_and_by_custom_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, fresh: Make
) -> None:
    expected = model.generate(ids, logits_processor=[fresh()], max_new_tokens=70)
    streamed = hdraft.stream(
        model, ids, drafter(model), tokenizer=tokenizer, logits_processor=[fresh()], max_new_tokens=70
    )
    assert [token.id for token in streamed] == expected[0, ids.shape[1] :].tolist()
    found = model.generate(
        ids,
        custom_generate=hdraft.custom_generate(drafter(model)),
        logits_processor=[fresh()],
        max_new_tokens=70,
    )
    assert found.tolist() == expected.tolist()


def test_outlines_own_call_drafts_when_it_is_told_to(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    outlines = pytest.importorskip("outlines", reason="outlines is not installed")
    generator = outlines.Generator(outlines.from_transformers(model, tokenizer), outlines.json_schema(SCHEMA))
    expected = generator(PROMPT, max_new_tokens=200)
    statistics = hdraft.Statistics()
    by_hdraft = hdraft.custom_generate(drafter(model), statistics=statistics)
    found = generator(PROMPT, max_new_tokens=200, custom_generate=by_hdraft)
    assert found == expected
    json.loads(found)
    assert max(statistics.accepted_lengths) >= 3
