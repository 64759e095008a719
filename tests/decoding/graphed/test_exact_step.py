"""Exact steps: the same bits with drafts and without, in Triton's interpreter or on a GPU, and what they refuse."""

import copy

import pytest
import torch
from architectures import DEVICE, VOCABULARY, build
from interpreter import interpret
from oracle import OracleDrafter
from test_lossless import prompt

pytest.importorskip("triton")

import hdraft
from hdraft.decoding.graphed import fused, kernels, ordered_attention, text_reader, tree_attention
from hdraft.decoding.graphed import static_step as static
from hdraft.drafting.methods.lookahead import LookaheadDrafter

NEW = 8


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", {DEVICE})
    if DEVICE == "cpu":
        interpret(monkeypatch, kernels, tree_attention, ordered_attention)
        monkeypatch.setattr(static, "EXACT_ROWS", 8)  # the interpreter takes seconds for 64 …
        monkeypatch.setattr(static, "TOKENS", 16)  # … and for the many programs of a large buffer
        monkeypatch.setattr(torch.nn.functional, "linear", row_by_row)


def row_by_row(states, weight, bias=None):
    """A product whose rows are added up alike, as a GPU's are; those of a processor's libraries need not be."""
    rows = [torch.mv(weight, row) for row in states.reshape(-1, states.shape[-1])]
    return torch.stack(rows).reshape(*states.shape[:-1], -1)


def half(name, dtype=torch.bfloat16):
    return copy.deepcopy(build(name)).to(dtype)


def run(model, ids, drafter, new=NEW, **options):
    statistics = hdraft.Statistics()
    torch.manual_seed(1)
    output = hdraft.generate(
        model,
        ids,
        drafter,
        step="exact",
        statistics=statistics,
        max_new_tokens=new,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output, statistics


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [("llama", torch.bfloat16, {}), ("qwen3", torch.float16, {"do_sample": True, "top_k": 20})],
    ids=["greedy", "sampled"],
)
def test_drafts_change_no_bit_of_the_logits_in_half_precision(name, dtype, options):
    model, ids = half(name, dtype), prompt(27)
    alone, without = run(model, ids, None, **options)
    oracle = OracleDrafter(VOCABULARY, alone.sequences[0].tolist(), ids.shape[1], seed=3)
    drafted, statistics = run(model, ids, oracle, **options)
    assert drafted.sequences.tolist() == alone.sequences.tolist()
    assert torch.equal(torch.cat(drafted.logits), torch.cat(alone.logits))
    assert without.kinds == {"dynamic": 1, "exact": NEW - 1}
    assert statistics.kinds["exact"] < NEW - 1 and max(statistics.accepted_lengths) > 1
    assert statistics.accepted_lengths[0] == 0  # no draft behind the prompt


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 2}, {}], ids=["chunks", "one token"])
def test_however_the_prompt_is_read_drafts_change_no_bit(options):
    model, ids = half("llama"), prompt(5 if options else 1)
    alone, _ = run(model, ids, None, new=5, **options)
    drafter = OracleDrafter(VOCABULARY, alone.sequences[0].tolist(), ids.shape[1], seed=3)
    drafted, statistics = run(model, ids, drafter, new=5, **options)
    assert torch.equal(torch.cat(drafted.logits), torch.cat(alone.logits))
    assert statistics.kinds["dynamic"] == (2 if options else 1)
    assert statistics.drafted > 0


def test_no_request_tells_what_was_asked_before(monkeypatch):
    monkeypatch.setattr(text_reader.TextReader, "prepare", None)  # not called
    model = half("llama")
    first, _ = run(model, prompt(20), None, new=3)
    stepper = static._idle[model]
    run(model, prompt(9, 2), "auto", new=3)
    again, _ = run(model, prompt(20), None, new=3)
    assert static._idle[model] is stepper
    assert torch.equal(torch.cat(first.logits), torch.cat(again.logits))


def test_texts_up_to_the_last_slot_fit(monkeypatch):
    monkeypatch.setattr(static, "TOKENS", 16)
    monkeypatch.setattr("hdraft.decoding.graphed.static_cache.LEAST", 16)  # nothing but what is asked for
    model = half("llama")
    output, statistics = run(model, prompt(24), None)
    assert output.sequences.shape[1] == 24 + NEW and statistics.kinds["exact"] == NEW - 1


def test_a_larger_budget_is_cut_to_the_rows_there_are():
    model, ids = half("llama"), prompt(20)
    alone, _ = run(model, ids, None, new=3)
    oracle = OracleDrafter(VOCABULARY, alone.sequences[0].tolist(), 20, seed=3)
    drafted, _ = run(model, ids, oracle, new=3, budget=200)
    assert drafted.sequences.tolist() == alone.sequences.tolist()


def test_a_device_whose_rows_come_to_different_bits_is_refused(monkeypatch):
    product = torch.nn.functional.linear

    def by_place(states, weight, bias=None):
        result = product(states, weight)
        if states.ndim == 2 and len(states) > 3:
            result[3] *= 1.01
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", by_place)
    with pytest.raises(RuntimeError, match=r"no exact steps here.*other logits in a draft than in text"):
        run(half("llama"), prompt(20), None)


def test_attention_that_adds_up_drafts_otherwise_than_text_is_refused(monkeypatch):
    monkeypatch.setattr(ordered_attention, "ordered_attention", by_slot)
    monkeypatch.setattr(ordered_attention, "as_paths", tree_attention.as_bits)
    with pytest.raises(RuntimeError, match=r"no exact steps here.*other logits in a draft than in text"):
        run(half("llama"), prompt(20), None)


def by_slot(queries, keys, values, start, earliest, among, scaling):
    return tree_attention.tree_attention(queries, keys, values, start, earliest, among, scaling, block_n=16)


@pytest.mark.parametrize("what", ["raises", "memory"])
def test_nothing_takes_an_exact_steps_place(what, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("no memory") if what == "memory" else RuntimeError("no such instruction")

    monkeypatch.setattr(static, "fused_forward", fails)
    expected = torch.OutOfMemoryError if what == "memory" else RuntimeError
    with pytest.raises(expected, match="no memory" if what == "memory" else "no exact steps here.*no such instruction"):
        run(half("llama"), prompt(20), None)


def test_what_captured_steps_failed_at_does_not_make_exact_ones_of_transformers_layers(monkeypatch):
    model = half("llama")
    with monkeypatch.context() as context:
        context.setattr(static, "fused_forward", lambda *_, **__: 1 / 0)
        hdraft.generate(model, prompt(20), None, step="static", max_new_tokens=3)
    assert not static._idle[model].fused
    run(model, prompt(20), None, new=3)
    assert static._idle[model].fused


def test_a_hook_in_the_middle_of_a_stream_is_refused():
    model = half("llama")
    stream = hdraft.stream(model, prompt(20), None, step="exact", max_new_tokens=5)
    next(stream)
    model.model.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(hdraft.UnsupportedError, match="with adapters or hooks"):
        list(stream)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mistral-sliding", "look back over a window"),
        ("gemma", "for Llama, Mistral, Qwen 2"),
        ("bloom", "makes its own masks"),
    ],
)
def test_models_that_cannot_have_them_are_refused_by_name(name, reason):
    model = half(name)
    with pytest.raises(
        hdraft.UnsupportedError, match=f"{type(model).__name__}: no exact steps, take another kind: .*{reason}"
    ):
        run(model, prompt(20), None)


def test_a_processor_is_refused(monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", set())
    with pytest.raises(hdraft.UnsupportedError, match=r"no exact steps, take another kind: .*on a GPU"):
        run(half("llama"), prompt(20), None)


def test_a_lookahead_branch_is_refused_unless_nothing_is_drafted():
    model, drafter = half("llama"), LookaheadDrafter(VOCABULARY)
    with pytest.raises(hdraft.UnsupportedError, match="none for a lookahead branch"):
        run(model, prompt(20), drafter)
    _, statistics = run(model, prompt(20), drafter, new=2, budget=0)
    assert statistics.kinds == {"dynamic": 1, "exact": 1}


def test_without_memory_for_buffers_it_says_so(monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(static.StaticCache, "__init__", none_left)
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        run(half("llama"), prompt(20), None)
