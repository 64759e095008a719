"""Where a step's drafting time goes: a replay with each step taken apart.

    python benchmarks/steps.py TRACE… --vocab-size N [--model-database DIR] [--statistics-database DIR] [--budget N]

`call` is the tree of an empty text: the price of crossing from Python into the kernel and back. `learn` takes the
emitted tokens in and fits the weights to them (in a call of its own, which costs some more); `grow` grows the tree;
`grow again` grows it a second time, when every context has been looked up: the difference is D_m and D_s.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter_ns

import numpy as np
from rich.console import Console
from rich.table import Table

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import accepted_path
from hdraft.evaluation.traces import Request, read_traces

PARTS = ("call", "learn", "grow", "grow again", "extend")


def parts(trace: list[Request], drafter: HierarchyDrafter, budget: int) -> dict[str, dict[str, float]]:
    """The microseconds of each part of a step: `p50`, `p99`."""
    times: dict[str, list[float]] = {part: [] for part in PARTS}

    def clock(part: str, start: int) -> int:
        now = perf_counter_ns()
        times[part].append((now - start) / 1000)
        return perf_counter_ns()

    nothing = np.zeros(1)  # the price of no node
    for request in trace:
        session = drafter.session(request.prompt_ids)
        emitted = 0
        while emitted < len(request.output_ids) - 1:
            depth = len(request.output_ids) - emitted - 1
            now = perf_counter_ns()
            session._advance_and_grow(session._take_emitted(), nothing)
            now = clock("learn", now)
            tree = session.propose(budget, depth)
            now = clock("grow", now)
            session.propose(budget, depth)
            now = clock("grow again", now)
            tokens = request.output_ids[emitted:][: len(accepted_path(tree, request.output_ids[emitted:-1])) + 1]
            now = perf_counter_ns()
            session.extend(tokens)
            now = clock("extend", now)
            emitted += len(tokens)
        session.close()
        empty = drafter.session([])
        for _ in range(100):
            now = perf_counter_ns()
            empty.propose(1)
            clock("call", now)
    percentiles = {part: np.percentile(values, (50, 99)) for part, values in times.items()}
    return {part: {"p50": float(p50), "p99": float(p99)} for part, (p50, p99) in percentiles.items()}


def main() -> None:
    """Print the profile, and write it."""
    parser = argparse.ArgumentParser(description="Where a step's drafting time goes.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--budget", type=int, default=27)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    model = ModelDatabase.from_pretrained(arguments.model_database) if arguments.model_database else None
    statistics = (
        StatisticsDatabase.from_pretrained(arguments.statistics_database) if arguments.statistics_database else None
    )
    trace = read_traces(arguments.trace)
    drafter = HierarchyDrafter(arguments.vocab_size, model, statistics)
    parts(trace[:1], drafter, arguments.budget)  # load the compiled kernels before the clock counts
    measured = parts(trace, drafter, arguments.budget)
    table = Table("part", "µs p50", "µs p99")
    for part, figures in measured.items():
        table.add_row(part, f"{figures['p50']:.1f}", f"{figures['p99']:.1f}")
    Console().print(table)
    if arguments.json:
        result = {"machine": machine(), "budget": arguments.budget, "microseconds": measured}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
