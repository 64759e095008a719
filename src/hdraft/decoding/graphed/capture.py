"""A step as a CUDA graph, and compiled: what torch offers against the time between small kernels."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FunctionType
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Program = Callable[[], None]
"""Reads and writes the same memory at every call."""

_capturing = threading.Lock()  # only one capture may be under way in a process
_streams: dict[torch.device, torch.cuda.Stream] = {}  # graphs share memory only if they were captured on one stream
_broken: list[Any] = []  # torch still points to a graph whose capture could not be ended
_numbers = count()


def capture(run: Program, device: torch.device, pool: Any) -> Program:
    """`run` as a CUDA graph, replayed by one launch; on a device without graphs, `run` itself.

    Args:
        run: has run before, so that nothing is set up in it any more; must not wait for the device, which is tried
            before the capture: one that breaks off leaves torch's random numbers in disorder before torch 2.13.
        device: where it works.
        pool: the memory that graphs share, from `graph_pool`; they are not to be replayed at the same time. Of no
            more use if this raises.

    Raises:
        Exception: what `run` raises under capture, where it does what a graph cannot hold.
    """
    if device.type != "cuda":
        return run
    with _capturing, torch.cuda.device(device):
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        handled = sys.exception()
        graph, stream, current = torch.cuda.CUDAGraph(), _streams[device], torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()  # libraries set themselves up for a new stream
            with _nothing_waits():
                run()
        current.wait_stream(stream)
        # so that the graph's workspaces lie in its own memory: other graphs of the process drop those of before
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # other threads may allocate memory meanwhile
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                run()
        except BaseException as error:
            torch.cuda.set_stream(current)  # what torch leaves undone when a capture cannot be ended
            _broken.append(graph)
            while error.__context__ not in (None, handled):  # the first of them is the cause
                error = error.__context__
            raise error from None
    return graph.replay


@contextmanager
def _nothing_waits() -> Iterator[None]:
    """Within it, torch raises where the host would wait for the device; it knows one setting for all threads."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within it, no garbage is collected: freeing another graph, or a tensor of it, would break a capture off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_cudnn_lock = threading.Lock()
_cudnn_off = 0
_cudnn_before = True


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Within it, attention is not computed by cuDNN, which builds a plan for each new shape, tens of milliseconds long.

    Torch knows one setting for all threads: it holds while any thread needs it.
    """
    global _cudnn_off, _cudnn_before
    if device.type != "cuda":
        yield
        return
    with _cudnn_lock:
        if not _cudnn_off:
            _cudnn_before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
            torch.backends.cuda.enable_cudnn_sdp(False)
        _cudnn_off += 1
    try:
        yield
    finally:
        with _cudnn_lock:
            _cudnn_off -= 1
            if not _cudnn_off:
                torch.backends.cuda.enable_cudnn_sdp(_cudnn_before)


def graph_pool(device: torch.device) -> Any:
    """Memory for graphs of one sequence; None where there are no graphs."""
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


class StreamEvent:
    """A point in a device's queue of work, for another stream or the host to wait for; on a CPU nothing is queued."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.device = device

    def record(self) -> None:
        """Set it behind all that the current stream has been given until now."""
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(self.device))

    def follow(self) -> None:
        """Let the current stream wait for it."""
        if self.event is not None:
            torch.cuda.current_stream(self.device).wait_event(self.event)

    def wait(self) -> None:
        """Let the host wait for it."""
        if self.event is not None:
            self.event.synchronize()


class ReadBack:
    """Results on their way from the device to the host, which need not wait until it needs them.

    Attributes:
        begun: whether there are any.
    """

    def __init__(self, device: torch.device) -> None:
        self.begun = False
        self._arrived = StreamEvent(device)
        self._here: list[Tensor] = []

    def begin(self, *results: Tensor) -> None:
        """Have them copied, behind all that the current stream has been given until now."""
        queued = self._arrived.event is not None
        self._here = [each.to("cpu", non_blocking=queued) for each in results]  # then to pinned memory
        self._arrived.record()
        self.begun = True

    def wait(self) -> list[npt.NDArray[Any]]:
        """The results, as soon as they are there."""
        self._arrived.wait()
        return [each.numpy() for each in self._here]

    def drop(self) -> None:
        """Forget them."""
        self.begun, self._here = False, []
