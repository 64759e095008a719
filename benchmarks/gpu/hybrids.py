"""Does drafting pay for models with recurrent or convolutional states? Recorded requests through random models.

    python benchmarks/gpu/hybrids.py --shape lfm2-350m --dtype bfloat16 --device cpu --traces FOLDER --json FILE

As `replay.py`: the model does all the work of every step, and only the choice of the next token is the recorded one.
Such models verify chains, and where a draft is rejected most of them read the accepted tokens again, so what counts is
what a row costs. Every budget takes its turn within each request.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded import LLAMA_2, build_databases, read_requests, select
from shapes import SHAPES, random_model
from timed import time_decoding
from timing import Timing

from hdraft import measure_costs
from hdraft.decoding.models.probe import draft_shape
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.records import check_records, put
from hdraft.loading import quieten

BUDGETS = {"ordinary": 0, "2": 2, "4": 4, "8": 8, "16": 16, "adaptive": 16}
ROWS = (0, 1, 2, 4, 8, 16, 32, 64)


def figures(timings: list[Timing], ordinary: list[Timing]) -> dict[str, float]:
    """Of one budget: tokens a step, and how much faster than ordinary decoding, prompts left out."""
    tokens = sum(int(each.emitted[1:].sum()) for each in timings)
    steps = sum(len(each.emitted) - 1 for each in timings)
    seconds = sum(float(each.seconds[1:].sum()) for each in timings)
    plain = sum(float(each.seconds[1:].sum()) for each in ordinary)
    return {
        "mat": tokens / max(1, steps),
        "speed_up": plain / seconds,
        "milliseconds": 1000 * seconds / max(1, steps),
    }


def main() -> None:
    """Measure, and write the figures after every request."""
    parser = argparse.ArgumentParser(description="Recorded requests through random models that keep states.")
    parser.add_argument("--shape", choices=[name for name in SHAPES if name.startswith(("lfm2", "qwen3.5"))])
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--traces", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="of each turn, at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the figures there, beside other records")
    arguments = parser.parse_args()
    quieten()
    try:
        if arguments.json:
            check_records(arguments.json)
        requests = select(read_requests(arguments.traces), arguments.turns, arguments.tokens)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        build_databases(arguments.traces, Path(scratch))
        model = random_model(arguments.shape, arguments.dtype, arguments.device)
        assert draft_shape(model) == "chain"
        costs = measure_costs(model)
        drafters = {name: _drafter(Path(scratch)) for name in BUDGETS}
        timings: dict[str, list[Timing]] = {name: [] for name in BUDGETS}
        for number, request in enumerate(requests):
            for name, budget in BUDGETS.items():
                drafter = drafters[name] if budget else None
                weighed = costs if name == "adaptive" else None
                timings[name].append(time_decoding(model, request, drafter, budget, weighed))
            record: dict[str, Any] = {
                "machine": machine_with(arguments.device),
                "shape": arguments.shape,
                "dtype": arguments.dtype,
                "turns": number + 1,
                "step_by_drafts": {str(rows): float(costs[rows] / costs[0]) for rows in ROWS},
                "ordinary_milliseconds": 1000 * float(costs[0]),
                "budgets": {name: figures(each, timings["ordinary"]) for name, each in timings.items()},
            }
            if arguments.json:
                put(arguments.json, f"{arguments.shape}-{arguments.dtype}-{arguments.device}", record)
            print(f"turn {number + 1} of {len(requests)}: {request.id}", file=sys.stderr, flush=True)
    print("a step over n drafts, in ordinary ones:", _line(record["step_by_drafts"]))
    for name, each in record["budgets"].items():
        print(f"{name:>9}: MAT {each['mat']:.2f}, {each['speed_up']:.2f} times, {each['milliseconds']:.1f} ms a step")


def _drafter(databases: Path) -> HierarchyDrafter:
    drafter = HierarchyDrafter.for_model(LLAMA_2.vocab_size, None, str(databases / "D_m"), str(databases / "D_s"))
    drafter.recycles = False  # a random model's candidates say nothing of what is replayed
    return drafter


def _line(ratios: dict[str, float]) -> str:
    return ", ".join(f"{size}: {np.round(ratio, 2)}" for size, ratio in ratios.items())


if __name__ == "__main__":
    main()
