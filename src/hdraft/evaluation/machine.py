"""The machine and the versions that figures were measured on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import hdraft


def machine() -> dict[str, str | int | None]:
    """The processor, its cores, and the versions of what runs on it."""
    packages = ("numpy", "numba", "torch", "transformers")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "hdraft": hdraft.__version__,  # which need not be installed
    }


def accelerator(device: str) -> str | None:
    """The name of the GPU that "cuda", "cuda:1" or, if there is one, "auto" stands for; None where that is none."""
    import torch

    if not torch.cuda.is_available() or not device.startswith(("auto", "cuda")):
        return None
    return torch.cuda.get_device_name(None if device == "auto" else device)


def machine_with(device: str) -> dict[str, Any]:
    """As `machine`, and what matters where a GPU does the work: its name, memory and driver, versions, attention.

    `attention` names the implementations that torch may choose from for `scaled_dot_product_attention` right now.
    """
    import torch

    name = accelerator(device)
    allowed: Any = torch.backends.cuda
    attention = {
        "flash": allowed.flash_sdp_enabled(),
        "memory-efficient": allowed.mem_efficient_sdp_enabled(),
        "cudnn": allowed.cudnn_sdp_enabled(),
        "math": allowed.math_sdp_enabled(),
    }
    return machine() | {
        "accelerator": name,
        "accelerator_bytes": None if name is None else torch.cuda.get_device_properties(device).total_memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "attention": [implementation for implementation, enabled in attention.items() if enabled],
    }


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return next(iter(answer.stdout.split()), None) if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
