"""Puts the scripts of `benchmarks/gpu` where they find each other, as Python does when it runs one of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"))
