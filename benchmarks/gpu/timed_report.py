"""The report on the timings of several methods: speeds, speed-ups and parts of a step, by category; as Markdown.

Every figure is given twice: over whole requests, and over what comes after the prompt's step, which no draft shortens.
A method that is slow may have done the first of the requests only: it is compared with others over those.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from timing import PARTS, Seconds, Timing

from hdraft.evaluation.replay import ALL, Score

Timings = Mapping[str, Sequence[Timing]]
"""Of each method by its name, a timing of each request: the same requests for all, or the first of them."""

BASES = ("transformers", "transformers-static", "vanilla")
"""The methods that the others are compared with, where they are there."""


def score(timings: Iterable[Timing], first: int = 0) -> Score:
    """The tokens emitted and drafted from step `first` on, as a replay counts them."""
    total = Score()
    for timing in timings:
        total.tokens += int(timing.emitted[first:].sum())
        total.sizes.update(timing.drafted[first:].tolist())
    return total


def figures(timings: Timings) -> dict[str, dict[str, Any]]:
    """The figures that docs/gpu.md lists, for each method that has done a request."""
    return {
        method: {
            "requests": len(own),
            "tokens": score(own).tokens,
            "steps": score(own).steps,
            "drafted_per_step": score(own).drafted / score(own).steps,
            **_speeds(timings, method, 0),
            "decoding": _speeds(timings, method, 1) | {"step_milliseconds": _spread(own)},
            "prompt_milliseconds": 1000 * float(np.median([timing.seconds[0] for timing in own])),
        }
        for method, own in timings.items()
        if own
    }


def parts(timings: Sequence[Timing]) -> dict[str, dict[str, float]] | None:
    """The mean milliseconds of each of `PARTS` in a step: in the prompt's, and in those after it.

    `rest` is what the clock around the request counted and no part did: with it, the parts add up to `total`. None for
    `model.generate`, which does not say.
    """
    measured = [(timing.seconds, timing.parts) for timing in timings if timing.parts is not None]
    result = {}
    for name, steps in (("prompt", slice(0, 1)), ("decoding", slice(1, None))):
        seconds = np.concatenate([every[steps] for every, _ in measured] or [np.empty(0)])
        if len(seconds):
            means = np.concatenate([each[steps] for _, each in measured]).mean(axis=0)
            rest = float(seconds.mean() - means.sum())
            result[name] = by_part(means) | {"rest": 1000 * rest, "total": 1000 * float(seconds.mean())}
    return result or None


def by_part(seconds: Seconds) -> dict[str, float]:
    """Milliseconds of each of `PARTS`."""
    return {part: 1000 * float(value) for part, value in zip(PARTS, seconds, strict=True)}


def _speeds(timings: Timings, method: str, first: int) -> dict[str, float | None]:
    own = timings[method]
    mat, speed = score(own, first).mat, _tokens_per_second(own, first)
    speeds: dict[str, float | None] = {
        "mat": mat,
        "tokens_per_second": speed,
        "milliseconds_per_token": 1000 / speed if speed else None,
    }
    for base in BASES:
        both = min(len(own), len(timings.get(base, ())))  # requests that both have done
        ours, theirs = (_tokens_per_second(timings.get(each, ())[:both], first) for each in (method, base))
        speeds[f"speedup_over_{base.replace('-', '_')}"] = ours / theirs if ours and theirs else None
    over = speeds["speedup_over_vanilla"]
    return speeds | {"efficiency": over / mat if over else None}


def _tokens_per_second(timings: Sequence[Timing], first: int) -> float | None:
    seconds = sum(float(timing.seconds[first:].sum()) for timing in timings)
    return score(timings, first).tokens / seconds if seconds else None


def _spread(timings: Sequence[Timing]) -> dict[str, float] | None:
    milliseconds = 1000 * np.concatenate([timing.seconds[1:] for timing in timings])
    if not len(milliseconds):
        return None
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return {"mean": float(milliseconds.mean()), "p50": float(p50), "p99": float(p99)}


def markdown(record: dict[str, Any]) -> str:
    """The tables of a record, of `replay.py` or of `sizes.py`."""
    versions = record["machine"]
    lines = [
        f"## {record['shape']}, {record['dtype']}, {record['step'] or 'default'} steps, on "
        f"{versions['accelerator'] or versions['processor']}",
        "",
        f"torch {versions['torch']}, transformers {versions['transformers']}, driver {versions['driver'] or 'none'}; "
        f"attention by {', '.join(versions['attention'])} where torch chooses; a batch of one, a random model of that "
        "shape, recorded tokens. What the figures mean: docs/gpu.md.",
        "",
        *(f"- **Not measured**: {each}." for each in record.get("not_measured", ())),
        *(f"- Log: {each}." for each in record.get("log", ())),
    ]
    if record.get("methods"):
        lines += _replayed(record)
    for steps in record["steps"]:
        lines += ["", sizes_markdown(steps)]
    if record.get("attention"):
        lines += ["", "### Attention alone, all layers, as a graph", ""]
        lines += table(
            ("implementation", "rows", "keys", "ms"),
            [
                [row["attention"], str(row["rows"]), str(row["width"]), _number(row.get("milliseconds"), 3)]
                for row in record["attention"]
            ],
        )
    return "\n".join(lines) + "\n"


def _replayed(record: dict[str, Any]) -> list[str]:
    methods, different = record["methods"], "; ".join(record["mat_differs"])
    lines = ["- Every MAT equals that of the replay without a model."]
    if not record["mat_equals_replay"]:
        lines = [f"- **MATs that are not those of the replay without a model: {different or 'none was compared'}.**"]
    speeds = ("method", "turns", "tokens/s", "ms a token", *(f"over {base}" for base in BASES), "MAT", "efficiency")
    for category in record["categories"]:
        rows = _rows(methods, category)
        turns = max(row["requests"] for row in rows.values())
        lines += ["", f"### {category}: {turns} turn{'s' if turns > 1 else ''}", ""]
        lines += table(speeds, [[name, *_gains(row, row["requests"])] for name, row in rows.items()])
    if not record["categories"]:
        return lines
    rows = _rows(methods, ALL)
    lines += ["", "### After the prompt's step", ""]
    lines += table(
        (*speeds, "ms a step", "p99", "floor / ms a step"),
        [
            [
                name,
                *_gains(row["decoding"], row["requests"]),
                *(_number((row["decoding"]["step_milliseconds"] or {}).get(key), 3) for key in ("p50", "p99")),
                _number(methods[name]["share_of_floor"]),
            ]
            for name, row in rows.items()
        ],
    )
    for kind, title in (("decoding", "A step after the prompt's, by part"), ("prompt", "The prompt's step, by part")):
        lines += ["", f"### {title}: mean milliseconds", ""]
        taken = {name: (method["parts_milliseconds"] or {}).get(kind) for name, method in methods.items()}
        lines += table(
            ("method", *PARTS, "rest", "total"),
            [
                [name, *(_number(each[part], 3) for part in (*PARTS, "rest", "total"))]
                for name, each in taken.items()
                if each
            ],
        )
    lines += ["", "### Beside the time", ""]
    return lines + table(
        ("method", "steps are", "drafted a step", "the prompt's step, ms", "warm-up, s", "peak memory, GiB"),
        [
            [
                name,
                methods[name]["steps_are"] or "transformers'",
                *(_number(row[key]) for key in ("drafted_per_step", "prompt_milliseconds")),
                _number(methods[name]["warm_up_seconds"]),
                _number(methods[name]["peak_memory_bytes"] and methods[name]["peak_memory_bytes"] / 2**30),
            ]
            for name, row in rows.items()
        ],
    )


def sizes_markdown(steps: dict[str, Any]) -> str:
    """The table of steps by their size, as `sizes.py` measures them."""
    lines = [
        f"### A step by its size, behind {steps['cached_tokens']:,} tokens",
        "",
        f"A copy within memory reads and writes {steps['copy_bytes_per_second'] / 1e9:,.1f} GB/s. A step reads at "
        f"least {steps['weight_bytes'] / 1e9:.3f} GB of weights and {steps['cache_bytes'] / 1e9:.3f} GB of "
        f"cache, which takes {steps['floor_milliseconds']:.3f} ms: the floor.",
        "",
    ]
    keys = ("drafted", "rows", "milliseconds", "to_one_row", "share_of_floor")
    rows = [[_number(row[key], 0 if index < 2 else 3) for index, key in enumerate(keys)] for row in steps["sizes"]]
    return "\n".join(lines + table(("drafted", "rows", "ms", "to one row", "floor / ms"), rows))


def _rows(methods: dict[str, Any], category: str) -> dict[str, Any]:
    """The figures of each method that has done a request of the category."""
    return {
        name: method["categories"][category] for name, method in methods.items() if category in method["categories"]
    }


def _gains(row: dict[str, Any], turns: int) -> list[str]:
    over = (f"speedup_over_{base.replace('-', '_')}" for base in BASES)
    return [
        str(turns),
        _number(row["tokens_per_second"], 1),
        _number(row["milliseconds_per_token"], 3),
        *(_number(row[key]) for key in (*over, "mat", "efficiency")),
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
