"""The time of `propose` in the vLLM adapter: traces replayed as the rows of a batch, without vLLM.

    python benchmarks/propose.py TRACE… --vocab-size N [--model-database DIR] [--statistics-database DIR] [--json FILE]

A row takes the next request of the trace as soon as its own has ended. Every step emits what the target would have, so
the mean accepted tokens are exact; a step's time is that of one call, divided by its rows. Before each call, memory
as large as the processor's caches is written, as a forward pass does. Drafting never rests here.

Each number of threads has a proposer of its own; they are called one after another with the same rows, and have to
draft the same. `locked` is the part of a call that is done under the interpreter's lock.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hdraft.drafting.threads import Threads
from hdraft.engines.vllm import HierarchyProposer
from hdraft.evaluation.machine import machine
from hdraft.evaluation.traces import Request, read_traces

_CACHES = 64 * 2**20  # bytes


def vllm_config(vocab_size: int, tokens: int, max_length: int, settings: dict[str, Any]) -> SimpleNamespace:
    """The part of a `VllmConfig` that the proposer reads."""
    model = SimpleNamespace(get_vocab_size=lambda: vocab_size, max_model_len=max_length, skip_tokenizer_init=True)
    return SimpleNamespace(
        model_config=model,
        speculative_config=SimpleNamespace(num_speculative_tokens=tokens),
        parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, data_parallel_index=0),
        lora_config=None,
        additional_config={"hdraft": settings},
    )


class Timed(Threads):
    """Threads that tell how long they were at work, which is done without the interpreter's lock."""

    nanoseconds = 0

    def over(self, rows: int, work: Callable[[int, int], None]) -> None:
        """As `Threads` does."""
        start = perf_counter_ns()
        super().over(rows, work)
        self.nanoseconds += perf_counter_ns() - start


def make(threads: int, vocab_size: int, tokens: int, max_length: int, settings: dict[str, Any]) -> HierarchyProposer:
    """A proposer that drafts on so many threads, whatever the clock says."""
    proposer = HierarchyProposer(vllm_config(vocab_size, tokens, max_length, settings))
    assert proposer._batch is not None
    proposer._batch._measure = lambda *_: None  # type: ignore[method-assign]
    proposer._batch._threads = Timed(threads)
    proposer._batch.drafter.warm_up()  # while kernels are compiled nothing is drafted
    return proposer


def run(
    trace: list[Request], proposers: dict[int, HierarchyProposer], rows: int, steps: int
) -> dict[str, dict[str, float]]:
    """Figures for each number of threads, over so many calls with `rows` rows, and as many before them not counted."""
    longest = max(len(request.prompt_ids) + len(request.output_ids) for request in trace) + 1
    tokens, lengths = np.zeros((rows, longest), np.int32), np.zeros(rows, np.int32)
    outputs: list[Any] = [np.empty(0, np.int32)] * rows  # what is still to be emitted
    drafts: list[list[int]] = [[] for _ in range(rows)]
    caches = np.zeros(_CACHES, np.uint8)
    waiting, emitted, drafted = 0, 0, 0
    began: list[bool] = []
    times: dict[int, list[tuple[int, int]]] = {threads: [] for threads in proposers}  # nanoseconds, and at work
    for step in range(2 * steps):
        sampled: list[list[int]] = []
        new_request = False
        for row in range(rows):
            if not len(outputs[row]):
                request = trace[waiting % len(trace)]
                waiting, new_request = waiting + 1, True
                lengths[row] = len(request.prompt_ids)
                tokens[row, : lengths[row]] = request.prompt_ids
                outputs[row], drafts[row] = request.output_ids, []
            accepted = 0
            for token, expected in zip(drafts[row], outputs[row][:-1].tolist(), strict=False):
                if token != expected:
                    break
                accepted += 1
            new = outputs[row][: accepted + 1]
            tokens[row, lengths[row] : lengths[row] + len(new)] = new
            lengths[row] += len(new)
            outputs[row] = outputs[row][len(new) :]
            sampled.append(new.tolist())
        made = []
        for threads, proposer in proposers.items():
            assert proposer._batch is not None and isinstance(proposer._batch._threads, Timed)
            proposer._batch._threads.nanoseconds = 0
            caches += 1
            start = perf_counter_ns()
            made.append(proposer.propose(sampled, lengths, tokens))
            if step >= steps:
                times[threads].append((perf_counter_ns() - start, proposer._batch._threads.nanoseconds))
        drafts = made[0]
        assert made == [drafts] * len(made), "the drafts depend on the number of threads"
        if step >= steps:
            emitted += sum(map(len, sampled))
            drafted += sum(map(len, drafts))
            began.append(new_request)
    figures = {}
    for threads, pairs in times.items():
        whole, at_work = np.array(pairs).T
        values = whole / 1000 / rows
        steady = ~np.array(began)
        figures[str(threads)] = {
            "mat": emitted / steps / rows,
            "drafted_per_step": drafted / steps / rows,
            "microseconds_per_row": float(np.median(values)),
            "microseconds_per_row_no_request_begins": float(np.median(values[steady]))
            if steady.any()
            else float("nan"),
            "microseconds_per_row_mean": float(values.mean()),
            "microseconds_per_row_p99": float(np.percentile(values, 99)),
            "of_one_thread": float(np.median(whole / np.array(times[min(times)])[:, 0])),
            "locked": float(np.median(1 - at_work / whole)),
        }
    return figures


def make_parser(description: str) -> argparse.ArgumentParser:
    """What to draft, from what, for how many rows, and where to write figures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("trace", nargs="+", help="traces, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--model-database", metavar="DIR")
    parser.add_argument("--statistics-database", metavar="DIR")
    parser.add_argument("--tokens", type=int, default=8, help="num_speculative_tokens")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    return parser


def databases(arguments: argparse.Namespace) -> dict[str, Any]:
    """The databases that are given, as settings of the proposer."""
    names = ("model_database", "statistics_database")
    return {name: folder for name in names if (folder := getattr(arguments, name)) is not None}


def main() -> None:
    """Measure, print and write."""
    parser = make_parser("What `propose` of the vLLM adapter costs.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    settings = databases(arguments)
    trace = read_traces(arguments.trace)
    longest = max(len(request.prompt_ids) + len(request.output_ids) for request in trace) + 1
    figures = {}
    columns = ("MAT", "drafted", "µs a row", "no request begins", "mean", "p99", "of one thread", "locked")
    table = Table("rows", "threads", *columns)
    for rows in arguments.rows:
        given = (arguments.vocab_size, arguments.tokens, longest + 100, settings)
        proposers = {threads: make(threads, *given) for threads in arguments.threads}
        figures[str(rows)] = measured = run(trace, proposers, rows, arguments.steps)
        for threads, values in measured.items():
            table.add_row(str(rows), threads, *(f"{value:.4g}" for value in values.values()))
    Console().print(table)
    if arguments.json:
        result = {"machine": machine(), "num_speculative_tokens": arguments.tokens, "rows": figures}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
