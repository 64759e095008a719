"""`max_time` is the request's: nothing that is prepared once runs on its clock. The time here is a pretended one."""

import importlib
import time

import numpy as np
import pytest
import torch
from architectures import NEW, PROMPT, VOCABULARY, build
from transformers import MaxTimeCriteria, StoppingCriteriaList

from hdraft.decoding import custom_generate, generate, stream
from hdraft.decoding.graphed import static_step as static
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

generating = importlib.import_module("hdraft.decoding.generate")


def prompt():
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands, and its hands to turn."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(static, "perf_counter", lambda: now[0])

    def slow(function):
        def slowed(*arguments, **named):
            now[0] += 100
            return function(*arguments, **named)

        return slowed

    return slow


@pytest.fixture
def slow_preparation(monkeypatch, clock):
    """The probe of a model takes 100 seconds."""
    monkeypatch.setattr(generating, "draft_shape", clock(generating.draft_shape))


def bare(model, ids, drafter, **options):
    return model.generate(ids, custom_generate=custom_generate(drafter), **options)


def streamed(model, ids, drafter, **options):
    tokens = [token.id for token in stream(model, ids, drafter, **options)]
    return torch.cat((ids, torch.tensor([tokens])), dim=1)


@pytest.mark.usefixtures("slow_preparation")
@pytest.mark.parametrize("run", [generate, bare, streamed])
def test_a_first_call_with_max_time_is_as_long_as_later_ones(run):
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(run(model, prompt(), HierarchyDrafter(VOCABULARY), max_new_tokens=NEW, max_time=2.0), expected)


@pytest.mark.usefixtures("slow_preparation")
def test_a_clock_among_the_callers_criteria_too():
    model = build("llama")
    criteria = StoppingCriteriaList([MaxTimeCriteria(2.0)])
    tokens = generate(model, prompt(), HierarchyDrafter(VOCABULARY), max_new_tokens=NEW, stopping_criteria=criteria)
    assert tokens.shape[1] == PROMPT + NEW


def test_programs_of_static_steps_are_made_on_no_clock(clock, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(static.StaticStepper, "_program", clock(static.StaticStepper._program))
    expected = model.generate(prompt(), max_new_tokens=NEW)
    drafter = HierarchyDrafter(VOCABULARY)
    options = {"max_new_tokens": NEW, "max_time": 2.0, "step": "static", "costs": np.ones(65)}
    assert torch.equal(generate(model, prompt(), drafter, **options), expected)


def test_the_clock_runs_while_the_model_does(clock, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(model, "forward", clock(model.forward))
    tokens = generate(
        model, prompt(), HierarchyDrafter(VOCABULARY), max_new_tokens=NEW, max_time=250.0, costs=np.ones(65)
    )
    assert PROMPT < tokens.shape[1] < PROMPT + NEW
