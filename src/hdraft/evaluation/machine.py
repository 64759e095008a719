"""What figures were measured on."""

import os
import platform
from importlib.metadata import version


def machine() -> dict[str, str | int | None]:
    """The processor, its cores, and the versions of what runs on it."""
    packages = ("numpy", "numba", "torch", "transformers", "hdraft")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
