"""What drafting gains in a batch, by what a token costs: recorded requests in vLLM's adapter, by a clock of its own.

    python benchmarks/load.py TRACE… --vocab-size N [--model-database DIR] [--statistics-database DIR] [--json FILE]

No model runs, and no vLLM: each step emits what was recorded, so mean accepted tokens are exact for what was drafted.
The time is modelled: a step over n tokens of all rows, drafts and prompts among them, takes 1 + n / `doubling` of one
over none, give or take a twentieth, and drafting takes so much of it for each row. A hundred thousand tokens that
double a step are a large model on a GPU, which waits for its memory; a few dozen are a small one on a processor. The
adapter knows nothing of that: it learns its prices from the clock, as in a server, which is what is tried here.
Throughput is a ratio to the same steps without drafts.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from propose import databases, make_parser, vllm_config
from rich.console import Console
from rich.table import Table

from hdraft.drafting.threads import Threads
from hdraft.engines import batch
from hdraft.engines.vllm import HierarchyProposer
from hdraft.evaluation.traces import Request, read_traces

_DRAFTING = 0.001  # of a step over no tokens, for each row
_WAVER = 0.05


class Clock:
    """Stands in for `time` in the adapter: a step over no tokens is a second."""

    now = 0.0

    def perf_counter(self) -> float:
        """The seconds."""
        return self.now


class Drafting(Threads):
    """One thread, on which drafting takes as long as is modelled."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1)
        self._clock = clock

    def over(self, rows: int, work: Callable[[int, int], None]) -> None:
        """As `Threads` does."""
        self._clock.now += _DRAFTING * rows
        super().over(rows, work)


def serve(
    trace: Sequence[Request], rows: int, doubling: float, proposer: HierarchyProposer | None, clock: Clock
) -> dict[str, float]:
    """Decode all requests, so many at once; what that took."""
    rng = np.random.default_rng(0)
    longest = max(len(request.prompt_ids) + len(request.output_ids) for request in trace) + 1
    tokens, lengths = np.zeros((rows, longest), np.int32), np.zeros(rows, np.int32)
    outputs: list[list[int]] = []  # by row, what is still to be emitted
    drafts: list[list[int]] = []
    waiting, start = list(reversed(trace)), clock.now
    emitted = passed = drafted = 0
    while waiting or outputs:
        read = 0
        while waiting and len(outputs) < rows:
            request, row = waiting.pop(), len(outputs)
            tokens[row, : len(request.prompt_ids)] = request.prompt_ids
            lengths[row] = len(request.prompt_ids)
            outputs.append(request.output_ids.tolist())
            drafts.append([])
            read += len(request.prompt_ids) - 1
        size = read + len(outputs) + sum(map(len, drafts))
        clock.now += (1 + size / doubling) * rng.lognormal(0, _WAVER)
        sampled = []
        for row, (output, draft) in enumerate(zip(outputs, drafts, strict=True)):
            accepted = 0
            while accepted < min(len(draft), len(output) - 1) and draft[accepted] == output[accepted]:
                accepted += 1
            sampled.append(output[: accepted + 1])
            tokens[row, lengths[row] : lengths[row] + accepted + 1] = sampled[-1]
            lengths[row] += accepted + 1
            del output[: accepted + 1]
        passed += len(outputs)
        emitted += sum(map(len, sampled))
        drafted += sum(map(len, drafts))
        drafts = proposer.propose(sampled, lengths, tokens) if proposer else [[] for _ in sampled]
        if proposer and proposer._batch and proposer._batch.learner:
            proposer._batch.learner.flush()
        for row in reversed(range(len(outputs))):
            if not outputs[row]:  # the last row takes the place of one that has ended
                for each in (tokens, lengths):
                    each[row] = each[len(outputs) - 1]
                outputs[row], drafts[row] = outputs[-1], drafts[-1]
                del outputs[-1], drafts[-1]
    seconds = clock.now - start
    return {"mat": emitted / passed, "drafted_a_row": drafted / passed, "tokens_a_second": emitted / seconds}


def make(vocab_size: int, tokens: int, max_length: int, settings: dict[str, Any], clock: Clock) -> HierarchyProposer:
    """A proposer that goes by this clock."""
    proposer = HierarchyProposer(vllm_config(vocab_size, tokens, max_length, settings))
    assert proposer._batch is not None
    proposer._batch.drafter.warm_up()  # while kernels are compiled nothing is drafted
    proposer._batch._threads = Drafting(clock)
    if proposer._batch.learner:
        proposer._batch.learner.close()  # its thread: it learns between two steps, when it is told to
    return proposer


def main() -> None:
    """Model, print and write."""
    parser = make_parser("What drafting gains in a batch, by what a token costs there.")
    parser.add_argument("--doubling", type=float, nargs="+", default=[100_000, 1000, 250, 64])
    arguments = parser.parse_args()
    methods: dict[str, dict[str, Any]] = {"D_c alone": {}, "learning": {"learn": True}}
    if given := databases(arguments):
        methods |= {"databases": given, "databases, learning": given | {"learn": True}}
    trace = read_traces(arguments.trace)
    longest = max(len(request.prompt_ids) + len(request.output_ids) for request in trace) + 100
    table = Table("tokens that double a step", "at once", "", "throughput", "MAT", "drafted a row")
    figures = []
    with patch.object(batch, "time", clock := Clock()):
        for doubling in arguments.doubling:
            for rows in arguments.rows:
                plain = serve(trace, rows, doubling, None, clock)
                for name, settings in methods.items():
                    proposer = make(arguments.vocab_size, arguments.tokens, longest, settings, clock)
                    served = serve(trace, rows, doubling, proposer, clock)
                    row = {"doubling": doubling, "rows": rows, "method": name} | served
                    row["throughput_over_none"] = served["tokens_a_second"] / plain["tokens_a_second"]
                    figures.append(row)
                    numbers = (row["throughput_over_none"], row["mat"], row["drafted_a_row"])
                    table.add_row(f"{doubling:g}", str(rows), name, *(f"{each:.2f}" for each in numbers))
    Console().print(table)
    if arguments.json:
        result = {"traces": [Path(path).name for path in arguments.trace], "requests": len(trace)}
        result |= {"num_speculative_tokens": arguments.tokens, "figures": figures}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
