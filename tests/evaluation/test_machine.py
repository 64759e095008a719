"""The machine behind a figure is named, and nothing about it is made up."""

from pathlib import Path

import pytest
import torch

import hdraft
from hdraft.evaluation.machine import accelerator, driver, machine, machine_with


def test_the_processor_and_versions_are_named() -> None:
    where = machine()
    assert where["processor"] and where["hdraft"] == hdraft.__version__ and where["torch"]


def test_no_accelerator_is_none() -> None:
    assert accelerator("cpu") is None


def test_the_implementations_of_attention_are_those_that_torch_may_choose() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for enabled in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            assert ("cudnn" in machine_with("cpu")["attention"]) == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    where = machine_with("cpu")
    assert where.items() >= machine().items() and "math" in where["attention"]
    assert where["accelerator"] is where["accelerator_bytes"] is None


@pytest.mark.parametrize(
    "script, version", [("echo 570.86.10; echo 570.86.10", "570.86.10"), ("echo no; exit 9", None)]
)
def test_the_driver_is_what_nvidia_smi_says(
    script: str, version: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert driver() == version


def test_no_driver_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver() is None
