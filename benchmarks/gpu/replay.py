"""Speed-up at full size without the weights: recorded requests, decoded by a random model of the true shape.

    python benchmarks/gpu/replay.py --shape llama-2-7b --dtype float16 --traces FOLDER --json FILE

The model does all the work of every step; only the choice of the next token is the recorded one, see
`timed.py`. `--traces` holds the trace, the generations for D_m and the corpus for D_s, as recorded or as
`tools/pack_replay.py` packs them; both databases are built first. `docs/gpu.md` says what every figure means.

Methods take turns within each request, so that a machine whose speed drifts slows them all alike. Every MAT is compared
with that of a replay without a model, and must be the same. What is known is written after every turn.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch
from memory import copy_bandwidth
from recorded import LLAMA_2, build_databases, read_requests, select
from shapes import SHAPES, random_model
from sizes import CACHED, PADDED, SIZES, measure_sizes
from timed import AskedAsDecoding, log_lines, time_decoding, time_generate, time_sizes
from timed_report import figures, markdown, parts, score
from timing import Seconds, Timing

from hdraft import measure_costs
from hdraft.decoding.graphed.static_step import StepKind, static_budget
from hdraft.decoding.target import LONG_TEXT
from hdraft.drafting import Drafter
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.records import check_records, put
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request
from hdraft.loading import quieten

METHODS = ("vanilla", "hd-63", "hd-27", "hd-adaptive", "pld", "published", "transformers")
"""Our loop without drafts and with them; `model.generate`. hd-N has a fixed budget of N draft tokens. There is
`transformers-static` beside, `generate` with its static cache, which it compiles: only where it is asked for, as code
compiled in one place can be in another's way."""

BUDGET = 63
"""Draft tokens at most: with the text's last token they fill the 64 rows of the largest step that is no wider than a
tile of a matrix product."""


@dataclass
class Method:
    """A way to decode, and its timings so far."""

    name: str
    budget: int = 0
    adaptive: bool = False
    timings: list[Timing] = field(default_factory=list)
    warm_up_seconds: float = 0.0
    peak_memory: int = 0

    @classmethod
    def of(cls, name: str) -> "Method":
        """By its name; raises ValueError where there is none."""
        kind, _, number = name.partition("-")
        if kind == "hd" and number.isdecimal() and 1 <= int(number) <= 64:
            return cls(name, int(number))
        known = (*METHODS, "transformers-static")
        if name not in known:
            raise ValueError(f"no method {name}: there are {', '.join(known)}, and hd-1 to hd-64")
        return cls(name, BUDGET if name in ("pld", "published", "hd-adaptive") else 0, name == "hd-adaptive")

    @property
    def theirs(self) -> bool:
        """Whether `model.generate` decodes."""
        return self.name.startswith("transformers")

    def drafter(self, databases: Path) -> Drafter | None:
        """A new one, which has learnt nothing yet."""
        if not self.budget:
            return None
        kind = self.name.partition("-")[0]
        folders: dict[str, Any] = {"model_database": databases / "D_m", "statistics_database": databases / "D_s"}
        options = method_options(kind, window=0, **(folders if kind != "pld" else {}))
        drafter = open_drafter(kind, options, vocab_size=LLAMA_2.vocab_size)
        if isinstance(drafter, HierarchyDrafter):
            drafter.recycles = False  # a random model's candidates say nothing of what is replayed
        return drafter


class Run:
    """One run of the benchmark: its settings, and its measurements so far."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        requests: list[Request],
        databases: Path,
        log: list[str],
        report: Callable[["Run"], None],
    ) -> None:
        self.arguments = arguments
        self.requests = requests
        self.databases = databases
        self.methods = [Method.of(name) for name in dict.fromkeys(arguments.methods)]
        self.machine = machine_with(arguments.device)
        self.model = random_model(arguments.shape, arguments.dtype, arguments.device)
        self.bandwidth = copy_bandwidth(arguments.device)
        self.costs: Seconds = np.ones(1)
        self.warm_up_seconds = 0.0
        self.steps: list[dict[str, Any]] = []
        self.done = 0
        self.mat_differs: list[str] = []
        self.missing: list[str] = []
        self.log = log
        self.report = report
        if not arguments.device.startswith("cuda"):
            self.missing += [
                f"no GPU was at hand: nothing was measured on one, every time here is of the {arguments.device}",
                "peak memory: it is measured on a GPU only",
            ]
            if any(method.name == "transformers-static" for method in self.methods):
                self.missing.append("transformers-static: transformers compiles it on a GPU only")
            self.methods = [method for method in self.methods if method.name != "transformers-static"]
        if arguments.shape.startswith("tiny"):
            self.missing.append("speed: a tiny shape is no model's; it proves the accounting and nothing else")

    def time(self, method: Method, request: Request, drafter: Drafter | None) -> Timing:
        """Decode a request."""
        if method.theirs:
            static = {"cache_implementation": "static"} if method.name == "transformers-static" else {}
            return time_generate(self.model, request, **static)
        costs = self.costs if method.adaptive else None
        return time_decoding(self.model, request, drafter, method.budget, costs, self.arguments.step)

    def measure_steps(self) -> None:
        """The time of a step by its size, behind each length of text that was asked for."""
        for number, cached in enumerate(self.arguments.cached):
            sizes = SIZES if not number else (SIZES[0], SIZES[-1])
            self.steps.append(measure_sizes(self.model, cached, self.bandwidth, self.arguments.step, sizes))
            self.report(self)
            self.say(f"steps measured behind {cached} tokens")

    def warm_up(self) -> None:
        """Everything once, with drafters of its own: compile, capture, load kernels.

        The longest request first, so that buffers are as large as any will have to be, and `model.generate` before our
        loop: what its static cache leaves in the model would have steps captured anew.
        """
        longest = max(self.requests, key=lambda request: len(request.prompt_ids) + len(request.output_ids))
        length = len(longest.prompt_ids) + len(longest.output_ids)
        for method in [method for method in self.methods if method.theirs]:
            self.warm_up_method(method, longest)
        begin = perf_counter()
        # at all lengths, so that what is captured or compiled for one is so then
        for cached in range(-(-length // PADDED) * PADDED - PADDED // 2, 0, -PADDED):
            time_sizes(self.model, SIZES, cached, steps=2, rounds=1, step=self.arguments.step)
        self.costs = measure_costs(self.model, self.arguments.step)
        self.warm_up_seconds = perf_counter() - begin
        self.say(f"steps of every size and length warmed up in {self.warm_up_seconds:.1f} s")
        for method in self.methods:
            if not method.theirs:
                self.warm_up_method(method, longest)

    def warm_up_method(self, method: Method, request: Request) -> None:
        """Decode a request; a `transformers-static` that cannot is left out and named."""
        begin = perf_counter()
        try:
            self.time(method, request, method.drafter(self.databases))
        except Exception as error:  # whatever another's compiler may raise
            if method.name != "transformers-static":
                raise
            self.methods.remove(method)
            reason = next(iter(str(error).splitlines()), "")
            self.missing.append(f"transformers-static: {type(error).__name__}: {reason}")
        method.warm_up_seconds = perf_counter() - begin
        self.say(f"{method.name} warmed up in {method.warm_up_seconds:.1f} s")

    def measure(self, until: float) -> None:
        """Every method on every request as long as there is time; reports after each."""
        drafters = {method.name: method.drafter(self.databases) for method in self.methods}
        twins = {method.name: method.drafter(self.databases) for method in self.methods}  # replayed without a model
        for number, request in enumerate(self.requests):
            if perf_counter() > until:
                self.missing.append(
                    f"{len(self.requests) - number} of {len(self.requests)} turns: "
                    f"the {self.arguments.seconds:.0f} seconds given were over"
                )
                self.report(self)
                break
            first = number % len(self.methods)
            taking = [
                method
                for method in self.methods[first:] + self.methods[:first]
                if number < self.arguments.plain_turns or not method.theirs
            ]
            for method in taking:
                if self.model.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.model.device)
                method.timings.append(self.time(method, request, drafters[method.name]))
                if self.model.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(self.model.device)
                    method.peak_memory = max(method.peak_memory, peak)
            for method in taking:
                self.check_mat(method, request, twins[method.name])
            self.done = number + 1
            self.say(f"turn {self.done} of {len(self.requests)}: {request.id} ({request.category})")
            self.report(self)

    def check_mat(self, method: Method, request: Request, twin: Drafter | None) -> None:
        """Note it if the last request was not drafted and emitted as in a replay without a model."""
        if twin is None:
            return
        costs, timing = self.costs if method.adaptive else None, method.timings[-1]
        exact = timing.kind == "exact"
        most_text = 0 if exact else LONG_TEXT
        static = static_budget(method.budget, "exact" if exact else "captured")
        budget = method.budget if timing.kind == "dynamic" else static
        expected = replay([request], AskedAsDecoding(twin, most_text), budget, costs=costs).scores[ALL]
        measured = score([timing])
        if (measured.tokens, measured.sizes) != (expected.tokens, expected.sizes):
            self.mat_differs.append(
                f"{method.name}, {request.id}: MAT {measured.mat} with the model and {expected.mat} without"
            )

    def timings(self, category: str) -> dict[str, list[Timing]]:
        """Of each method, those of the requests of a category."""
        chosen = [
            index for index, request in enumerate(self.requests[: self.done]) if category in (ALL, request.category)
        ]
        return {
            method.name: [method.timings[index] for index in chosen if index < len(method.timings)]
            for method in self.methods
        }

    def say(self, line: str) -> None:
        """Progress, on the standard error."""
        print(line, file=sys.stderr, flush=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, see docs/gpu.md."""
        arguments, done = self.arguments, self.requests[: self.done]
        categories = [ALL, *dict.fromkeys(request.category for request in done)] if done else []
        by_category = {category: figures(self.timings(category)) for category in categories}
        return {
            "machine": self.machine,
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "shape": arguments.shape,
            "dtype": arguments.dtype,
            "step": arguments.step,
            "warm_up_seconds": self.warm_up_seconds,
            "log": self.log,
            "not_measured": self.missing,
            "mat_equals_replay": bool(done) and not self.mat_differs,
            "mat_differs": self.mat_differs,
            "categories": categories,
            "methods": {
                method.name: self.method(method, {name: each.get(method.name) for name, each in by_category.items()})
                for method in self.methods
            },
            "steps": self.steps,
            "costs_milliseconds": [1000 * float(cost) for cost in self.costs],
            "requests": [
                {
                    "id": request.id,
                    "category": request.category,
                    "prompt_tokens": len(request.prompt_ids),
                    "tokens": len(request.output_ids),
                    "seconds": {each.name: float(each.timings[i].seconds.sum()) for each in self.having_done(i)},
                    "steps": {each.name: len(each.timings[i].seconds) for each in self.having_done(i)},
                }
                for i, request in enumerate(done)
            ],
        }

    def having_done(self, index: int) -> list[Method]:
        """The methods that have decoded that request."""
        return [method for method in self.methods if index < len(method.timings)]

    def method(self, method: Method, categories: dict[str, Any]) -> dict[str, Any]:
        """What is known of a method, its figures by category included."""
        spread = (categories.get(ALL) or {"decoding": {}})["decoding"].get("step_milliseconds")
        return {
            "budget": method.budget,
            "steps_are": " and ".join(sorted({each.kind for each in method.timings if each.kind})) or None,
            "warm_up_seconds": method.warm_up_seconds,
            "peak_memory_bytes": method.peak_memory or None,
            "share_of_floor": self.steps[0]["floor_milliseconds"] / spread["p50"] if self.steps and spread else None,
            "categories": {category: figures for category, figures in categories.items() if figures is not None},
            "parts_milliseconds": parts(method.timings),
        }


def main() -> None:
    """Measure and write everything."""
    parser = argparse.ArgumentParser(description="Recorded requests through a random model of the true shape.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--step", choices=get_args(StepKind), help="how a step is run, as hdraft.generate takes it")
    parser.add_argument("--traces", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--databases", type=Path, metavar="FOLDER", help="D_m and D_s, built there if they are not")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--plain-turns", type=int, default=4, help="those that model.generate decodes too: the first")
    parser.add_argument("--tokens", type=int, default=128, help="of each turn, at most")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument(
        "--cached", type=int, nargs="+", default=[CACHED], help="tokens of text before the steps timed by size"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no turn after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the figures there, beside other records")
    parser.add_argument("--name", help="of the record; SHAPE-DTYPE-STEP unless given")
    arguments = parser.parse_args()
    begin = perf_counter()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU: give --device cpu --shape tiny --dtype float32 to try the script without one"
        )
    if arguments.turns < 1 or arguments.tokens < 2 or min(arguments.cached) < 1:
        raise SystemExit("--turns and --cached must be at least 1 and --tokens at least 2")
    quieten()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), log_lines() as log:
        databases = arguments.databases or Path(scratch)
        try:
            for name in arguments.methods:
                Method.of(name)
            if set(arguments.methods) == {"transformers-static"} and not arguments.device.startswith("cuda"):
                raise ValueError("transformers-static is for a GPU: name other methods")
            if arguments.json:
                check_records(arguments.json)
            trace = read_requests(arguments.traces)
            build_databases(arguments.traces, databases)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from None
        print(f"databases ready after {perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)

        def report(run: Run) -> None:
            if arguments.json:
                name = arguments.name or f"{arguments.shape}-{arguments.dtype}-{arguments.step or 'default'}"
                put(arguments.json, name, run.to_dict())

        run = Run(arguments, select(trace, arguments.turns, arguments.tokens), databases, log, report)
        run.measure_steps()
        run.warm_up()
        run.measure(begin + arguments.seconds)
        print(markdown(run.to_dict()), end="")
        if run.mat_differs:
            raise SystemExit(f"{run.mat_differs[0]}: one of the two is wrong")


if __name__ == "__main__":
    main()
