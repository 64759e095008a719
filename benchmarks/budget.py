"""The budget rule against fixed budgets: predicted speed-ups, under each built-in cost curve.

    python benchmarks/budget.py TRACE… --model-database DIR --statistics-database DIR [--budgets 1 2 4 …] [--json FILE]

The best fixed budget is known only after the fact; the rule knows the cost curve and what it has seen so far. Random
tokens, which no database foresees, say what is drafted, and how long it takes, where nothing is worth drafting.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hdraft.drafting import Drafter
from hdraft.evaluation.costs import CURVES, cost_curve
from hdraft.evaluation.machine import machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of
from hdraft.terminal import progress

BUDGETS = (1, 2, 4, 6, 8, 12, 16, 24, 27, 32, 48, 64)


def random_trace(vocab_size: int, requests: int = 20, prompt: int = 128, output: int = 256) -> list[Request]:
    """Requests of tokens drawn evenly from the vocabulary; the same ones every time."""
    generator = np.random.default_rng(0)
    return [
        Request(
            str(number),
            "random",
            generator.integers(vocab_size, size=prompt, dtype=np.int32),
            generator.integers(vocab_size, size=output, dtype=np.int32),
        )
        for number in range(requests)
    ]


def compare(
    trace: Sequence[Request],
    new_drafter: Callable[[], Drafter],
    budgets: Sequence[int] = BUDGETS,
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The rule against fixed budgets, and on random tokens.

    Args:
        trace: what to replay.
        new_drafter: makes a drafter that has learnt nothing yet; each replay has its own.
        budgets: the fixed ones; the rule may draft as much as the largest.
        report: called with what is being replayed, tokens done and of how many.

    Returns:
        As JSON, by curve. `categories`: the predicted speed-up of the `rule` and of each `fixed` budget, the
        `best_fixed` budget of this category, the rule's speed-up as a part of the best one's (`to_best`) and of that of
        the one budget that is best over all requests (`to_best_overall`); also the rule's `mat` and `drafted_per_step`.
        `random`: the same two of random tokens, `predicted_speedup`, and `microseconds` a step.
    """

    def run(name: str, requests: Sequence[Request], budget: int, costs: Any = None) -> Any:
        def progressed(done: int, total: int) -> None:
            if report is not None:
                report(name, done, total)

        return replay(requests, new_drafter(), budget, costs=costs, progress=progressed)

    most = max(budgets)
    noise = random_trace(new_drafter().vocab_size)
    fixed = {budget: run(f"budget {budget}", trace, budget).scores for budget in budgets}
    figures: dict[str, Any] = {}
    for curve in CURVES:
        costs = cost_curve(curve, most)
        rule = run(f"rule, {curve}", trace, most, costs).scores
        speedups = {
            category: {budget: scores[category].speedup(costs) for budget, scores in fixed.items()} for category in rule
        }
        best_overall = _best(speedups[ALL])
        categories = {}
        for category, score in rule.items():
            speedup, by_budget = score.speedup(costs), speedups[category]
            best = _best(by_budget)
            categories[category] = {
                "rule": speedup,
                "mat": score.mat,
                "drafted_per_step": score.drafted / max(score.steps, 1),
                "fixed": {str(budget): value for budget, value in by_budget.items()},
                "best_fixed": best,
                "to_best": speedup / by_budget[best],
                "to_best_overall": speedup / by_budget[best_overall],
            }
        nothing = run(f"random tokens, {curve}", noise, most, costs).to_dict(costs)
        names = ("mat", "drafted_per_step", "predicted_speedup")
        figures[curve] = {
            "categories": categories,
            "random": {name: nothing["categories"][ALL][name] for name in names}
            | {"microseconds": nothing["microseconds"]},
        }
    return figures


def _best(speedups: dict[int, float]) -> int:
    """The budget of the highest speed-up, the smallest among equals."""
    return max(speedups, key=speedups.__getitem__)


def show(figures: dict[str, Any], console: Console) -> None:
    """A table for each curve."""
    for curve, results in figures.items():
        categories = results["categories"]
        budgets = categories[ALL]["fixed"]
        table = Table("category", *budgets, "rule", "drafted a step", "best", "rule/best", "rule/best overall")
        table.title = f"predicted speed-up of each budget, cost curve {curve}"
        for category, row in categories.items():
            table.add_row(
                category,
                *(f"{speedup:.2f}" for speedup in row["fixed"].values()),
                f"{row['rule']:.2f}",
                f"{row['drafted_per_step']:.1f}",
                str(row["best_fixed"]),
                f"{row['to_best']:.3f}",
                f"{row['to_best_overall']:.3f}",
            )
        console.print(table)
        random = results["random"]
        times = random["microseconds"]
        console.print(
            f"best fixed budget over all: {categories[ALL]['best_fixed']}; random tokens: "
            f"{random['drafted_per_step']:.2f} drafted a step, predicted speed-up {random['predicted_speedup']:.3f}, "
            f"microseconds a step p50 {times['p50']:.0f}, p99 {times['p99']:.0f}\n",
            highlight=False,
        )


def main() -> None:
    """Replay everything, print a table for each curve."""
    parser = argparse.ArgumentParser(description="The budget rule against fixed budgets.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--budgets", type=int, nargs="+", metavar="N", default=BUDGETS, help="the fixed ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise SystemExit(f"cannot write {arguments.json}: there is no folder {arguments.json.parent}")
    console = Console()
    if not console.is_terminal:
        console.width = 180
    try:
        trace = read_traces(arguments.trace)
        options = method_options(
            "hd", model_database=arguments.model_database, statistics_database=arguments.statistics_database
        )
        with progress(console) as report:
            needed = vocabulary_of(trace)
            figures = compare(trace, lambda: open_drafter("hd", options, needed=needed), arguments.budgets, report)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    show(figures, console)
    if arguments.json:
        with arguments.json.open("w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "settings": options, "curves": figures}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
