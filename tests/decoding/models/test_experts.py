"""A mixture of experts decodes with the kernels that `generate` decodes with, as far as rows and memory allow."""

import copy
import logging
from contextlib import contextmanager

import architectures
import pytest
import torch
from architectures import NEW, PROMPT, SMALL, VOCABULARY, build
from oracle import OracleDrafter
from test_lossless import prompt
from transformers import GenerationMixin

from hdraft.decoding import generate, logs, stream
from hdraft.decoding.models import experts
from hdraft.drafting.drafter import UNLIMITED

MOST = 16 // 2  # rows of a step whose copies, of two experts each, are no more than all sixteen


@pytest.fixture
def model(monkeypatch):
    """A model that changes kernels for decoding as it would on a GPU, and remembers what its passes ran with."""
    options = SMALL | {"num_local_experts": 16, "num_experts_per_tok": 2}
    monkeypatch.setitem(architectures.TEXT, "sixteen-experts", ("Mixtral", options))
    model = copy.deepcopy(build("sixteen-experts"))

    @contextmanager
    def decode():
        usual = model.get_experts_implementation()
        model.set_experts_implementation({"": "batched_mm"})
        try:
            yield
        finally:
            model.set_experts_implementation(usual)

    monkeypatch.setattr(model, "_optimize_model_for_decode", decode)
    model.passes = []

    def remember(module, args, kwargs):
        model.passes.append((kwargs["input_ids"].shape[1], model.get_experts_implementation()[""]))

    model.register_forward_pre_hook(remember, with_kwargs=True)
    assert model.get_experts_implementation() == {"": "grouped_mm"}
    return model


def expected(model, **options):
    tokens = model.generate(prompt(), max_new_tokens=NEW, **options)
    passes, model.passes = model.passes, []
    return tokens, passes


def drafter(tokens):
    return OracleDrafter(VOCABULARY, tokens[0].tolist(), PROMPT)


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}], ids=["whole", "chunked"])
def test_steps_without_drafts_run_what_generate_runs(model, step, options):
    tokens, passes = expected(model, **options)
    reading = 1 if not options else 4
    assert {kernel for _, kernel in passes[:reading]} == {"grouped_mm"}
    assert passes[reading:] == [(1, "batched_mm")] * (NEW - 1)
    assert torch.equal(generate(model, prompt(), None, max_new_tokens=NEW, step=step, **options), tokens)
    if step == "static":  # the first step of a size is run twice
        del model.passes[reading]
    assert model.passes == passes


@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_drafted_steps_run_it_for_as_many_rows_as_copy_no_more_than_a_layer_has(model, step, monkeypatch, caplog):
    monkeypatch.setattr(logs, "_said", set())
    tokens, _ = expected(model)
    with caplog.at_level(logging.WARNING, "hdraft"):
        assert torch.equal(generate(model, prompt(), drafter(tokens), max_new_tokens=NEW, step=step), tokens)
    steps = model.passes[1:]
    assert {kernel for rows, kernel in steps if rows > MOST} == {"grouped_mm"}
    assert {kernel for rows, kernel in steps if rows <= MOST} == {"batched_mm"}
    assert f"steps of up to {MOST} rows run the experts as generate decodes" in caplog.text
    assert model.get_experts_implementation() == {"": "grouped_mm"}


def test_less_free_memory_means_fewer_rows_but_never_none(model, monkeypatch):
    assert experts.most_rows(model) == MOST
    weights = model.model.layers[0].mlp.experts
    row = 2 * (weights.gate_up_proj[0].nbytes + weights.down_proj[0].nbytes)
    for free, rows in ((2 * 3 * row, 3), (2 * 3 * row - 1, 2), (0, 1)):
        monkeypatch.setattr(experts, "_free", lambda weight, free=free: free)
        assert experts.most_rows(model) == rows


def test_between_two_tokens_of_a_stream_the_model_is_as_it_was(model):
    tokens, _ = expected(model)
    for token in stream(model, prompt(), drafter(tokens), max_new_tokens=NEW):
        assert model.get_experts_implementation() == {"": "grouped_mm"}, token
    assert {kernel for rows, kernel in model.passes if rows == 1} <= {"batched_mm"}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_where_generate_changes_no_kernel_there_is_no_limit_and_nothing_is_said(name, monkeypatch, caplog):
    monkeypatch.setattr(logs, "_said", set())
    model = build(name)
    assert experts.most_rows(model) == UNLIMITED
    with caplog.at_level(logging.WARNING, "hdraft"):
        generate(model, prompt(), None, max_new_tokens=4)
    assert not caplog.text


def test_a_version_of_transformers_without_such_kernels_will_do(model, monkeypatch):
    for owner in (model, GenerationMixin):
        monkeypatch.delattr(owner, "_optimize_model_for_decode")
    assert experts.most_rows(model) == UNLIMITED
