"""How often hdraft's output equals `model.generate`'s, by number format: the embedded model, greedy and sampled.

    python benchmarks/precision.py [--device cuda] [--step STEP] [--prompts N] [--json FILE]

float32 must agree everywhere. In float16 and bfloat16 a pass over several tokens rounds differently from a pass over
one, so near-ties can flip. Of each format the first row is with drafts, the second hdraft's loop without.
"""

import argparse
import json
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import HierarchyDrafter, ModelDatabase, generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.demo.comparison import read_prompts
from hdraft.evaluation.machine import accelerator, machine
from hdraft.loading import quieten

NEW_TOKENS = 96
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}


def agreement(dtype: str, device: str, step: StepKind | None, prompts: int | None) -> list[dict[str, Any]]:
    """With drafts and without: texts that are the same, of all, and the tokens up to where each parts, of all."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
    model.to(device)
    vocab_size = model.config.vocab_size
    database = ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size)
    hierarchy = HierarchyDrafter(vocab_size, database)
    hierarchy.warm_up()
    drafters = {True: hierarchy, False: None}
    rows = {draft: dict.fromkeys(("texts", "identical", "tokens", "tokens_before_parting"), 0) for draft in drafters}
    for prompt in read_prompts(PROMPTS)[:prompts]:
        input_ids = tokenizer(prompt.prompt, return_tensors="pt").input_ids.to(device)
        for options in ({"do_sample": False}, SAMPLING):
            torch.manual_seed(0)
            expected = model.generate(input_ids, max_new_tokens=NEW_TOKENS, **options)[0].tolist()
            for draft, drafter in drafters.items():
                torch.manual_seed(0)
                output = generate(model, input_ids, drafter, step=step, max_new_tokens=NEW_TOKENS, **options)
                assert isinstance(output, torch.Tensor)
                ours, row = output[0].tolist(), rows[draft]
                pairs = enumerate(zip(ours, expected, strict=False))
                parted = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(ours), len(expected)))
                row["texts"] += 1
                row["identical"] += ours == expected
                row["tokens"] += len(expected) - input_ids.shape[1]
                row["tokens_before_parting"] += parted - input_ids.shape[1]
    return [{"dtype": dtype, "device": device, "step": step, "draft": draft, **row} for draft, row in rows.items()]


def main() -> None:
    """Measure each format, print a line for each and write what there is; float32 that differs is a failure."""
    parser = argparse.ArgumentParser(description="Agreement with model.generate by number format.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step", choices=get_args(StepKind), help="how a step is run, as hdraft.generate takes it")
    parser.add_argument("--prompts", type=int, metavar="N", help="the first N only")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    quieten()
    runs: list[dict[str, Any]] = []
    for dtype in ("float32", "float16", "bfloat16"):
        runs += agreement(dtype, arguments.device, arguments.step, arguments.prompts)
        for row in runs[-2:]:
            print(row, flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                where = {**machine(), "accelerator": accelerator(arguments.device)}
                json.dump({"machine": where, "runs": runs}, file, indent=1)
                file.write("\n")
    if any(row["identical"] != row["texts"] for row in runs if row["dtype"] == "float32"):
        raise SystemExit("in float32 the output differs from model.generate's")


if __name__ == "__main__":
    main()
