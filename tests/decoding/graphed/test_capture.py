"""Capturing, on a stand-in for CUDA that keeps to torch's rules and records what it is asked."""

import contextlib
import gc
from types import SimpleNamespace

import pytest
import torch

from hdraft.decoding.graphed import capture as graphs

DEVICE = torch.device("cuda", 1)


class Cuda:
    """torch.cuda as far as `capture` needs it; as there, a capture that breaks leaves its stream in place."""

    def __init__(self, monkeypatch):
        self.log, self.current, self.capturing, self.waits = [], "user's", False, 0
        for name in ("device", "stream", "graph", "set_stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.waits)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "waits", mode))
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.log.append("clear"), raising=False)
        monkeypatch.setattr(torch.cuda, "Stream", self.new_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.new_graph)
        monkeypatch.setattr(graphs, "_streams", {})
        monkeypatch.setattr(graphs, "_broken", [])

    def new_graph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    def new_stream(self, device):
        assert device == DEVICE
        self.log.append("new stream")
        return SimpleNamespace(wait_stream=lambda stream: self.log.append(f"side waits for {stream}"))

    def current_stream(self, device=None):
        stream = SimpleNamespace(wait_stream=lambda stream: self.log.append(f"{self.current} waits for side"))
        return stream if self.current == "user's" else self.current

    def set_stream(self, stream):
        self.current = "user's"

    @contextlib.contextmanager
    def device(self, device):
        assert device == DEVICE
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, "side"
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local") and not self.capturing
        self.current, self.capturing = "side", True
        try:
            yield
        except Exception:
            self.capturing = False
            # chained to the cause, as torch's is, and not raised from it
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        self.current, self.capturing = "user's", False


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_a_run_is_captured_after_two_to_warm_up_on_one_stream_for_all(cuda):
    runs = []
    for _ in range(2):
        program = graphs.capture(lambda: runs.append((cuda.current, cuda.capturing)), DEVICE, "pool")
        assert cuda.current == "user's"
    assert runs == [("side", False), ("side", False), ("side", True)] * 2
    assert cuda.log.count("new stream") == 1
    program()
    assert cuda.log[-1] == "replay" and len(runs) == 6


def test_what_waits_for_the_device_is_refused_before_the_capture(cuda):
    runs = []

    def waits():
        runs.append(cuda.waits)
        if cuda.waits == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        graphs.capture(waits, DEVICE, "pool")
    assert runs == [0, "error"] and cuda.waits == 0 and not graphs._broken and "clear" not in cuda.log


def test_nothing_is_collected_while_a_graph_is_captured(cuda):
    collects = []
    graphs.capture(lambda: collects.append(gc.isenabled()), DEVICE, "pool")
    assert collects == [True, True, False] and gc.isenabled()
    assert cuda.log.index("clear") < len(cuda.log)


def test_a_failed_capture_leaves_the_stream_and_says_the_cause(cuda):
    def waits():
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    try:
        raise KeyError("the caller's own")
    except KeyError:
        with pytest.raises(RuntimeError, match="operation not permitted"):
            graphs.capture(waits, DEVICE, "pool")
    assert cuda.current == "user's" and not cuda.capturing
    assert len(graphs._broken) == 1  # torch has not forgotten it
    graphs.capture(lambda: None, DEVICE, "pool")
    assert len(graphs._broken) == 1 and not graphs._capturing.locked()


def test_what_fails_while_warming_up_is_no_broken_capture(cuda):
    def fails():
        raise ValueError("unknown")

    with pytest.raises(ValueError, match="unknown"):
        graphs.capture(fails, DEVICE, "pool")
    assert not graphs._broken and not graphs._capturing.locked()


def test_without_cuda_a_run_is_its_own_program():
    def run():
        return None

    assert graphs.capture(run, torch.device("cpu"), None) is run
    assert graphs.graph_pool(torch.device("cpu")) is None
    event = graphs.StreamEvent(torch.device("cpu"))
    event.record()
    event.follow()
    event.wait()
