"""The machine and the versions that figures were measured on."""

import os
import platform
from importlib.metadata import version

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


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
