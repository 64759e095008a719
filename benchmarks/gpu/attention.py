"""The time of tree attention in one layer of a decoding step, by its settings, and of what torch offers instead.

    python benchmarks/gpu/attention.py --json FILE [--device cuda] [--dtype float16] [--seconds 30]

As in a step, each call is a layer's, with keys and values of its own, which the memory has to be asked for: a graph of
20 calls, replayed. Ours is given buffers longer than the text; torch's, columns up to the next multiple of 256 and a
mask. Results are compared with torch's plain attention in float32. What is known is printed line by line, and written
after every case.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hdraft.decoding.graphed.tree_attention import as_bits, default_settings, tree_attention
from hdraft.evaluation.machine import accelerator, machine
from hdraft.files import replace

SHAPES = ((32, 32, 128), (32, 8, 128))
"""Query heads, heads of keys, and the size of one: of Llama-2-7B and of Llama-3-8B."""

ROWS, LENGTHS = (1, 64, 16), (512, 4096, 2048)

LAYERS, REPLAYS = 20, 15
"""On a CPU, where only the script itself is tried, one call is timed once."""

SETTINGS: dict[int, tuple[dict[str, int], ...]] = {
    16: ({"stages": 2}, {"block_n": 32}, {"warps": 8}),
    32: ({"stages": 2}, {"block_n": 32}),
    64: (
        {"stages": 2},
        {"block_n": 64, "stages": 2},
        {"block_n": 64, "stages": 2, "warps": 8},
        {"block_m": 32},
        {"block_m": 128, "warps": 8},
    ),
}
"""What is tried beside the default, and beside half and twice its splits, by its rows of a block."""

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-4}
"""How far a result may be from that in float32; they are about 0.1, of random keys and values, and 2 at most."""


class Case:
    """One step's attention, in as many layers as a graph has calls."""

    def __init__(
        self, heads: int, kv_heads: int, size: int, rows: int, length: int, device: str, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        kind: Any = {"device": device, "dtype": dtype}
        self.rows, self.length = rows, length
        self.width = -(-(length + rows) // 256) * 256
        self.queries = torch.randn(rows, heads, size, **kind).transpose(0, 1)
        self.layers = torch.randn(
            LAYERS if device.startswith("cuda") else 1, 2, kv_heads, self.width + 512, size, **kind
        )
        self.scaling = 1 / math.sqrt(size)
        self.start = torch.tensor(length, device=device)
        self.earliest = torch.zeros(rows, dtype=torch.int64, device=device)
        parents = [int(torch.randint(row, ())) if row else 0 for row in range(rows)]
        among = torch.eye(rows, dtype=torch.bool)
        for row, parent in enumerate(parents):
            among[row] |= among[parent]
        among = among.to(device)
        self.bits = as_bits(among)
        visible = torch.zeros(rows, self.width, dtype=torch.bool, device=device)
        visible[:, :length] = True
        visible[:, length : length + rows] = among
        self.mask = torch.zeros(1, 1, rows, self.width, **kind).masked_fill_(~visible, torch.finfo(dtype).min)
        self.heads, self.kv_heads, self.size = heads, kv_heads, size

    def ours(self, layer: Tensor, **settings: int) -> Tensor:
        """float[rows, heads * size]."""
        return tree_attention(
            self.queries, layer[0], layer[1], self.start, self.earliest, self.bits, self.scaling, **settings
        )

    def torchs(self, layer: Tensor, repeat: bool, wide: bool = False) -> Tensor:
        """float[rows, heads * size], with the keys of a group repeated, as transformers does, or shared."""
        queries, keys, values, mask = (
            self.queries[None],
            layer[:1, :, : self.width],
            layer[1:, :, : self.width],
            self.mask,
        )
        if wide:
            queries, keys, values, mask = queries.float(), keys.float(), values.float(), mask.float()
        if repeat and self.heads > self.kv_heads:
            keys, values = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (keys, values))
        result = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=self.scaling, enable_gqa=not repeat
        )
        return result[0].transpose(0, 1).reshape(self.rows, -1)

    def ways(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """What is timed: a name, and the attention of a layer."""
        chosen = default_settings(
            self.queries.device, self.queries.dtype, self.rows, self.heads // self.kv_heads, self.kv_heads, self.size
        )
        yield "default " + " ".join(map(str, chosen)), self.ours
        yield "memory-efficient", _by([SDPBackend.EFFICIENT_ATTENTION], self, repeat=True)
        if self.heads > self.kv_heads:
            yield "grouped", _by([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], self, repeat=False)
        for splits in (chosen.splits // 2, chosen.splits * 2):
            if 1 <= splits <= 64:
                yield f"splits={splits}", _set(self, {"splits": splits})
        for settings in SETTINGS[chosen.block_m]:
            yield " ".join(f"{name}={value}" for name, value in settings.items()), _set(self, settings)


def _by(backends: list[SDPBackend], case: Case, repeat: bool) -> Callable[[Tensor], Tensor]:
    def attend(layer: Tensor) -> Tensor:
        with sdpa_kernel(backends):
            return case.torchs(layer, repeat)

    return attend


def _set(case: Case, settings: dict[str, int]) -> Callable[[Tensor], Tensor]:
    return lambda layer: case.ours(layer, **settings)


def microseconds(run: Callable[[Tensor], Tensor], layers: Tensor) -> float:
    """The median time of a call; on a GPU, of those in a graph."""

    def calls() -> None:
        for layer in layers:
            run(layer)

    if not layers.is_cuda:
        begin = perf_counter()
        calls()
        return 1e6 * (perf_counter() - begin) / len(layers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]  # type: ignore[no-untyped-call]
    graph.replay()
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in pairwise(events)]
    return 1000 * float(np.median(times)) / len(layers)


def measure(case: Case, deadline: float) -> Iterator[dict[str, Any]]:
    """A record for each way, until the deadline; of one that fails, why."""
    with sdpa_kernel(SDPBackend.MATH):
        expected = case.torchs(case.layers[0], repeat=True, wide=True)
    read = 2 * case.kv_heads * (case.length + case.rows) * case.size * case.layers.element_size()
    for name, run in case.ways():
        if perf_counter() > deadline:
            return
        record: dict[str, Any] = {
            "heads": case.heads,
            "kv_heads": case.kv_heads,
            "size": case.size,
            "rows": case.rows,
            "length": case.length,
            "way": name,
        }
        begin = perf_counter()
        try:
            record["difference"] = float((run(case.layers[0]).float() - expected).abs().max())
            record["first_call_seconds"] = perf_counter() - begin
            record["microseconds"] = microseconds(run, case.layers)
            record["bytes_per_second"] = 1e6 * read / record["microseconds"]
            record["right"] = record["difference"] <= TOLERANCE[case.queries.dtype]
        except Exception as error:  # a way that cannot be had is no reason to do without the others
            record["failed"] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        yield record


def line(record: dict[str, Any]) -> str:
    """A record in a line of the table."""
    where = f"{record['heads']:>3}/{record['kv_heads']:<3}{record['rows']:>4}{record['length']:>6}  {record['way']:<28}"
    if "failed" in record:
        return f"{where}{record['failed']}"
    wrong = "" if record["right"] else "  WRONG"
    return (
        f"{where}{record['microseconds']:>9.2f} us {record['bytes_per_second'] / 1e12:>6.2f} TB/s "
        f"{record['difference']:>9.1e}{wrong}"
    )


def main() -> None:
    """Time every case, the most telling first."""
    parser = argparse.ArgumentParser(description="The time of tree attention in one layer of a decoding step.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--seconds", type=float, default=30, help="no measurement is begun after")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: give --device cpu to try the script without one")
    deadline = perf_counter() + arguments.seconds
    where = machine() | {"accelerator": accelerator(arguments.device)}
    records: list[dict[str, Any]] = []
    print(f"heads rows length  {'way':<28}")
    with torch.inference_mode():
        for rows, length, shape in ((rows, length, shape) for length in LENGTHS for rows in ROWS for shape in SHAPES):
            if perf_counter() > deadline:
                break
            case = Case(*shape, rows, length, arguments.device, getattr(torch, arguments.dtype))
            for record in measure(case, deadline):
                records.append(record)
                print(line(record), flush=True)
            content = {"machine": where, "dtype": arguments.dtype, "cases": records}
            if arguments.device.startswith("cuda"):
                torch.cuda.empty_cache()  # of graphs that are gone
            replace(arguments.json, json.dumps(content, indent=1).encode())
    if not all(record.get("right", True) for record in records):
        raise SystemExit("results are further from those in float32 than rounding goes")


if __name__ == "__main__":
    main()
