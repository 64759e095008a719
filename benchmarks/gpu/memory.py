"""The machine, and how fast its memory is: what every step is held against.

    python benchmarks/gpu/memory.py [--device cuda] --json FILE

The versions are written before anything is tried that could fail.
"""

import argparse
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from time import perf_counter

import numpy as np

from hdraft.evaluation.records import put

PACKAGES = ("torch", "transformers", "triton", "numba", "llvmlite", "numpy", "tokenizers", "safetensors", "peft")


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy within the device's memory reads and writes; a median."""
    import torch

    size, copies = (1 << 30, 10) if device.startswith("cuda") else (1 << 28, 1)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    def seconds() -> float:
        begin = perf_counter()
        for _ in range(copies):
            target.copy_(source)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return perf_counter() - begin

    return 2 * size * copies / float(np.median([seconds() for _ in range(11)][1:]))


def main() -> None:
    """Write the versions, what the machine is, and the bandwidth, each as soon as it is known."""
    parser = argparse.ArgumentParser(description="The machine, and how fast its memory is.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    installed = {each.name: each.version for each in distributions()}
    put(arguments.json, "packages", {name: installed.get(name) for name in PACKAGES})

    for name in ("transformers", "hdraft"):  # whether they can be
        import_module(name)
    import torch

    from hdraft.evaluation.machine import machine_with

    where = machine_with(arguments.device)
    put(arguments.json, "machine", where)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: give --device cpu to try the script without one")
    bandwidth = copy_bandwidth(arguments.device)
    put(arguments.json, "memory", {"device": arguments.device, "copy_bytes_per_second": bandwidth})
    print(f"{where['accelerator'] or where['processor']}: copies at {bandwidth / 1e9:,.1f} GB/s")


if __name__ == "__main__":
    main()
