"""Measure what a step costs over 0 to 64 draft tokens on this machine, for `hdraft replay --cost`.

    python tools/measure_costs.py

writes the built-in curve `cpu-measured`: the embedded model, in float32. With `--model` and `--output`, a curve of any
other model. Each run loads the model and measures it afresh; each size's figure is the median over the runs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from hdraft import measure_costs
from hdraft.demo import MODEL
from hdraft.evaluation.costs import MEASURED
from hdraft.evaluation.machine import machine
from hdraft.loading import quieten


def measure(name: str | Path, device: str = "cpu", dtype: str = "float32", runs: int = 9) -> dict[str, Any]:
    """A cost file: `seconds` of a step over 0, 1, 2, … draft tokens, and what they were measured with."""
    measured = []
    for _ in range(runs):
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        model.to(device)
        measured.append(measure_costs(model))
    seconds = np.maximum.accumulate(np.median(measured, axis=0))
    return {
        "machine": machine() | {"threads": torch.get_num_threads()},
        "model": "the embedded model" if name == MODEL else str(name),
        "device": device,
        "dtype": dtype,
        "runs": runs,
        "seconds": [float(f"{value:.4g}") for value in seconds],
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description="What a step costs over 0 to 64 draft tokens on this machine.")
    parser.add_argument("--model", metavar="MODEL", default=MODEL, help="a folder, or a name on the Hub")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--runs", type=int, metavar="N", default=9)
    parser.add_argument("--output", type=Path, metavar="FILE", default=MEASURED)
    arguments = parser.parse_args()
    quieten()
    figures = measure(arguments.model, arguments.device, arguments.dtype, arguments.runs)
    arguments.output.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    ordinary, full = figures["seconds"][0], figures["seconds"][-1]
    print(f"{arguments.output}: {1000 * ordinary:.3g} ms a step, {full / ordinary:.2f} times that over 64 draft tokens")


if __name__ == "__main__":
    main()
