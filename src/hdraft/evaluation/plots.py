"""The report's plots, where matplotlib is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdraft import files
from hdraft.text import one_line

_ALL = "all"
_SOURCES = {"context": "D_c", "model": "D_m", "statistics": "D_s", "recycled": "recycled"}
_LONGEST = 12  # accepted lengths from here on are one
_GREY = "#9a9a9a"


def draw(figures: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw a report's plots into a folder; returns their file names, none where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    methods: dict[str, dict[str, Any]] = figures["methods"]
    drawn = []
    for name, plot in (("speedup", _speedup), ("accepted_lengths", _accepted_lengths), ("sources", _sources)):
        figure = Figure(figsize=(9, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if plot(methods, axes):
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{name}.png"
            with files.naming(path):
                figure.savefig(path, dpi=120)
            drawn.append(f"{name}.png")
    return drawn


def _label(name: str) -> str:
    """A name from a file as a plot shows it: matplotlib sets what is between dollars as mathematics."""
    return one_line(name).replace("$", r"\$")


def _speedup(methods: Mapping[str, dict[str, Any]], axes: Any) -> bool:
    """Speed-up over vanilla, by subtask and method."""
    shown = {
        method: rows
        for method, rows in methods.items()
        if rows[_ALL]["speedup_over_vanilla"] is not None and "vanilla" not in method.split("-")
    }
    subtasks = list(dict.fromkeys(name for rows in shown.values() for name in rows))
    width = 0.8 / max(len(shown), 1)
    for index, (method, rows) in enumerate(shown.items()):
        heights = [rows[name]["speedup_over_vanilla"] or 0 if name in rows else 0 for name in subtasks]
        axes.bar([place + index * width for place in range(len(subtasks))], heights, width, label=_label(method))
    axes.axhline(1, color=_GREY, linewidth=1)
    axes.set_xticks([place + width * (len(shown) - 1) / 2 for place in range(len(subtasks))], map(_label, subtasks))
    axes.set_ylabel("speed-up over vanilla")
    if shown:
        axes.legend(ncols=4, fontsize="small", frameon=False)
    return bool(shown)


def _accepted_lengths(methods: Mapping[str, dict[str, Any]], axes: Any) -> bool:
    """How many tokens the steps of each method emitted."""
    shown = {method: rows[_ALL] for method, rows in methods.items() if rows[_ALL]["mat"] > 1}
    for method, row in shown.items():
        counts = [0] * (_LONGEST + 1)
        for length, count in row["accept_lengths"].items():
            counts[min(int(length), _LONGEST)] += count
        shares = [count / sum(counts) if count else float("nan") for count in counts]  # no point for none
        label = f"{_label(method)} (MAT {row['mat']:.2f})"
        axes.plot(range(1, _LONGEST + 1), shares[1:], marker="o", markersize=3, label=label)
    axes.set_xticks(range(1, _LONGEST + 1), [*map(str, range(1, _LONGEST)), f"{_LONGEST}+"])
    axes.set_xlabel("tokens emitted by a step")
    axes.set_ylabel("share of steps")
    axes.set_yscale("log")
    if shown:
        axes.legend(fontsize="small", frameon=False)
    return bool(shown)


def _sources(methods: Mapping[str, dict[str, Any]], axes: Any) -> bool:
    """Which database the accepted draft tokens of each method came from."""
    shown = {method: rows[_ALL]["accepted_share"] for method, rows in methods.items() if rows[_ALL]["drafted_per_step"]}
    left = [0.0] * len(shown)
    for source, name in _SOURCES.items():
        widths = [share.get(source, 0.0) for share in shown.values()]
        axes.barh(list(map(_label, shown)), widths, left=left, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("share of accepted draft tokens")
    if shown:
        axes.legend(ncols=4, fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return bool(shown)
