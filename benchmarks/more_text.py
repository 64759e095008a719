"""What more text in the databases brings: MAT by how much of D_m and of D_s there is.

    python benchmarks/more_text.py TRACE --vocab-size N --model-database DIR --statistics-database DIR [--json FILE]

A share of a database is its first documents. D_s is taken by halves while all of D_m is there, and D_m while all of D_s
is. Requests are drafted for one after another, and finished ones are learnt. FILE keeps the rows of other traces.
"""

import argparse
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_traces

BUDGETS = (27, 64)
SHARES = (0.125, 0.25, 0.5, 1.0)
D = TypeVar("D", bound=Database)


def part(database: D, share: float) -> D:
    """A database of so much of the documents of another, the first of them."""
    ends = np.flatnonzero(database.tokens == database.separator)
    count = int(ends[round(len(ends) * share) - 1]) + 1 if round(len(ends) * share) else 0
    return type(database).from_tokens(database.tokens[:count], database.vocab_size, database.eos_token_id)


def compare(
    trace: list[Request], vocab_size: int, model: ModelDatabase, statistics: StatisticsDatabase
) -> list[dict[str, Any]]:
    """A row for each share of one database, beside all of the other: its tokens, and the MAT at each budget."""

    def mat(less: ModelDatabase, general: StatisticsDatabase, budget: int) -> float:
        drafter = HierarchyDrafter(vocab_size, less.anew(), general, learn=True)
        return replay(trace, drafter, budget).scores[ALL].mat

    rows = []
    for share in SHARES:
        less = part(statistics, share)
        mats = {str(budget): mat(model, less, budget) for budget in BUDGETS}
        rows.append({"database": "D_s", "share": share, "tokens": len(less.tokens), "mat": mats})
    for share in SHARES:
        fewer = part(model, share)
        mats = {str(budget): mat(fewer, statistics, budget) for budget in BUDGETS}
        rows.append({"database": "D_m", "share": share, "tokens": len(fewer.tokens), "mat": mats})
    return rows


def main() -> None:
    """Print the comparison, and write it."""
    parser = argparse.ArgumentParser(description="What more text in the databases brings.")
    parser.add_argument("trace", type=Path, help="a trace, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--model-database", metavar="DIR", required=True)
    parser.add_argument("--statistics-database", metavar="DIR", required=True)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    rows = compare(
        read_traces([arguments.trace]),
        arguments.vocab_size,
        ModelDatabase.from_pretrained(arguments.model_database),
        StatisticsDatabase.from_pretrained(arguments.statistics_database),
    )
    table = Table("database", "tokens", *(f"MAT at {budget}" for budget in BUDGETS))
    for row in rows:
        table.add_row(row["database"], f"{row['tokens']:,}", *(f"{mat:.3f}" for mat in row["mat"].values()))
    Console().print(table)
    if arguments.json:
        figures: dict[str, Any] = {"traces": {}}
        if arguments.json.exists():
            figures = json.loads(arguments.json.read_text(encoding="utf-8"))
        figures["machine"] = machine()
        figures["traces"][arguments.trace.name.partition(".")[0]] = rows
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
