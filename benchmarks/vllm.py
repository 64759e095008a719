"""The same prompts through one vLLM engine after another: no speculation, vLLM's n-gram drafter, suffix decoding, ours.

    python benchmarks/vllm.py [--json FILE] [--dtype bfloat16] [--rounds N]

The embedded model on this machine's processor (`make vllm` sets up what this runs in). Each method has an engine in a
process of its own, and all of them live at once: the rounds alternate between them, so that what the machine does
beside them touches all alike. A figure is the median over the rounds, and throughputs are ratios within a round. Suffix
decoding runs where arctic-inference is installed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.evaluation.machine import machine

TOKENS = 8
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": TOKENS, "prompt_lookup_min": 2, "prompt_lookup_max": 5},
    "suffix": {"method": "suffix", "num_speculative_tokens": TOKENS},
    "hdraft": {
        "method": "custom_class",
        "model": "hdraft.engines.vllm.HierarchyProposer",
        "num_speculative_tokens": TOKENS,
    },
}
_NEW_TOKENS = 96


def prompts(count: int) -> list[str]:
    """Beginnings for the embedded model: those of the demonstration, each cut at several places."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    cut = [text[: len(text) * (8 - i // len(texts) % 7) // 8] for i, text in enumerate(texts * (count // len(texts) + 1))]
    return cut[:count]
