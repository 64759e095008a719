"""A step as a CUDA graph, and compiled: what torch offers against the time between small kernels."""

from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Program = Callable[[], None]
"""Reads and writes the same memory at every call."""


_numbers = count()


def capture(run: Program, device: torch.device, pool: Any) -> Program:
    """`run` as a CUDA graph, replayed by one launch; on a device without graphs, `run` itself.

    Args:
        run: has run before, so that nothing is set up in it any more; must not wait for the device.
        device: where it works.
        pool: the memory that graphs share, from `graph_pool`; they are not to be replayed at the same time.

    Raises:
        RuntimeError: `run` does what a graph cannot hold.
    """
    if device.type != "cuda":
        return run
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(2):  # libraries set themselves up for a new stream
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    # other threads may allocate memory meanwhile
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        run()
    return graph.replay


def graph_pool(device: torch.device) -> Any:
    """Memory for the graphs of one sequence; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def compiled(forward: FunctionType, device: torch.device) -> Callable[..., Tensor]:
    """`forward` compiled as a whole at its first call; what it cannot compile raises there.

    Each result is compiled by itself: torch counts compilations by a function's code, and gives up after eight.
    """
    name = f"{forward.__name__}_{next(_numbers)}"
    own = FunctionType(forward.__code__.replace(co_name=name), forward.__globals__, name)
    # on a GPU, products of a matrix and a single row come near the memory's speed only if their kernels are tuned
    options: Any = {"coordinate_descent_tuning": True} if device.type == "cuda" else None
    return torch.compile(own, fullgraph=True, options=options)
