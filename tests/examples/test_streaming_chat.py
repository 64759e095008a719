"""examples/streaming_chat.py."""

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hdraft
from hdraft.demo import MODEL

QUESTIONS = ["How many cups of coffee are in 3 pots of 6 cups?", "And in 4 pots?"]


def test_each_turn_is_what_generate_writes_and_the_cache_goes_on(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = iter(QUESTIONS)
    cached: list[int] = []  # of each turn, the tokens in the cache that it goes on from
    generate = hdraft.generate

    def spy(*arguments: Any, **options: Any) -> Any:
        cached.append(options["cache"].get_seq_length() if "cache" in options else 0)
        return generate(*arguments, **options)

    def ask(marker: str) -> str:
        print(marker, end="")
        return next(questions, "")

    monkeypatch.setattr(hdraft, "generate", spy)
    monkeypatch.setattr(builtins, "input", ask)
    printed = run("streaming_chat", MODEL)
    monkeypatch.undo()

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    messages, read = [], [0]
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        output = model.generate(torch.tensor([ids]), max_new_tokens=256)[0]
        read.append(len(output) - 1)
        answer = tokenizer.decode(output[len(ids) :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        answered = "> " + answer in printed
        assert answered, question
    assert cached == read[:-1]


def test_what_was_learnt_is_kept_for_the_next_chat(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hdraft.HierarchyDrafter, "uses_costs", False)  # whatever the machine does
    steps = []
    for _ in range(2):
        questions = iter(QUESTIONS[:1])
        monkeypatch.setattr(builtins, "input", lambda marker, questions=questions: next(questions, ""))
        printed = run("streaming_chat", MODEL, tmp_path / "learnt")
        steps.append(int(re.search(r"in (\d+) steps", printed)[1]))  # type: ignore[index]
    assert steps[1] < 0.7 * steps[0], "it writes what it wrote in the chat before"


def test_the_end_of_the_input_ends_the_chat(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def end(marker: str) -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", end)
    assert run("streaming_chat", MODEL) == ""
