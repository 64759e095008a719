"""A front end that people use, as it is: `llm`, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Serve
from templates import TURNS, told

QUESTION = "return the name of the class"


def test_llm_prompts_streams_and_goes_on(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="llm is not installed")
    server = serve()
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: hd\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    )
    # without plugins: the package with the demonstration's model is one, and lacks what it needs for that
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "prompt", *arguments, "-o", "max_tokens", "24"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    def expected(*messages: str) -> str:
        turns = [{"role": ("user", "assistant")[place % 2], "content": each} for place, each in enumerate(messages)]
        return told(server.model, server.tokenizer, TURNS, turns, max_new_tokens=24)

    first = llm("-m", "hd", QUESTION)
    assert first == expected(QUESTION)
    assert llm("-m", "hd", "--no-stream", QUESTION) == first
    llm("-m", "hd", QUESTION)
    assert llm("-c", "and of its module?") == expected(QUESTION, first, "and of its module?")
