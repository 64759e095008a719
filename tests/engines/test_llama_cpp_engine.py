"""The draft model inside llama-cpp-python, on SmolLM2; `make test-llama-cpp` sets up what these tests run in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdraft.demo import SMOLLM2
from hdraft.demo.conversion import ConversionError, find_gguf
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.engines.gguf import GgufTokenizer
from hdraft.engines.llama_cpp import HierarchyDraftModel, UnsupportedLlamaError

llama_cpp: Any = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed here: `make test-llama-cpp` runs this where it is"
)
try:
    FILE = find_gguf()
except ConversionError as error:
    pytest.skip(str(error), allow_module_level=True)

PROMPTS = [json.loads(line)["prompt"] for line in (SMOLLM2 / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
DATABASE = SMOLLM2 / "database"
CHEAP = np.linspace(1.0, 1.2, 17)  # so that much is drafted, as it would be on a GPU
GRAMMAR = r"""
root ::= "{\"city\": \"" [A-Za-z ]+ "\", \"people\": " [0-9]+ "}"
"""


def load(draft_model: Any = None, **options: Any) -> Any:
    settings = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "flash_attn": True, "seed": 7, "verbose": False}
    return llama_cpp.Llama(str(FILE), draft_model=draft_model, **settings | options)


def drafter(learn: bool = False, database: Path | None = DATABASE) -> HierarchyDrafter:
    tokenizer = GgufTokenizer.open(FILE)
    return HierarchyDrafter.for_model(tokenizer.vocab_size, tokenizer, database, learn=learn)


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    llama = load()
    yield llama
    llama.close()


@pytest.fixture(scope="module")
def drafting() -> Iterator[Any]:
    llama = load(HierarchyDraftModel(drafter(), costs=CHEAP))
    yield llama
    llama.close()


def chat(llama: Any, prompt: str, **options: Any) -> Any:
    llama.reset()
    settings = {"max_tokens": 48, "temperature": 0.0}
    return llama.create_chat_completion([{"role": "user", "content": prompt}], **settings | options)


def answer(llama: Any, prompt: str, **options: Any) -> str:
    return str(chat(llama, prompt, **options)["choices"][0]["message"]["content"])


def test_it_is_a_draft_model_and_one_that_learns_costs_by_itself() -> None:
    from llama_cpp.llama_speculative import LlamaDraftModel

    model = HierarchyDraftModel(drafter())
    assert isinstance(model, LlamaDraftModel)
    llama = load(model)
    answer(llama, PROMPTS[0])
    assert np.asarray(model._costs).shape == (65,)
    assert model._costs.ordinary > 0  # type: ignore[union-attr]


def test_greedy_answers_are_those_without_drafts(plain: Any, drafting: Any) -> None:
    same = [answer(drafting, prompt) == answer(plain, prompt) for prompt in PROMPTS]
    # rows computed together are rounded otherwise than one by one, so that a near-tie may flip
    assert sum(same) >= len(same) - 2
    assert drafting.draft_model.accepted > 100


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.2, "top_k": 0, "top_p": 1.0, "min_p": 0.02, "seed": 4},
        {"repeat_penalty": 1.3},
        {"logit_bias": {28: -100.0, 30: -100.0}},
        {"stop": ["\n", "."]},
        {"mirostat_mode": 2, "temperature": 0.7, "seed": 5},
    ],
    ids=lambda options: next(iter(options)) + str(len(options)),
)
def test_sampling_penalties_biases_and_stop_strings_are_as_without_drafts(
    plain: Any, drafting: Any, options: dict[str, Any]
) -> None:
    before = drafting.draft_model.accepted
    for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[4]):
        assert answer(drafting, prompt, **options) == answer(plain, prompt, **options)
    assert drafting.draft_model.accepted > before


def test_a_grammar_holds_and_gives_what_it_does_without_drafts(plain: Any, drafting: Any) -> None:
    for prompt in ("How many people live in Oslo? As JSON.", "How many people live in Rome? As JSON."):
        texts = [
            answer(llama, prompt, grammar=llama_cpp.LlamaGrammar.from_string(GRAMMAR, verbose=False))
            for llama in (plain, drafting)
        ]
        assert texts[0] == texts[1]
        assert set(json.loads(texts[1])) == {"city", "people"}


def test_a_logits_processor_sees_the_same_texts_as_without_drafts(plain: Any, drafting: Any) -> None:
    def answered(llama: Any) -> tuple[str, list[int]]:
        lengths: list[int] = []

        def process(ids: Any, scores: Any) -> Any:
            lengths.append(len(ids))
            scores[int(ids[-1])] -= 4.0  # depends on what it sees
            return scores

        processors = llama_cpp.LogitsProcessorList([process])
        return answer(llama, PROMPTS[0], logits_processor=processors), lengths

    assert answered(drafting) == answered(plain)


def test_streamed_pieces_are_the_same(plain: Any, drafting: Any) -> None:
    def pieces(llama: Any) -> list[str]:
        chunks = chat(llama, PROMPTS[1], stream=True)
        return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]

    assert pieces(drafting) == pieces(plain)


def test_turns_of_a_chat_go_on_from_the_cache_and_its_answers_are_learnt(plain: Any) -> None:
    model = HierarchyDraftModel(drafter(learn=True, database=None), costs=CHEAP)
    talking = load(model)
    answers: dict[int, list[str]] = {}
    for llama in (plain, talking):
        messages: list[dict[str, str]] = []
        llama.reset()
        for question in ("Name three colours.", "And three animals?", "And three colours again?"):
            messages.append({"role": "user", "content": question})
            reply = llama.create_chat_completion(messages, max_tokens=40, temperature=0.0)
            messages.append(reply["choices"][0]["message"])
            answers.setdefault(id(llama), []).append(messages[-1]["content"])
    assert answers[id(plain)] == answers[id(talking)]
    model.close()
    documents = [talking.detokenize(each.tolist()).decode() for each in model.drafter.model_database.documents()]
    assert len(documents) == 3
    for document, text in zip(documents, answers[id(talking)], strict=True):
        assert text.startswith(document.strip()[: len(text)])


@pytest.mark.parametrize("logits_all", [False, True])
def test_a_prompt_of_more_than_n_batch_tokens_is_read(plain: Any, logits_all: bool) -> None:
    llama = load(HierarchyDraftModel(drafter(), costs=CHEAP), n_batch=64, logits_all=logits_all)
    text = "Here is a list of boats: " + "the green boat, the red boat, the old boat, " * 12
    expected = load(n_batch=64)(text, max_tokens=24, temperature=0.0)["choices"][0]["text"]
    assert llama(text, max_tokens=24, temperature=0.0)["choices"][0]["text"] == expected
    assert llama.draft_model.accepted >= 5


def test_log_probabilities_are_those_of_a_llama_without_drafts() -> None:
    def found(llama: Any) -> Any:
        completion = llama("The old boat and the", max_tokens=12, temperature=0.0, logprobs=2)
        return completion["choices"][0]["logprobs"]

    ours, theirs = (found(load(model, logits_all=True)) for model in (HierarchyDraftModel(drafter()), None))
    assert ours["tokens"] == theirs["tokens"]
    assert ours["token_logprobs"] == pytest.approx(theirs["token_logprobs"], abs=0.05)
    with pytest.raises(ValueError, match="logits_all=False"):
        found(load(HierarchyDraftModel(drafter())))


def test_references_are_drafted_from(plain: Any) -> None:
    model = HierarchyDraftModel(drafter(database=None), costs=CHEAP)
    llama = load(model)
    prompt = PROMPTS[3]
    text = answer(plain, prompt)
    assert answer(llama, prompt) == text
    before = model.accepted
    model.references = [llama.tokenize(text.encode(), add_bos=False)]
    assert answer(llama, prompt) == text
    assert model.accepted - before > 2 * before


def test_measured_costs_are_times_and_the_cache_is_gone_on_with(plain: Any) -> None:
    model = HierarchyDraftModel(drafter())
    llama = load(model)
    first = answer(llama, PROMPTS[0], max_tokens=8)
    held = llama.n_tokens
    costs = model.measure(llama)
    assert llama.n_tokens == held
    assert costs.shape == (17,)
    assert costs[0] > 0
    assert (np.diff(costs) >= 0).all()
    assert answer(llama, PROMPTS[0], max_tokens=8) == first


def test_a_drafter_of_another_size_or_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLlamaError, match=r"vocabulary of 100 ids and .*gguf has 49152"):
        load(HierarchyDraftModel(HierarchyDrafter(100)))
    vocabulary = GgufTokenizer.open(FILE).get_vocab()
    swapped = {token: index for index, token in enumerate(reversed(vocabulary))}

    class Other:
        def get_vocab(self) -> dict[str, int]:
            return swapped

        def __len__(self) -> int:
            return len(swapped)

    database = ModelDatabase.from_documents([[5, 6, 7]], 49152, tokenizer=Other())
    with pytest.raises(UnsupportedLlamaError, match="the model_database was built with another tokenizer"):
        load(HierarchyDraftModel(HierarchyDrafter(49152, database)))


def test_a_llama_without_a_draft_model_of_ours_is_left_alone() -> None:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    HierarchyDraftModel(drafter(database=None))
    for llama in (load(), load(LlamaPromptLookupDecoding(), logits_all=True)):
        assert not {"eval", "sample"} & vars(llama).keys()
        assert llama("One two three one two", max_tokens=4, temperature=0.0)["choices"][0]["text"]


def test_the_gguf_s_tokenizer_is_the_one_that_the_shipped_database_was_built_with(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    from hdraft.drafting.databases.vocabulary import tokenizer_fingerprint

    theirs = AutoTokenizer.from_pretrained(smollm2_folder)
    ours = GgufTokenizer.open(FILE)
    assert ours.get_vocab() == theirs.get_vocab()
    assert tokenizer_fingerprint(ours) == tokenizer_fingerprint(theirs)
    assert ours.eos_token_id == theirs.eos_token_id
    for text in (*PROMPTS, "  two  spaces\n\n\ttab é 你好 🐈 <|im_end|> done"):
        assert ours(text, add_special_tokens=False) == {
            "input_ids": theirs(text, add_special_tokens=False)["input_ids"]
        }
    messages = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(messages)["input_ids"] == list(
        theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    )


@pytest.fixture(scope="module")
def smollm2_folder() -> Path:
    pytest.importorskip("gguf")
    from rich.console import Console

    from hdraft.demo.conversion import converted

    return converted(FILE, Console(quiet=True))
