"""How many texts are the same with drafts and without, by captured steps and by exact ones, in half precision.

    python benchmarks/gpu/exact.py --shape llama-2-7b --dtype float16 --json FILE

A random model of that shape continues random prompts, every other one sampled. Then it does so once more, with its own
text as a reference in which every eighth token is another: most drafts are accepted, and some are not. In float32 the
texts would be the same in any case; in half precision a step over many rows rounds otherwise than one over few, and a
token that is all but as likely as another can change places with it, unless steps are exact.
"""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, random_model
from torch import Tensor
from transformers import PreTrainedModel

from hdraft import HierarchyDrafter, Statistics, generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.records import check_records, put
from hdraft.loading import quieten

KINDS: tuple[StepKind, ...] = ("exact", "captured")

PROMPTS = (20, 400)
"""The fewest tokens of a prompt, and more than the most."""

WRONG = 8
"""Of so many tokens of the reference, one is another."""

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 50}


def compare(
    model: PreTrainedModel, step: StepKind, tokens: int, number: int, drafter: HierarchyDrafter
) -> tuple[bool, int, Statistics]:
    """Whether a text is the same, how many tokens are before the two part, and what drafting did."""
    random = np.random.default_rng(number)
    ids = random.integers(drafter.vocab_size, size=int(random.integers(*PROMPTS)))
    prompt = torch.from_numpy(ids)[None].to(model.device)
    options: dict[str, Any] = {"max_new_tokens": tokens, "step": step, "attention_mask": torch.ones_like(prompt)}
    options |= SAMPLING if number % 2 else {}
    statistics = Statistics()
    torch.manual_seed(number)
    alone = generate(model, prompt, None, **options)
    assert isinstance(alone, Tensor)
    reference = alone[0, len(ids) :].numpy(force=True).copy()
    reference[WRONG - 1 :: WRONG] = random.integers(drafter.vocab_size, size=len(reference[WRONG - 1 :: WRONG]))
    torch.manual_seed(number)
    drafted = generate(model, prompt, drafter, references=[reference], statistics=statistics, **options)
    assert isinstance(drafted, Tensor)
    parted = (alone != drafted)[0].nonzero()
    return len(parted) == 0, (int(parted[0]) if len(parted) else alone.shape[1]) - len(ids), statistics


def main() -> None:
    """Compare text after text, and write what there is after each."""
    parser = argparse.ArgumentParser(description="Texts that are the same with drafts and without, in half precision.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no text after so many")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="put the figures there")
    arguments = parser.parse_args()
    if not arguments.device.startswith("cuda"):
        parser.error("exact steps take a GPU")
    try:
        check_records(arguments.json)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    quieten()
    model = random_model(arguments.shape, arguments.dtype, arguments.device)
    drafter = HierarchyDrafter.for_model(model)
    drafter.recycles = False  # a random model's candidates say nothing
    drafter.warm_up()
    begin = perf_counter()
    rows: list[dict[str, Any]] = []
    for share, step in enumerate(KINDS, 1):
        row = {"shape": arguments.shape, "dtype": arguments.dtype, "step": step}
        row |= dict.fromkeys(("texts", "identical", "tokens", "tokens_before_parting"), 0)
        rows.append(row)
        steps = 0
        for number in range(arguments.texts):
            if perf_counter() - begin > arguments.seconds * share / len(KINDS):
                break
            same, parted, statistics = compare(model, step, arguments.tokens, number, drafter)
            steps += statistics.steps
            row["texts"] += 1
            row["identical"] += same
            row["tokens"] += arguments.tokens
            row["tokens_before_parting"] += parted
            row["mat"] = row["tokens"] / steps
            where = {"machine": machine_with(arguments.device), "rows": rows}
            put(arguments.json, f"exact: {arguments.shape}, {arguments.dtype}", where)
        print(row, flush=True)
    exact = rows[KINDS.index("exact")]
    if not exact["texts"] or exact["mat"] < 2:
        raise SystemExit("next to nothing was compared")
    if exact["identical"] != exact["texts"]:
        raise SystemExit("exact steps gave another text with drafts")


if __name__ == "__main__":
    main()
