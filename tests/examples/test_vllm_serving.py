"""examples/vllm_serving.py: with vLLM where it is installed, else as far as its arguments reach the proposer."""

import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hdraft.demo import MODEL, MODEL_DATABASE

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm_serving.py"


class FakeEngine:
    """Makes the proposer that the arguments name, as vLLM's worker does, and asks it for a draft of each prompt."""

    def __init__(self, model: str, speculative_config: dict[str, Any], additional_config: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        assert speculative_config["method"] == "custom_class"
        module, _, name = speculative_config["model"].rpartition(".")
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        config = SimpleNamespace(
            model_config=SimpleNamespace(
                get_vocab_size=lambda: len(self.tokenizer),
                max_model_len=512,
                skip_tokenizer_init=False,
                tokenizer=model,
                tokenizer_revision=None,
                trust_remote_code=False,
            ),
            speculative_config=SimpleNamespace(num_speculative_tokens=speculative_config["num_speculative_tokens"]),
            parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, data_parallel_index=0),
            lora_config=None,
            additional_config=additional_config,
        )
        self.proposer = getattr(importlib.import_module(module), name)(config)

    def generate(self, prompts: list[str], sampling: dict[str, Any]) -> list[Any]:
        assert sampling == {"temperature": 0, "max_tokens": 96}
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        tokens = np.zeros((len(ids), 512), np.int32)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = each
        lengths = np.array([len(each) for each in ids], np.int32)
        drafts = self.proposer.propose([each[-1:] for each in ids], lengths, tokens)
        texts = map(self.tokenizer.decode, drafts)
        return [
            SimpleNamespace(prompt=prompt, outputs=[SimpleNamespace(text=text)])
            for prompt, text in zip(prompts, texts, strict=True)
        ]


def test_its_arguments_make_a_proposer_that_drafts_from_the_database(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeEngine, SamplingParams=dict))  # type: ignore[arg-type]
    printed = run("vllm_serving", MODEL, MODEL_DATABASE)
    prompts = runpy.run_path(str(EXAMPLE))["PROMPTS"]
    assert all(prompt in printed for prompt in prompts)
    assert len(printed) > sum(len(prompt) + 1 for prompt in prompts), "nothing was drafted"


def test_databases_that_are_not_given_are_not_named() -> None:
    arguments = runpy.run_path(str(EXAMPLE))["engine_arguments"]
    assert arguments("M")["additional_config"] == {"hdraft": {}}
    assert arguments("M", "D_m", "D_s")["additional_config"] == {
        "hdraft": {"model_database": "D_m", "statistics_database": "D_s"}
    }


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see `make test-vllm`")
def test_vllm_completes_the_prompts() -> None:
    environment = os.environ | {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, str(EXAMPLE), str(MODEL), str(MODEL_DATABASE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "def area(width, height):" in done.stdout
