"""The time of one step by its size, of attention alone by each of its implementations, and where a step's time goes.

    python benchmarks/gpu/sizes.py --shape llama-2-7b --dtype float16 --json FILE [--profile FILE]

Everything is written as soon as it is known. No drafter runs here, so that no drafting kernels need be compiled.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from traceback import print_exc
from typing import Any, get_args

import numpy as np
import torch
from memory import copy_bandwidth
from shapes import SHAPES, bytes_read, random_model
from timed import FixedSizeDrafter, log_lines, time_sizes
from timed_report import by_part, sizes_markdown
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from hdraft.decoding.costs import STATIC_SIZES
from hdraft.decoding.graphed.capture import capture, graph_pool
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.graphed.tree_attention import available, tree_attention
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.target import Target
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.records import check_records, put
from hdraft.loading import quieten

SIZES = tuple(sorted(STATIC_SIZES))
"""Draft tokens of the steps that are timed by size; with the text's last token a step has one row more."""

CACHED = 512
"""Tokens of text before those steps."""

PADDED = 256
"""Keys and values of a static step are a multiple of so many, those not used hidden by the mask."""

BACKENDS = {
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""torch's implementations of attention that take a mask."""

KERNELS = 25
"""Rows of a profile."""


def measure_sizes(
    model: PreTrainedModel, cached: int, bandwidth: float, step: StepKind | None, sizes: tuple[int, ...] = SIZES
) -> dict[str, Any]:
    """The time of a step over each number of draft tokens, behind so much text, and how far it is from the floor."""
    weights, cache = bytes_read(model, cached)
    floor = 1000 * (weights + cache) / bandwidth
    timed = time_sizes(model, sizes, cached, step=step)
    rows = []
    for size in sizes:
        seconds, parts = timed[size]
        milliseconds = 1000 * float(np.median(seconds))
        rows.append(
            {
                "drafted": size,
                "rows": size + 1,
                "milliseconds": milliseconds,
                "to_one_row": milliseconds / (1000 * float(np.median(timed[sizes[0]][0]))),
                "share_of_floor": floor / milliseconds,
                "parts_milliseconds": by_part(np.median(parts, axis=0)),
            }
        )
    return {
        "cached_tokens": cached,
        "copy_bytes_per_second": bandwidth,
        "weight_bytes": weights,
        "cache_bytes": cache,
        "floor_milliseconds": floor,
        "sizes": rows,
    }


def measure_attention(model: PreTrainedModel, rows: int, cached: int) -> list[dict[str, Any]]:
    """The milliseconds that the attention of all layers takes in a step, by each implementation: alone, and captured.

    torch's are asked as transformers asks them: keys and values of a bucket, repeated for every head, and a mask to
    add. "hdraft" is the kernel of fused steps, "hdraft, exact" are those of exact ones. Each layer has keys and values
    of its own, which come from memory.
    """
    config, device, many = model.config, model.device, range(model.config.num_hidden_layers)
    kind: dict[str, Any] = {"dtype": model.dtype, "device": device}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = -(-(cached + rows) // PADDED) * PADDED
    start, among = torch.tensor(cached, device=device), torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    earliest = torch.zeros(rows, dtype=torch.int64, device=device)
    queries = torch.randn(1, heads, rows, head, **kind)
    seen = torch.zeros(rows, width, dtype=torch.bool, device=device)
    seen[:, :cached] = True
    seen[:, cached : cached + rows] = among
    mask = torch.zeros(1, 1, rows, width, **kind).masked_fill_(~seen, torch.finfo(model.dtype).min)

    def repeated() -> None:
        for keys, values in layers:
            scaled_dot_product_attention(queries, keys[None], values[None], attn_mask=mask)

    def own() -> None:
        for keys, values in layers:
            tree_attention(queries[0], keys, values, start, earliest, among, head**-0.5)

    def ordered() -> None:
        from hdraft.decoding.graphed.ordered_attention import as_paths, ordered_attention

        paths = as_paths(among)
        for keys, values in layers:
            ordered_attention(queries[0], keys, values, start, earliest, paths, head**-0.5)

    layers = [torch.randn(2, heads, width, head, **kind) for _ in many]
    measured = [_row(name, rows, width, repeated, sdpa_kernel(backend), device) for name, backend in BACKENDS.items()]
    if available(device):
        layers = [torch.randn(2, kv_heads, width, head, **kind) for _ in many]
        measured.append(_row("hdraft", rows, width, own, nullcontext(), device))
        measured.append(_row("hdraft, exact", rows, width, ordered, nullcontext(), device))
    return measured


def _row(
    name: str,
    rows: int,
    width: int,
    run: Callable[[], None],
    context: AbstractContextManager[Any],
    device: torch.device,
) -> dict[str, Any]:
    row: dict[str, Any] = {"attention": name, "rows": rows, "width": width}
    try:
        with context:
            row["milliseconds"] = 1000 * _seconds(run, device)
    except Exception as error:  # of whichever library it is
        row["cannot"] = next(iter(str(error).strip().splitlines()), "")
    return row


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """The time of `run`, a median; on a GPU of its replays as a graph."""
    run()
    program = capture(run, device, graph_pool(device))

    def finished() -> None:
        program()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return float(np.median([_clocked(finished) for _ in range(30 if device.type == "cuda" else 3)][1:]))


def _clocked(run: Callable[[], None]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


def profiled(model: PreTrainedModel, size: int, cached: int, step: StepKind) -> str:
    """The kernels that take the most of a step over so many draft tokens, as a table."""
    target = Target(model, draft_shape(model), step=step, budget=max(SIZES), max_length=cached + max(SIZES) + 2)
    tree, text = FixedSizeDrafter(model.config.vocab_size, size).tree, np.zeros(1, np.int64)
    target.forward(np.zeros(cached, np.int64))
    target.keep([])

    def once() -> None:
        target.most_likely(target.forward(text, tree), slice(None))
        target.forget(cached)

    for _ in range(3):
        once()
    cuda = model.device.type == "cuda"
    of = "device" if cuda else "cpu"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        once()
        if cuda:
            torch.cuda.synchronize(model.device)
    kind = target.kind
    target.close()
    events = profiler.key_averages()
    own = [(event.count, getattr(event, f"self_{of}_time_total")) for event in events]
    ran = sum(count for count, taken in own if taken > 0)
    milliseconds = sum(taken for _, taken in own) / 1000
    table = events.table(sort_by=f"self_{of}_time_total", row_limit=KERNELS, max_name_column_width=90)
    return (
        f"== a {kind} step of {size + 1} rows behind {cached} tokens: {ran} kernels or operations, "
        f"{milliseconds:.3f} ms on the {'GPU' if cuda else 'CPU'}\n{table}\n"
    )


def main() -> None:
    """Measure, and write each figure at once."""
    parser = argparse.ArgumentParser(description="Steps by their size, attention alone, and a profile of a step.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--step", choices=get_args(StepKind), default="captured", help="how a step is run")
    parser.add_argument("--cached", type=int, default=CACHED, help="tokens of text before the step")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="put there, beside other records")
    parser.add_argument("--name", help="of the record; SHAPE-DTYPE-STEP-sizes unless given")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write where a step's time goes there")
    arguments = parser.parse_args()
    try:
        check_records(arguments.json)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    quieten()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape
    record: dict[str, Any] = {
        "machine": machine_with(arguments.device),
        **{name: getattr(arguments, name) for name in ("device", "shape", "dtype", "step")},
        "log": [],
        "not_measured": [],
        "steps": [],
        "attention": [],
    }

    def write() -> None:
        put(arguments.json, arguments.name or f"{arguments.shape}-{arguments.dtype}-{arguments.step}-sizes", record)

    with torch.no_grad(), log_lines() as record["log"]:
        model = random_model(arguments.shape, arguments.dtype, arguments.device)
        bandwidth = copy_bandwidth(arguments.device)

        def sizes() -> None:
            record["steps"].append(measure_sizes(model, arguments.cached, bandwidth, arguments.step))
            print(sizes_markdown(record["steps"][0]), flush=True)

        def profiles() -> None:
            tables = ""
            for size in (0, SIZES[-1]) if arguments.profile is not None else ():
                tables += profiled(model, size, arguments.cached, arguments.step)
                arguments.profile.write_text(tables, encoding="utf-8")

        def attention() -> None:
            for rows in (1, SIZES[-1] + 1):
                record["attention"] += measure_attention(model, rows, arguments.cached)

        for measure in (sizes, attention, profiles):
            try:
                measure()
            except Exception as error:  # whatever befalls one, the others are measured
                print_exc()
                reason = next(iter(str(error).strip().splitlines()), "")
                record["not_measured"].append(f"{measure.__name__}: {type(error).__name__}: {reason}")
            write()
    if record["not_measured"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
