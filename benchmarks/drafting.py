"""MAT and microseconds of every drafting method on recorded traces.

    python benchmarks/drafting.py TRACE… --vocab-size 32000 --model-database DIR --statistics-database DIR

The others draft as much as they find, up to `PEERS_BUDGET`; `hd` is run at each of `BUDGETS`. Databases
are made by `hdraft build`. A database that is not given leaves out the methods that need it.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from hdraft.drafting import Drafter
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter, PublishedDrafter, RestDrafter
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import ALL, ReplayResult, replay
from hdraft.evaluation.traces import read_trace

PEERS_BUDGET = 64
BUDGETS = (8, 16, 27, 64)


def methods(
    vocab_size: int, model_database: str | None, statistics_database: str | None
) -> Iterator[tuple[str, int, Drafter]]:
    """Each method's name, budget and drafter, which is opened afresh: a learning one starts with what is on disk."""

    def model() -> ModelDatabase | None:
        return ModelDatabase.from_pretrained(model_database) if model_database else None

    statistics = StatisticsDatabase.from_pretrained(statistics_database) if statistics_database else None
    yield "pld", PEERS_BUDGET, PromptLookupDrafter(vocab_size)
    if statistics:
        yield "rest", PEERS_BUDGET, RestDrafter(vocab_size, statistics)
    for order in ("W", "S", "L", "WS", "WSL"):
        if ("S" not in order or model_database) and ("L" not in order or statistics):
            yield (
                f"published, {order}",
                PEERS_BUDGET,
                PublishedDrafter(vocab_size, model(), statistics, order=order),
            )
    for budget in BUDGETS:
        yield "hd", budget, HierarchyDrafter(vocab_size, model(), statistics, learn=True)


def _report(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def main() -> None:
    """Run every method and print a table."""
    parser = argparse.ArgumentParser(description="MAT and microseconds of every drafting method on recorded traces.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()

    trace = [request for path in arguments.trace for request in read_trace(path)]
    results: list[tuple[str, int, ReplayResult]] = []
    with Progress(transient=True) as progress:
        for name, budget, drafter in methods(
            arguments.vocab_size, arguments.model_database, arguments.statistics_database
        ):
            task = progress.add_task(f"{name}, budget {budget}")
            report = partial(_report, progress, task)
            results.append((name, budget, replay(trace, drafter, budget, progress=report)))
            progress.remove_task(task)

    categories = list(results[0][2].scores)
    table = Table(
        "method", "budget", "drafted a step", "µs p50", "µs p99", *("MAT" if c == ALL else c for c in categories)
    )
    for name, budget, result in results:
        figures = result.to_dict()
        times = figures["microseconds"]
        table.add_row(
            name,
            str(budget),
            f"{figures['categories'][ALL]['drafted_per_step']:.1f}",
            f"{times['p50']:.0f}",
            f"{times['p99']:.0f}",
            *(f"{result.scores[category].mat:.3f}" for category in categories),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            runs = [{"method": n, "budget": b, **r.to_dict()} for n, b, r in results]
            json.dump({"machine": machine(), "runs": runs}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
