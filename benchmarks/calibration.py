"""How far the adaptive hierarchy can be believed: its probabilities on recorded traces against what was accepted.

    python benchmarks/calibration.py TRACE… --model-database DIR --statistics-database DIR --json FILE --plot FILE.png

Trees are filled to a budget of 64, so that unlikely tokens are drafted too; finished requests join D_m. The plot needs
matplotlib: `pip install 'hdraft[plots]'`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdraft.evaluation.calibration import calibration_figures
from hdraft.evaluation.machine import machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of
from hdraft.terminal import progress

BUDGET = 64


def measure(
    trace: Sequence[Request],
    model_database: str | None = None,
    statistics_database: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """As JSON: the budget and, by category, what `calibration_figures` has."""
    options = method_options("hd", model_database=model_database, statistics_database=statistics_database)
    drafter = open_drafter("hd", options, needed=vocabulary_of(trace))
    result = replay(trace, drafter, BUDGET, calibrate=True, progress=report)
    return {"budget": BUDGET, **options, "categories": calibration_figures(result.calibrations)}


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
