"""The target's own answers, generated once each whatever interrupts it."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hdraft.building import BuildError, build_model, generate_outputs
from hdraft.drafting.drafter import DraftSession
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [1, 2, 3, 4], [9], [30, 31]]


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def write(path, prompts=PROMPTS):
    path.write_text("".join(json.dumps({"prompt_ids": ids}) + "\n" for ids in prompts))
    return path


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl")


def run(model, prompts, output, **options):
    return generate_outputs(model, None, prompts, output, **{"max_new_tokens": 12} | options)


def answers(path):
    return [json.loads(line)["output_ids"] for line in path.read_text().splitlines()]


def test_the_answers_are_the_targets_own(model, prompts, tmp_path):
    calls = []
    assert run(model, prompts, tmp_path / "out.jsonl", progress=lambda *call: calls.append(call)) == len(PROMPTS)
    for ids, answer in zip(PROMPTS, answers(tmp_path / "out.jsonl"), strict=True):
        assert model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist() == ids + answer
    assert calls == [("generating", n, len(PROMPTS)) for n in range(len(PROMPTS) + 1)]
    database = build_model(tmp_path / "out.jsonl", tmp_path / "database", vocab_size=64)
    assert [ids.tolist() for ids in database.documents()] == answers(tmp_path / "out.jsonl")


class Interrupting(HierarchyDrafter):
    """Dies at its nth request."""

    requests = 3

    def session(self, *arguments, **keywords) -> DraftSession:
        self.requests -= 1
        if self.requests < 0:
            raise KeyboardInterrupt
        return super().session(*arguments, **keywords)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 5.0}])
def test_a_resumed_run_ends_as_an_uninterrupted_one(model, prompts, tmp_path, options):
    run(model, prompts, tmp_path / "whole.jsonl", **options)
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(model, prompts, output, drafter=Interrupting(64), **options)
    assert len(answers(output)) == 3
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for torn in (b"", whole.splitlines()[3][:1], whole.splitlines()[3][:70], whole.splitlines()[3][:-1]):
        output.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + torn)
        run(model, prompts, output, **options)
        assert output.read_bytes() == whole
    run(model, prompts, output, **options)  # nothing left to do
    assert output.read_bytes() == whole


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_generating import run, tiny_llama
run(tiny_llama(), sys.argv[2], sys.argv[3], progress=lambda *call: time.sleep(0.05))
"""


def test_killed_processes(model, prompts, tmp_path):
    run(model, prompts, tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, os.path.dirname(__file__), str(prompts), str(output)]
    ) as process:
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") >= 2):
            time.sleep(0.01)
        process.kill()
    assert 2 <= output.read_bytes().count(b"\n") < len(PROMPTS)
    run(model, prompts, output)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_prompts_settings_and_models_are_refused(model, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, prompts, output)
    before = output.read_bytes()
    other = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"rope_theta": 5.0, "rms_norm_eps": 0.1}))
    for options in ({"max_new_tokens": 13}, {"do_sample": True}, {"model": other}):
        with pytest.raises(BuildError, match=r"out.jsonl:1: is not by this model with these settings"):
            run(**{"model": model, "prompts": prompts, "output": output} | options)
    with pytest.raises(BuildError, match=r"out.jsonl:2: answers another prompt"):
        run(model, write(tmp_path / "others.jsonl", [PROMPTS[0], [1]]), output)
    with pytest.raises(BuildError, match=r"out.jsonl:4: answers another prompt"):
        run(model, write(tmp_path / "fewer.jsonl", PROMPTS[:3]), output)
    assert output.read_bytes() == before
    run(model, write(tmp_path / "more.jsonl", [*PROMPTS, [40]]), output)
    assert output.read_bytes().startswith(before)
    assert len(answers(output)) == 7


@pytest.mark.parametrize("text", ['{"ids": [1]}', '{"ids": [1]}\n', "ten years of work", '{"index":0,"prompt":"x'])
def test_a_file_of_something_else_is_left_alone(model, prompts, tmp_path, text):
    output = tmp_path / "out.jsonl"
    output.write_text(text)
    with pytest.raises(BuildError, match=r"out.jsonl:1: "):
        run(model, prompts, output)
    assert output.read_text() == text
    with pytest.raises(BuildError, match=r"must end in .jsonl"):
        run(model, prompts, tmp_path / "out.json")
    with pytest.raises(BuildError, match=r"prompts.jsonl:1: "):
        run(model, prompts, prompts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ('{"prompt": 5}', "neither"),
        ('{"prompt": "words"}', "give a tokenizer"),
        ('{"prompt_ids": []}', "an empty prompt"),
        ('{"prompt_ids": "1"}', "not a list of token ids"),
        ('{"prompt_ids": [64]}', "token id 64 is outside"),
    ],
)
def test_a_wrong_prompt_is_named_before_the_work(model, prompts, tmp_path, line, message):
    prompts.write_text(f'{{"prompt_ids": [1]}}\n{line}\n')
    with pytest.raises(BuildError, match=message) as caught:
        run(model, prompts, tmp_path / "out.jsonl")
    assert str(caught.value).startswith(f"{prompts}:2: ")
    assert not (tmp_path / "out.jsonl").exists()


def test_no_prompts(model, prompts, tmp_path):
    prompts.write_text("")
    with pytest.raises(BuildError, match="no prompts in it"):
        run(model, prompts, tmp_path / "out.jsonl")


def test_a_full_disk_keeps_what_is_finished(model, prompts, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    write = os.write
    room = 300

    def limited(descriptor, data):
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(BuildError, match="the disk is full") as caught:
        run(model, prompts, output)
    assert isinstance(caught.value.__cause__.__cause__ or caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert 0 < len(answers(output)) < len(PROMPTS)
    run(model, prompts, output)
    assert len(answers(output)) == len(PROMPTS)


class Chat:
    """A tokenizer with a chat template, as far as it is used here."""

    eos_token_id = None

    def get_vocab(self):
        return {"a": 0}

    def __len__(self):
        return 64

    def __call__(self, text):
        return {"input_ids": [ord(letter) % 64 for letter in text]}

    chat_template = "a template"

    def get_chat_template(self):
        return self.chat_template

    def apply_chat_template(self, messages, chat_template, add_generation_prompt, return_dict):
        assert chat_template == "a template"
        if messages[0]["content"] == "fail":
            raise RuntimeError("No chat template\nand much more")
        return {"input_ids": [1, *self(messages[0]["content"])["input_ids"], 2]}


def test_text_prompts_plain_and_through_the_chat_template(model, prompts, tmp_path):
    prompts.write_text('{"prompt": "words"}\n')
    ids = Chat()("words")["input_ids"]
    for template, expected in ((None, ids), ("auto", [1, *ids, 2])):
        output = tmp_path / f"{template}.jsonl"
        generate_outputs(model, Chat(), prompts, output, max_new_tokens=5, chat_template=template)
        assert answers(output) == [
            model.generate(torch.tensor([expected]), max_new_tokens=5)[0, len(expected) :].tolist()
        ]
    prompts.write_text('{"prompt": "fail"}\n')
    with pytest.raises(BuildError, match=r"prompts.jsonl:1: the chat template fails \(No chat template\)"):
        generate_outputs(model, Chat(), prompts, output, chat_template="auto")
