"""The MAT of first requests, with and without the experience that a new drafter starts from.

    python benchmarks/first_requests.py TRACE… --vocab-size N [--model-database DIR] [--statistics-database DIR]

The MAT of recorded requests, drafted from what is shipped and from the formula alone, with the databases that are given
and with D_c alone. `first`: each request has a new drafter, as if it were the first. `all`: one after another, and
finished requests are learnt.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience
from hdraft.drafting.hierarchy.mixing import initial_weights
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import ALL, Score, replay
from hdraft.evaluation.traces import Request, read_traces

BUDGETS = (8, 27, 64)


def compare(
    trace: list[Request], vocab_size: int, model_database: str | None, statistics_database: str | None
) -> list[dict[str, Any]]:
    """A row for each set of databases, budget and order of requests: the MAT from the `formula` and as `shipped`."""
    statistics = StatisticsDatabase.from_pretrained(statistics_database) if statistics_database else None
    given = model_database is not None or statistics is not None

    def drafter(all_databases: bool, learn: bool, shipped: bool) -> HierarchyDrafter:
        model = ModelDatabase.from_pretrained(model_database) if model_database and all_databases else None
        experience = Experience() if shipped else Experience(initial_weights())
        general = statistics if all_databases else None
        return HierarchyDrafter(vocab_size, model, general, learn=learn, experience=experience)

    def first(all_databases: bool, budget: int, shipped: bool) -> float:
        total = Score()
        for request in trace:
            score = replay([request], drafter(all_databases, False, shipped), budget).scores[ALL]
            total.tokens += score.tokens
            total.sizes += score.sizes
        return total.mat

    def in_order(all_databases: bool, budget: int, shipped: bool) -> float:
        return replay(trace, drafter(all_databases, True, shipped), budget).scores[ALL].mat

    return [
        {
            "databases": "all" if all_databases else "D_c",
            "requests": name,
            "budget": budget,
            "formula": mat(all_databases, budget, False),
            "shipped": mat(all_databases, budget, True),
        }
        for all_databases in ((False, True) if given else (False,))
        for name, mat in (("first", first), ("all", in_order))
        for budget in BUDGETS
    ]


def main() -> None:
    """Print the comparison, and write it."""
    parser = argparse.ArgumentParser(description="What a new drafter's experience is worth.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    trace = read_traces(arguments.trace)
    rows = compare(trace, arguments.vocab_size, arguments.model_database, arguments.statistics_database)
    table = Table("databases", "requests", "budget", "from the formula", "as shipped")
    for row in rows:
        figures = f"{row['formula']:.3f}", f"{row['shipped']:.3f}"
        table.add_row(row["databases"], row["requests"], str(row["budget"]), *figures)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
