"""The figures of a demonstration: as a table to look at, and as JSON with the machine they were measured on."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from rich import box
from rich.table import Table

from hdraft.demo.comparison import Comparison
from hdraft.evaluation.machine import machine
from hdraft.terminal import NAMES

_FIGURES: dict[str, Callable[[Comparison], float]] = {
    "tokens": lambda each: each.tokens,
    "seconds_generate": lambda each: each.seconds_generate,
    "seconds_hdraft": lambda each: each.seconds_hdraft,
    "speedup": lambda each: each.speedup,
    "mean_accepted_tokens": lambda each: each.statistics.mean_accepted_tokens,
    **{f"share_{name}": lambda each, source=source: each.share(source) for source, name in NAMES.items()},  # type: ignore[misc]
    "steps": lambda each: each.statistics.steps,
    "drafted": lambda each: each.statistics.drafted,
    "overhead": lambda each: each.overhead,
}
"""Each figure by its name in JSON; `overhead` is the part of hdraft's time outside the model's forward passes."""

_COLUMNS = {
    "tokens": ("tokens", ".0f"),
    "seconds_generate": ("generate s", ".2f"),
    "seconds_hdraft": ("hdraft s", ".2f"),
    "speedup": ("speed-up", ".2f"),
    "mean_accepted_tokens": ("MAT", ".2f"),
    **{f"share_{name}": (name, ".0%") for name in NAMES.values()},
}


def table(comparisons: Sequence[Comparison]) -> Table:
    """A row for each prompt, and the mean of each column."""
    mean = _mean(comparisons)
    identical = sum(each.identical for each in comparisons)
    result = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0))
    result.add_column("prompt", "mean")
    result.add_column("same", f"{identical}/{len(comparisons)}", justify="right")
    for figure, (name, form) in _COLUMNS.items():
        result.add_column(name, format(mean[figure], form), justify="right", no_wrap=True)
    for each in comparisons:
        cells = [format(_FIGURES[figure](each), form) for figure, (_, form) in _COLUMNS.items()]
        result.add_row(each.prompt.id, "yes" if each.identical else "NO", *cells)
    return result


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The same and more, with the machine."""
    prompts = [
        {"id": each.prompt.id, "kind": each.prompt.kind, "identical": each.identical}
        | {name: figure(each) for name, figure in _FIGURES.items()}
        for each in comparisons
    ]
    return {
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "identical": all(each.identical for each in comparisons),
        "mean": _mean(comparisons),
        "prompts": prompts,
    }


def _mean(comparisons: Sequence[Comparison]) -> dict[str, float]:
    return {name: fmean(map(figure, comparisons)) for name, figure in _FIGURES.items()}
