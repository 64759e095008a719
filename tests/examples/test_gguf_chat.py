"""examples/gguf_chat.py, in the environment of `make test-llama-cpp`."""

import subprocess
import sys
from pathlib import Path

import pytest

from hdraft.demo import SMOLLM2
from hdraft.demo.conversion import ConversionError, find_gguf

pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: `make test-llama-cpp` runs this where it is"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "gguf_chat.py"


def test_it_answers_each_line_and_says_what_was_drafted() -> None:
    try:
        file = find_gguf()
    except ConversionError as error:
        pytest.skip(str(error))
    questions = "Name two colours, nothing else.\nSay that again.\n"
    command = [sys.executable, str(EXAMPLE), str(file), str(SMOLLM2 / "database")]
    done = subprocess.run(command, input=questions, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"> {question}" in done.stdout for question in questions.splitlines())
    drafted, steps, accepted = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit())
    assert steps > 0
    assert accepted <= drafted
