"""examples/own_model.py."""

import re
from collections.abc import Callable
from pathlib import Path

from tiny_model import save_tiny_model

from hdraft.demo import MODEL


def test_hdraft_writes_what_generate_writes_in_fewer_passes(run: Callable[..., str]) -> None:
    printed = run("own_model", MODEL)
    assert printed.startswith("def area(width, height):")
    assert "The same tokens." in printed
    assert re.search(r"model\.generate \d+\.\d\d s, hdraft \d+\.\d\d s: 128 tokens in \d+ steps", printed)
    steps = int(re.search(r"in (\d+) steps", printed)[1])  # type: ignore[index]
    assert steps < 64


def test_any_model_and_prompt_will_do(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("own_model", save_tiny_model(tmp_path / "tiny"), "return width")
    assert printed.startswith("return width")
    assert "The same tokens." in printed
