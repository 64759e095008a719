"""How far the adaptive hierarchy can be believed: its probabilities on recorded traces against what was accepted.

    python benchmarks/calibration.py TRACE… --model-database DIR --statistics-database DIR --json FILE --plot FILE.png

Trees are filled to a budget of 64, so that unlikely tokens are drafted too; finished requests join D_m. The plot needs
matplotlib: `pip install 'hdraft[plots]'`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from hdraft.drafting import DraftTree
from hdraft.evaluation.machine import machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of
from hdraft.terminal import progress

BUDGET = 64

BINS = 20
"""Bins of equal width from 0 to 1."""


@dataclass(frozen=True)
class Calibration:
    """Each drafted node's estimated probability, and whether verification reached and accepted it.

    Attributes:
        probabilities: float32[n].
        accepted: bool[n].

    Of two tokens estimated at 0.9 and one at 0.3, one of the former accepted:

    >>> calibration = Calibration(np.array([0.9, 0.9, 0.3], np.float32), np.array([True, False, False]))
    >>> round(calibration.error(), 3)           # (2 |0.9 - 0.5| + 1 |0.3 - 0|) / 3
    0.367
    """

    probabilities: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]

    @classmethod
    def of_all(cls, drafts: Sequence["Calibration"]) -> "Calibration":
        """Those of several trees as one."""
        probabilities = [np.empty(0, np.float32), *(each.probabilities for each in drafts)]
        accepted = [np.empty(0, np.bool_), *(each.accepted for each in drafts)]
        return cls(np.concatenate(probabilities), np.concatenate(accepted))

    def table(self, bins: int = BINS) -> list[dict[str, Any]]:
        """A row for each bin: `low`, `high` and `count`; `mean_estimate` and `accepted_share` where the count is not 0.

        A bin holds `low` and not `high`; the last holds 1 too.
        """
        count, estimate, share = self._binned(bins)
        rows: list[dict[str, Any]] = []
        for i in range(bins):
            row: dict[str, Any] = {"low": i / bins, "high": (i + 1) / bins, "count": int(count[i])}
            if count[i]:
                row |= {"mean_estimate": float(estimate[i]), "accepted_share": float(share[i])}
            rows.append(row)
        return rows

    def error(self, bins: int = BINS) -> float:
        """The expected calibration error: |mean estimate - accepted share| of the bins, weighted by their counts."""
        count, estimate, share = self._binned(bins)
        return float(count @ np.abs(estimate - share) / max(count.sum(), 1))

    def _binned(self, bins: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The count, mean estimate and accepted share of each bin, [bins] each; 0 where there is none."""
        estimates = self.probabilities.astype(np.float64)
        index = np.clip((estimates * bins).astype(np.intp), 0, bins - 1)
        count = np.bincount(index, minlength=bins)
        some = np.maximum(count, 1)
        estimate = np.bincount(index, estimates, bins) / some
        return count, estimate, np.bincount(index, self.accepted, bins) / some


def calibration_figures(calibrations: Mapping[str, Calibration], bins: int = BINS) -> dict[str, Any]:
    """As JSON: of each category, how many `tokens` were drafted, the `error`, and the reliability table, `bins`."""
    return {
        category: {
            "tokens": len(calibration.probabilities),
            "error": calibration.error(bins),
            "bins": calibration.table(bins),
        }
        for category, calibration in calibrations.items()
    }


def measure(
    trace: Sequence[Request],
    model_database: str | None = None,
    statistics_database: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """As JSON: the budget and, by category, what `calibration_figures` has."""
    options = method_options("hd", model_database=model_database, statistics_database=statistics_database)
    drafter = open_drafter("hd", options, needed=vocabulary_of(trace))
    drafts: dict[str, list[Calibration]] = {ALL: [], **{request.category: [] for request in trace}}

    def observe(request: Request, tree: DraftTree, accepted: list[int]) -> None:
        draft = Calibration(tree.probabilities, np.isin(np.arange(len(tree)), accepted))
        drafts[ALL].append(draft)
        drafts[request.category].append(draft)

    replay(trace, drafter, BUDGET, observe=observe, progress=report)
    calibrations = {category: Calibration.of_all(own) for category, own in drafts.items()}
    return {"budget": BUDGET, **options, "categories": calibration_figures(calibrations)}


def figure_class() -> Any:
    """Matplotlib's `Figure`, or an exit that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'hdraft[plots]', or leave out --plot") from None
    return Figure


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw accepted share against estimated probability, above how many tokens each bin holds."""
    figure = figure_class()(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="0.7", linestyle="--", linewidth=1)
    for category, calibration in figures["categories"].items():
        bins = [each for each in calibration["bins"] if each["count"]]
        above.plot(
            [each["mean_estimate"] for each in bins],
            [each["accepted_share"] for each in bins],
            label=f"{category}, error {calibration['error']:.3f}",
            **({"color": "black", "marker": "o", "zorder": 3} if category == ALL else {"linewidth": 1}),
        )
    above.set(ylabel="share accepted", xlim=(0, 1), ylim=(0, 1), title=f"calibration, budget {figures['budget']}")
    above.legend(fontsize="small")
    rows = figures["categories"][ALL]["bins"]
    edges = [*(row["low"] for row in rows), 1]
    below.stairs([row["count"] for row in rows], edges, fill=True, color="0.6")
    below.set(xlabel="estimated probability", ylabel="draft tokens", yscale="log")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Replay, print a table, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Estimated probabilities against what was accepted.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .png, .svg or .pdf")
    arguments = parser.parse_args()
    for file in (arguments.json, arguments.plot):  # refuse before the work
        if file and not file.absolute().parent.is_dir():
            raise SystemExit(f"cannot write {file}: there is no folder {file.parent}")
    if arguments.plot:
        if arguments.plot.suffix not in (".png", ".svg", ".pdf"):
            raise SystemExit(f"cannot draw {arguments.plot}: its name must end in .png, .svg or .pdf")
        figure_class()
    console = Console()
    try:
        with progress(console) as report:
            figures = measure(
                read_traces(arguments.trace),
                arguments.model_database,
                arguments.statistics_database,
                lambda done, total: report("replaying", done, total),
            )
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    table = Table("estimated", "draft tokens", "mean estimate", "accepted", title="all requests")
    for row in figures["categories"][ALL]["bins"]:
        cells = (f"{row['mean_estimate']:.3f}", f"{row['accepted_share']:.3f}") if row["count"] else ("", "")
        table.add_row(f"{row['low']:.2f} to {row['high']:.2f}", f"{row['count']:,}", *cells)
    console.print(table)
    for category, calibration in figures["categories"].items():
        console.print(f"{category}: expected calibration error {calibration['error']:.4f}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(figures, arguments.plot)


if __name__ == "__main__":
    main()
