"""The figures of a demonstration: as a table to look at, and as JSON with the machine they were measured on."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from rich import box
from rich.table import Table

from hdraft.demo.comparison import Comparison
from hdraft.drafting import Source
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
    **{f"share_{name}": (name, ".0%") for source, name in NAMES.items() if source is not Source.REFERENCE},
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


def verdict(comparisons: Sequence[Comparison], dtype: torch.dtype) -> str:
    """Whether the texts are those of `model.generate`, and where they are not, why."""
    apart = [each for each in comparisons if each.parting is not None]
    name = str(dtype).removeprefix("torch.")
    if not apart:
        return f"All {len(comparisons)} texts are identical to those of model.generate, token for token, in {name}."
    lines = [
        f"{len(comparisons) - len(apart)} of {len(comparisons)} texts are identical to those of model.generate,"
        f" token for token, in {name}."
    ]
    if dtype is torch.float32:
        return f"{lines[0]} In float32 all should be: this is a fault of hdraft."
    lines += [
        f"Why not all: {name} keeps two or three digits of a number, and a pass over several tokens rounds differently",
        "from a pass over one. Where two tokens lie close together, the other one may be taken, and the text goes on",
        "from there, as good as the first. The prompt lookup of transformers itself does the same.",
        "With --dtype float32 all are identical. Where they parted, and the model's probability of either token:",
    ]
    for each in apart:
        assert each.parting is not None
        (theirs, ours), (likely, likely_ours) = each.parting.texts, each.parting.probabilities
        drawn = "" if each.prompt.temperature is None else ", drawn at random"
        lines.append(
            f"  {each.prompt.id}, after {each.parting.position} tokens:"
            f" {theirs!r} ({likely:.1%}) or {ours!r} ({likely_ours:.1%}){drawn}"
        )
    return "\n".join(lines)


def as_json(comparisons: Sequence[Comparison], model: str, dtype: torch.dtype) -> dict[str, Any]:
    """The same and more, with the model and the machine."""
    prompts = [
        {"id": each.prompt.id, "kind": each.prompt.kind, "identical": each.identical}
        | ({} if each.parting is None else {"parts_after": each.parting.position})
        | {name: figure(each) for name, figure in _FIGURES.items()}
        for each in comparisons
    ]
    return {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "identical": all(each.identical for each in comparisons),
        "mean": _mean(comparisons),
        "prompts": prompts,
    }


def _mean(comparisons: Sequence[Comparison]) -> dict[str, float]:
    return {name: fmean(map(figure, comparisons)) for name, figure in _FIGURES.items()}
