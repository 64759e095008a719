"""A model of your own, with `model.generate` and with hdraft: the same tokens, and the seconds that each took.

python examples/own_model.py MODEL ["The beginning of a text"]      MODEL: a folder, or a name on the Hugging Face Hub
"""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hdraft


def timed(generate: Callable[..., Any], **arguments: Any) -> tuple[list[int], float]:
    """Greedy tokens, and the seconds until they are there."""
    start = perf_counter()
    tokens = generate(**arguments, do_sample=False)[0].tolist()
    return tokens, perf_counter() - start


def main(name: str, prompt: str = "def area(width, height):") -> None:
    """Compare the two on one prompt."""
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model.to(device)
    inputs: Any = tokenizer(prompt, return_tensors="pt").to(device)
    hdraft.generate(model, **inputs, max_new_tokens=16)  # what is prepared once is not timed below

    statistics = hdraft.Statistics()
    plain, plain_seconds = timed(model.generate, **inputs, max_new_tokens=128)
    drafted, seconds = timed(hdraft.generate, model=model, **inputs, statistics=statistics, max_new_tokens=128)
    print(tokenizer.decode(drafted, skip_special_tokens=True))
    print("The same tokens." if drafted == plain else "Other tokens: docs/lossless.md says when that may be.")
    print(f"model.generate {plain_seconds:.2f} s, hdraft {seconds:.2f} s: {statistics}")


if __name__ == "__main__":
    main(*sys.argv[1:])
