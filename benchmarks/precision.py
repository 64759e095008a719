"""How often hdraft's output equals `model.generate`'s, by number format: the embedded model, greedy and sampled.

    python benchmarks/precision.py [--device cuda] [--json FILE]

float32 must agree everywhere. In float16 and bfloat16 a pass over several tokens rounds differently from a pass over
one, so near-ties can flip. Of each format the first row is with drafts, the second hdraft's loop without.
"""

import argparse
import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import HierarchyDrafter, ModelDatabase, generate
from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.demo.comparison import read_prompts
from hdraft.evaluation.machine import machine

NEW_TOKENS = 96
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}


def agreement(dtype: str, device: str, draft: bool) -> dict[str, int | str | bool]:
    """Texts that are the same, of all, and the tokens up to where each parts, of all."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
    model.to(device)
    vocab_size = model.config.vocab_size
    database = ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size)
    drafter = HierarchyDrafter(vocab_size, database) if draft else None
    same = texts = same_tokens = tokens = 0
    for prompt in read_prompts(PROMPTS):
        input_ids = tokenizer(prompt.prompt, return_tensors="pt").input_ids.to(device)
        for options in ({"do_sample": False}, SAMPLING):
            torch.manual_seed(0)
            expected = model.generate(input_ids, max_new_tokens=NEW_TOKENS, **options)[0].tolist()
            torch.manual_seed(0)
            output = generate(model, input_ids, drafter, max_new_tokens=NEW_TOKENS, **options)
            assert isinstance(output, torch.Tensor)
            ours = output[0].tolist()
            parted = next((i for i, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]), None)
            same += ours == expected
            texts += 1
            same_tokens += (len(expected) if parted is None else parted) - input_ids.shape[1]
            tokens += len(expected) - input_ids.shape[1]
    return {
        "dtype": dtype,
        "device": device,
        "draft": draft,
        "texts": texts,
        "identical": same,
        "tokens": tokens,
        "tokens_before_parting": same_tokens,
    }


def main() -> None:
    """Measure each format and print a line for each."""
    parser = argparse.ArgumentParser(description="Agreement with model.generate by number format.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    runs = []
    for dtype in ("float32", "float16", "bfloat16"):
        for draft in (True, False):
            runs.append(agreement(dtype, arguments.device, draft))
            print(runs[-1], flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "runs": runs}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
