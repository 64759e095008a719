"""The cost of a step over n draft tokens: learnt from the steps that are taken, or measured once and then frozen."""

import threading
from time import perf_counter
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from hdraft.decoding.graphed.static_step import StepKind, default_step
from hdraft.decoding.models.adapters import base_model
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.models.ranks import check_processes
from hdraft.decoding.models.support import input_device
from hdraft.decoding.models.wrappers import unwrapped
from hdraft.decoding.target import Target
from hdraft.drafting.costs import KNOTS, StepCosts
from hdraft.drafting.tree import DraftTree

SIZES = (0, 64, 16, 4, 32, 8, 1, 2)
"""Numbers of draft tokens, the most telling first: a slow model is measured at the first of them only."""

STATIC_SIZES = (0, 63, 15, 3, 31, 7, 47)
"""The most draft tokens that fit each number of rows that static steps are padded to."""

CACHED = 128
"""Tokens of text before the draft."""

SECONDS = 1.5
"""The time to spend, if two passes fit into it."""

_Where = tuple[torch.device, torch.dtype, str | None, StepKind]

_learnt: WeakKeyDictionary[PreTrainedModel, dict[_Where, StepCosts]] = WeakKeyDictionary()
_measured: WeakKeyDictionary[PreTrainedModel, dict[_Where, npt.NDArray[np.float64]]] = WeakKeyDictionary()
_lock = threading.Lock()


def step_costs(model: PreTrainedModel, step: StepKind) -> StepCosts:
    """What learns the costs of a model's steps, of one kind, on a device and in a number format.

    It begins with a shape that fits the device. On a processor, where computing costs, float32 costs more than half the
    bits from the first draft token on; anything else waits for its memory, and draft tokens are nearly free.
    """
    where = _where(model, step)
    with _lock:
        learnt = _learnt.setdefault(model, {})
        if where not in learnt:
            knots = KNOTS if step == "dynamic" else tuple(sorted(STATIC_SIZES))
            sizes, ratios = zip(*_shape(model), strict=True)
            learnt[where] = StepCosts(np.interp(knots, sizes, ratios), knots, padded=step != "dynamic")
        return learnt[where]


def _shape(model: PreTrainedModel) -> list[tuple[int, float]]:
    if model.device.type != "cpu":
        return [(0, 1.0), (64, 1.1)]
    if model.dtype.itemsize > 2:
        return [(0, 1.0), (1, 1.6), (16, 2.0), (64, 2.6)]
    return [(0, 1.0), (1, 1.05), (16, 1.4), (64, 2.8)]


def _where(model: PreTrainedModel, step: StepKind) -> _Where:
    return model.device, model.dtype, model.config._attn_implementation, step


def measure_costs(model: PreTrainedModel, step: StepKind | None = None) -> npt.NDArray[np.float64]:
    """float64[65], the seconds of a step over 0, 1, …, 64 draft tokens: medians, never falling.

    To give to `generate` as `costs`, so that a run can be repeated: without them, it learns them while it runs.

    Between the sizes measured they are interpolated; static steps, all of a few sizes, cost what the next size does.
    The first call for a model, on a device and in a number format, takes a second or two, and more for a model that is
    compiled; later ones return the same array.

    Args:
        model: the target.
        step: how steps are run, as for `generate`.

    Raises:
        UnsupportedError: a model that `generate` refuses for the processes that run it, or for what it is wrapped in.
    """
    check_processes(model)
    model = base_model(unwrapped(model))
    kind = default_step(model) if step is None else step
    costs = _measured.setdefault(model, {})
    where = _where(model, kind)
    if where not in costs:
        costs[where] = _measure(model, kind)
    return costs[where]


@torch.no_grad()
def _measure(model: PreTrainedModel, kind: StepKind) -> npt.NDArray[np.float64]:
    shape = draft_shape(model)
    target = Target(
        model, shape, step=kind, budget=max(SIZES), max_length=CACHED + max(SIZES) + 1, device=input_device(model)
    )
    static = target.static is not None
    # room for the longest draft below every position limit
    room = min(target.places_behind(1), CACHED + max(SIZES)) + 1
    longest = max(SIZES) if shape == "chain" else 1
    if room < 3:  # too few positions for text, the next token and a draft
        return np.ones(max(SIZES) + 1)
    target.forward(np.zeros(max(1, min(CACHED, room - longest - 1)), np.int64))
    length = target.length
    text = np.zeros(1, np.int64)

    def timed(size: int) -> float:
        parents = range(-1, size - 1) if shape == "chain" else [-1] * size
        tree = DraftTree(np.zeros(size), np.array(parents, np.int32))
        begin = perf_counter()
        target.most_likely(target.forward(text, tree), slice(None))
        end = perf_counter()
        target.forget(length)
        return target.ranks.number(end - begin)

    sizes = [size for size in (STATIC_SIZES if static else SIZES) if shape == "tree" or size + 2 <= room]
    timed(0)
    if static or 2 * len(sizes) * timed(0) < SECONDS:
        for size in sizes:  # what is compiled for a size is compiled now
            timed(size)
    started = perf_counter()
    times: dict[int, list[float]] = {}
    for _ in range(5):
        for size in sizes:
            if len(times) > 1 and target.ranks.number(perf_counter() - started) > SECONDS:
                break
            times.setdefault(size, []).append(timed(size))
    target.close()
    sizes = sorted(times)
    medians = np.maximum.accumulate([np.median(times[size]) for size in sizes])
    drafted = np.arange(max(SIZES) + 1)
    costs = (
        medians[np.minimum(np.searchsorted(sizes, drafted), len(sizes) - 1)]
        if static
        else np.interp(drafted, sizes, medians)
    )
    costs.flags.writeable = False
    return costs
