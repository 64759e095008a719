"""Fused layers against transformers' own, in Triton's interpreter or on a GPU, and what is not fused."""

import copy

import numpy as np
import pytest
import torch
from architectures import DEVICE, VOCABULARY, build
from interpreter import interpret
from test_lossless import compare, prompt

pytest.importorskip("triton")

from transformers.models.llama.modeling_llama import LlamaRMSNorm

import hdraft
from hdraft.decoding import growing
from hdraft.decoding.graphed import fused, kernels, text_reader, tree_attention
from hdraft.decoding.graphed import static_step as static
from hdraft.decoding.target import Target
from hdraft.drafting.tree import DraftTree

FUSED = ["llama", "mistral-sliding", "qwen2", "qwen3", "llama-longrope"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", {DEVICE})
    if DEVICE == "cpu":
        interpret(monkeypatch, kernels, tree_attention)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen2-sliding", "qwen3"])
def test_a_fused_step_gives_the_logits_and_the_cache_of_a_growing_one(name):
    model, generator = copy.deepcopy(build(name)), np.random.default_rng(3)
    targets = [Target(model, step=step, budget=20) for step in ("dynamic", "static")]
    text = prompt(30)[0].numpy(force=True)
    with torch.no_grad():
        for target in targets:
            target.forward(text)
            target.keep([])
        for _ in range(6):
            n = int(generator.integers(0, 9))
            tree = DraftTree(generator.integers(VOCABULARY, size=n), [int(generator.integers(-1, i)) for i in range(n)])
            path, node = [], n - 1
            while node >= 0:
                path.insert(0, node)
                node = int(tree.parents[node])
            logits = [target.forward(text[-1:], tree).clone() for target in targets]
            torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
            for target in targets:
                target.keep(path)
        stepper = targets[1].static.stepper
        assert stepper.fused and all(len(key) == 1 for key in stepper.programs)
        targets[1].close(np.zeros(targets[1].length, np.int64))
        for ours, theirs in zip(targets[1].cache.layers, targets[0].cache.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_fused_steps_give_the_tokens_of_generate(name):
    model = copy.deepcopy(build(name))
    compare(model, prompt(20), {}, new=24, step="static")
    assert name == "llama-longrope" or static._idle[model].fused


def test_a_fused_step_is_one_program_for_its_size_whatever_the_length(monkeypatch):
    model = copy.deepcopy(build("llama"))
    compare(model, prompt(240), {}, new=24, step="static")
    assert {len(key) for key in static._idle[model].programs} == {1}


class OwnNorm(LlamaRMSNorm):
    """What a model from elsewhere may have."""


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.model.layers[1].mlp.register_forward_hook(lambda *_: None),
        lambda model: setattr(model.model.layers[0].self_attn, "q_proj", torch.nn.Sequential(torch.nn.Identity())),
        lambda model: setattr(model.model.norm, "forward", lambda states: states),
        lambda model: setattr(model.model, "norm", OwnNorm(64)),
        lambda model: model.train(),
        lambda model: model.lm_head.to(torch.float64),
    ],
    ids=["a hook", "an adapter", "a patched forward", "own code", "dropout", "mixed formats"],
)
def test_what_is_changed_is_left_to_transformers(change):
    model = copy.deepcopy(build("llama"))
    assert fused.can_fuse(model)
    change(model)
    assert not fused.can_fuse(model)


@pytest.mark.parametrize("name", ["gemma", "mixtral", "gpt2", "phi3"])
def test_other_families_are_left_to_transformers(name):
    assert not fused.can_fuse(build(name))


@pytest.mark.parametrize("wrong", ["numbers", "raises"])
def test_fused_layers_that_do_not_agree_are_not_used(wrong, monkeypatch, caplog):
    def other(model, *arguments):
        if wrong == "raises":
            raise RuntimeError("no such instruction")
        return fused.fused_forward(model, *arguments) * 2

    model = copy.deepcopy(build("llama"))
    monkeypatch.setattr(static, "fused_forward", other)
    compare(model, prompt(20), {}, new=24, step="static")
    assert not static._idle[model].fused
    assert caplog.text.count("layers are run by transformers and not fused") == 1
    compare(model, prompt(20), {}, new=24, step="static")
    assert caplog.text.count("layers are run by transformers and not fused") == 1  # it is remembered


def begun(name):
    """A model that has served a request."""
    model = copy.deepcopy(build(name))
    hdraft.generate(model, prompt(8), None, step="static", max_new_tokens=3)
    return model


def reading(monkeypatch):
    """What reads each text from now on, in order."""
    passes = []
    for stepper in (text_reader.TextReader, growing.GrowingStepper):
        prepare = stepper.prepare

        def note(self, *arguments, prepare=prepare):
            passes.append(type(self).__name__)
            return prepare(self, *arguments)

        monkeypatch.setattr(stepper, "prepare", note)
    return passes


@pytest.mark.parametrize("name, length", [("llama", 70), ("mistral-sliding", 30), ("qwen2-sliding", 2), ("qwen3", 20)])
def test_a_prompt_behind_the_first_request_is_read_by_fused_layers(name, length, monkeypatch):
    model = begun(name)
    passes = reading(monkeypatch)
    for seed in range(2):
        compare(model, prompt(length, seed), {"do_sample": seed == 1}, new=6, step="static")
    assert passes == ["TextReader"] * 2
    assert static._idle[model].reader.works


def test_what_a_fused_prompt_does_not_serve_is_read_by_transformers(monkeypatch):
    model = begun("llama")
    passes = reading(monkeypatch)
    monkeypatch.setattr("hdraft.decoding.graphed.static_sequence.TEXT_ROWS", (15,))
    compare(model, prompt(40), {}, new=3, step="static")
    compare(model, prompt(8), {"prefill_chunk_size": 4}, new=3, step="static")
    mask = torch.ones_like(prompt(8))
    mask[0, :3] = 0
    compare(model, prompt(8), {"attention_mask": mask}, new=3, step="static")
    assert set(passes) == {"GrowingStepper"}
    compare(model, prompt(8), {}, new=3, step="static")  # and the buffers are as they should be
    assert passes[-1] == "TextReader"


def test_a_conversation_goes_on_with_fused_layers(monkeypatch):
    model = copy.deepcopy(build("llama"))
    first = hdraft.generate(model, prompt(8), step="static", max_new_tokens=3, return_dict_in_generate=True)
    text = torch.cat((first.sequences, prompt(9, 4)), dim=1)
    passes = reading(monkeypatch)
    cache = first.cache if hasattr(first, "cache") else first.past_key_values
    tokens = hdraft.generate(model, text, past_key_values=cache, step="static", max_new_tokens=6)
    assert tokens.tolist() == model.generate(text, max_new_tokens=6, do_sample=False).tolist()
    assert passes == ["TextReader"]


@pytest.mark.parametrize("wrong", ["numbers", "raises"])
def test_prompts_that_fused_layers_read_otherwise_are_read_by_transformers(wrong, monkeypatch, caplog):
    def other(model, *arguments, asked=None):
        if wrong == "raises":
            raise RuntimeError("too many rows")
        return fused.fused_forward(model, *arguments, asked=asked) * 2

    model = begun("llama")
    monkeypatch.setattr(text_reader, "fused_forward", other)
    passes = reading(monkeypatch)
    for _ in range(2):
        compare(model, prompt(8), {}, new=3, step="static")
    assert passes == ["TextReader", "GrowingStepper"]
    assert caplog.text.count("prompts are read by transformers' layers and not by fused ones") == 1
    assert static._idle[model].fused


def test_a_prompt_of_a_size_that_was_met_before_is_read_by_one_captured_program(monkeypatch):
    captured = []
    monkeypatch.setattr(text_reader, "capture", lambda run, *_: captured.append(run.args[1]) or run)
    model = begun("llama")
    static._idle[model].kind = "captured"  # as on a GPU: Triton's interpreter cannot be recorded
    seen = []
    for length in (20, 40, 70, 30, 64, 128):
        statistics = hdraft.Statistics()
        expected = model.generate(prompt(length), max_new_tokens=4)
        tokens = hdraft.generate(model, prompt(length), None, max_new_tokens=4, step="captured", statistics=statistics)
        assert tokens.tolist() == expected.tolist()
        seen.append(captured.copy())
    assert seen == [[], [64], [64], [64], [64], [64, 128]]
    assert set(static._idle[model].reader.programs) == {64, 128}


def test_prompts_that_cannot_be_captured_are_read_all_the_same(monkeypatch, caplog):
    def refused(run, *_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(text_reader, "capture", refused)
    model = begun("llama")
    static._idle[model].kind = "captured"
    for seed in range(4):
        compare(model, prompt(20, seed), {}, new=4, step="captured")
    assert caplog.text.count("a pass over a prompt is not captured: RuntimeError: operation not permitted") == 1
    assert static._idle[model].reader.works
