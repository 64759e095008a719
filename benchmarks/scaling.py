"""How drafting scales: with the size of D_s, and with the length of the context.

    python benchmarks/scaling.py TRACE… --corpus FILE.npy… --vocab-size 32000 --eos 2 [--synthetic 200] [--json FILE]

D_s is the corpus's first `--sizes` million tokens. `--synthetic` adds one of so many million: the corpus again and
again, in each further copy one token in five replaced by another of the corpus, so that no two copies answer alike.
200 million tokens take about 2 GB of memory and 1.2 GB of disk (set TMPDIR). Longer contexts are made by putting the
rest of the trace before the prompts of its first `REQUESTS`.

Times are in one thread, nothing learnt between requests, databases in the page cache.
"""

import argparse
import json
import mmap
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_trace

BUDGETS = (27, 64)
CONTEXTS = (1_000, 8_000, 100_000)
REQUESTS = 20
MILLION = 1_000_000
Ids = npt.NDArray[np.integer]


def synthetic(corpus: Ids, size: int) -> Ids:
    """`size` tokens: the corpus, and copies of it that differ."""
    random = np.random.default_rng(0)
    tokens = np.resize(corpus, size)
    for begin in range(len(corpus), size, len(corpus)):
        copy = tokens[begin : begin + len(corpus)]
        where = np.flatnonzero(random.random(len(copy), np.float32) < 0.2)
        copy[where] = corpus[random.integers(0, len(corpus), len(where))]
    return tokens


def lengthened(trace: Sequence[Request], length: int) -> list[Request]:
    """The first requests, each with `length` tokens of prompt: its own behind those of the rest of the trace."""
    text = np.concatenate([ids for request in trace[REQUESTS:] for ids in (request.prompt_ids, request.output_ids)])
    return [
        replace(request, prompt_ids=np.concatenate((np.resize(text, length), request.prompt_ids))[-length:])
        for request in trace[:REQUESTS]
    ]


def milliseconds(work: Callable[[], object]) -> float:
    """The median of several runs."""
    times = []
    for _ in range(7):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return float(np.median(times)) * 1000


def resident() -> int:
    """Bytes of memory of this process, what it has read of mapped files included; Linux only."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def steps(trace: Sequence[Request], drafter: HierarchyDrafter) -> list[dict[str, Any]]:
    """MAT and microseconds of a step at each budget."""
    results = ((budget, replay(trace, drafter, budget)) for budget in BUDGETS)
    return [
        {"budget": budget, "mat": result.scores[ALL].mat, "microseconds": result.to_dict()["microseconds"]}
        for budget, result in results
    ]


def build(tokens: Ids, vocab_size: int, eos_token_id: int | None, folder: str) -> float:
    """Write a database; returns the seconds that sorting took."""
    start = perf_counter()
    database = StatisticsDatabase.from_tokens(tokens, vocab_size, eos_token_id)
    seconds = perf_counter() - start
    database.save_pretrained(folder)
    return seconds


def opened(folder: str) -> dict[str, Any]:
    """The size of a database on disk, and the time to open it."""
    before = resident()
    database = StatisticsDatabase.from_pretrained(folder)
    read = resident() - before
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "tokens": len(database.tokens),
        "bytes": size,
        "bytes_per_token": size / len(database.tokens),
        "bytes_in_memory_when_opened": read,
        "open_milliseconds": milliseconds(lambda: StatisticsDatabase.from_pretrained(folder)),
    }


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table, with each budget's times behind the other columns."""
    return Table(*columns, *(f"µs {p}, budget {budget}" for budget in BUDGETS for p in ("p50", "p99")), title=title)


def times(row: dict[str, Any]) -> list[str]:
    """The cells of those times."""
    return [f"{each['microseconds'][p]:.0f}" for each in row["steps"] for p in ("p50", "p99")]


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description="Drafting against the size of D_s and the length of the context.")
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help=".npy, token ids")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--eos", type=int, help="the end-of-sequence id")
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 24], help="of D_s, in million tokens")
    parser.add_argument("--synthetic", type=int, nargs="*", default=[], help="sizes of D_s made from the corpus")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()

    trace = [request for path in arguments.trace for request in read_trace(path)]
    corpus = np.concatenate([np.load(path) for path in arguments.corpus])
    vocab_size, database = arguments.vocab_size, arguments.model_database
    model = ModelDatabase.from_pretrained(database) if database else None
    real = [size for size in arguments.sizes if size * MILLION <= len(corpus)]
    if not real or len(trace) <= REQUESTS:
        parser.error(f"the corpus must hold one of the sizes, and the trace more than {REQUESTS} requests")
    statistics: list[dict[str, Any]] = []
    contexts: list[dict[str, Any]] = []
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, console.status("") as status:

        def drafter(folder: str) -> HierarchyDrafter:
            return HierarchyDrafter(vocab_size, model, StatisticsDatabase.from_pretrained(folder))

        for kind, sizes in (("real", real), ("synthetic", arguments.synthetic)):
            for size in sizes:
                status.update(f"a {kind} D_s of {size} million tokens")
                tokens = corpus[: size * MILLION] if kind == "real" else synthetic(corpus, size * MILLION)
                folder = f"{scratch}/{kind}-{size}"
                seconds = build(tokens, vocab_size, arguments.eos, folder)
                figures = {"corpus": kind, "sort_seconds": seconds, **opened(folder)}
                statistics.append({**figures, "steps": steps(trace, drafter(folder))})
        for length in CONTEXTS:
            status.update(f"contexts of {length} tokens")
            requests, shared = lengthened(trace, length), drafter(f"{scratch}/real-{max(real)}")
            start = milliseconds(partial(shared.session, requests[0].prompt_ids))
            contexts.append({"tokens": length, "start_milliseconds": start, "steps": steps(requests, shared)})

    if not console.is_terminal:
        console.width = 160
    names = ("million tokens", "corpus", "sorted in s", "bytes a token", "opened in ms", "MB then in memory")
    result = table("D_s", names)
    for row in statistics:
        megabytes = row["bytes_in_memory_when_opened"] / MILLION
        values = (row["sort_seconds"], row["bytes_per_token"], row["open_milliseconds"], megabytes)
        cells = [f"{row['tokens'] / MILLION:.0f}", row["corpus"], *(f"{value:.2f}" for value in values)]
        result.add_row(*cells, *times(row))
    console.print(result)
    result = table(f"Context, with a D_s of {max(real)} million tokens", ("tokens", "session starts in ms"))
    for row in contexts:
        result.add_row(f"{row['tokens']:,}", f"{row['start_milliseconds']:.2f}", *times(row))
    console.print(result)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "statistics": statistics, "contexts": contexts}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
