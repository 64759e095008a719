"""Settings of all tests, which begin with everything compiled: a request that lacks kernels does without drafts."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The machines that run these tests are noisy, and a first call compiles: no test asserts a time.
settings.register_profile("hdraft", deadline=None)
settings.load_profile("hdraft")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # pytest-xdist's own processes come later
        return
    for vocab_size in (30_000, 100_000):  # ids of two bytes and of four
        command = [sys.executable, "-m", "hdraft.drafting.compile_kernels", str(vocab_size), "--all"]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
