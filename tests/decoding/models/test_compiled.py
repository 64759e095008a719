"""A model that the user compiled: its tokens are those of `generate`, and its graphs are few."""

import copy
import logging
import threading

import pytest
import torch
from architectures import NEW, PROMPT, VOCABULARY, build
from oracle import OracleDrafter
from test_lossless import prompt
from torch._dynamo.utils import counters

from hdraft import HierarchyDrafter
from hdraft.decoding import Statistics, costs, generate, logs, measure_costs
from hdraft.decoding.graphed.static_step import default_step
from hdraft.decoding.models.compiling import is_compiled, uncompiled


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    """Nothing compiled yet, and nothing said."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(logs, "_said", set())
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def by_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def by_method(model):
    model.compile(backend="aot_eager")
    return model


def whole(model):
    model.compile(backend="eager", fullgraph=True)
    return model


def of_any_size(model):
    model.compile(backend="eager", dynamic=True)
    return model


def inner_wrapped(model):
    model.model = torch.compile(model.model, backend="eager")
    return model


def by_layer(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def as_expected(model, ids=None, new=NEW, **options):
    ids = prompt() if ids is None else ids
    expected = copy.deepcopy(build("llama")).generate(ids, max_new_tokens=new)
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), ids.shape[1])
    statistics = Statistics()
    tokens = generate(model, ids, drafter, max_new_tokens=new, statistics=statistics, **options)
    assert torch.equal(tokens, expected)
    assert statistics.steps < new / 2
    return statistics


@pytest.mark.parametrize("compiled", [by_forward, by_method, whole, of_any_size, inner_wrapped, by_layer])
def test_there_are_two_graphs_one_for_a_row_and_one_for_more(compiled):
    model = compiled(copy.deepcopy(build("llama")))
    assert is_compiled(model) and default_step(model) == "static"
    as_expected(model)
    parts = len(model.model.layers) if compiled is by_layer else 1  # layers differ in their number
    assert 0 < graphs() <= 2 * parts
    as_expected(model, prompt(PROMPT + 9, seed=4))
    assert graphs() <= 2 * parts


def test_a_text_that_grows_past_the_first_buckets_adds_one_or_two():
    model = by_forward(copy.deepcopy(build("llama")))
    as_expected(model, new=300)
    assert 2 <= graphs() <= 4
    before = graphs()
    as_expected(model, prompt(seed=2), new=300)
    assert graphs() == before


def test_costs_are_measured_of_what_will_run(monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    model = by_forward(copy.deepcopy(build("llama")))
    measured_costs = measure_costs(model)
    assert len(set(measured_costs.tolist())) <= 7  # static steps have few sizes
    measured = graphs()
    assert 0 < measured <= 4
    expected = copy.deepcopy(build("llama")).generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(generate(model, prompt(), HierarchyDrafter(VOCABULARY), max_new_tokens=NEW), expected)
    assert graphs() == measured


@pytest.mark.parametrize("name", ["bloom", "llama-dynamic-ntk"])
def test_steps_that_must_grow_run_uncompiled(name, caplog):
    attention = "eager" if name == "bloom" else "sdpa"
    expected = build(name, attention).generate(prompt(), max_new_tokens=NEW)
    model = by_forward(copy.deepcopy(build(name, attention)))
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    with caplog.at_level(logging.WARNING, "hdraft"):
        assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW), expected)
    assert graphs() == 0
    assert "run as before torch.compile" in caplog.text


def test_steps_that_are_asked_to_grow_run_uncompiled_and_it_is_said_once(caplog):
    model = by_method(copy.deepcopy(build("llama")))
    with caplog.at_level(logging.WARNING, "hdraft"):
        as_expected(model, step="dynamic")
        as_expected(model, step="dynamic")
    assert graphs() == 0
    assert caplog.text.count("run as before torch.compile") == 1


def test_a_trial_of_an_unknown_family_compiles_nothing():
    expected = build("cohere2").generate(prompt(), max_new_tokens=NEW)
    model = by_forward(copy.deepcopy(build("cohere2")))
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW), expected)
    assert 0 < graphs() <= 2


def test_the_wrapper_runs_as_in_generate_and_the_way_to_compiled_steps_is_said(caplog):
    model = torch.compile(copy.deepcopy(build("llama")), backend="eager")
    model.generate(prompt(), max_new_tokens=4)
    assert graphs() == 0
    with caplog.at_level(logging.WARNING, "hdraft"):
        as_expected(model)
        measure_costs(model)
    assert graphs() == 0
    assert "model.compile()" in caplog.text


def test_other_threads_compile_again_once_the_last_uncompiled_step_has_ended():
    function = torch.compile(lambda x: x + 1, backend="eager")
    entered, leave = threading.Event(), threading.Event()

    def other():
        with uncompiled():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with uncompiled():
        thread.start()
        assert entered.wait(60)
        function(torch.ones(3))
    function(torch.ones(3))  # the other thread still needs it
    assert graphs() == 0
    leave.set()
    thread.join()
    function(torch.ones(3))
    assert graphs() == 1


def test_what_is_not_compiled_is_not_taken_for_it():
    assert not is_compiled(build("llama")) and default_step(build("llama")) == "dynamic"
