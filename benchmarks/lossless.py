"""Whether `hdraft.generate` gives the tokens of `model.generate` on a device: small models of every family, in float32.

    python benchmarks/lossless.py [--device cuda] [--steps STEP…] [--seconds N] [--json FILE]

The models, and the drafter that hides the right tokens among wrong ones, are those of `tests/decoding`; pytest is not
needed. Each model is tried greedily and sampled, in every way to run a step that is asked for.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import torch
from transformers import PreTrainedModel

from hdraft import generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.models.support import restore_frequencies
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import accelerator, machine
from hdraft.loading import quieten

TESTS = Path(__file__).resolve().parents[1] / "tests" / "decoding"
NEW_TOKENS = 72
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 40, "repetition_penalty": 1.1}


def compare(model: PreTrainedModel, steps: Sequence[StepKind], oracle: Any, vocab_size: int) -> list[dict[str, Any]]:
    """For each way to run a step, greedy and sampled, whether the tokens are the same, and how many are up to there."""
    ids = torch.randint(2, vocab_size, (1, 24), generator=torch.Generator().manual_seed(5)).to(model.device)
    rows = []
    options: dict[str, Any]
    for options in ({}, SAMPLING):
        restore_frequencies(model.modules())  # model.generate leaves those of its longest text behind
        torch.manual_seed(1)
        expected = cast(Any, model).generate(ids, max_new_tokens=NEW_TOKENS, **options)[0].tolist()
        for step in steps:
            drafter = oracle(vocab_size, expected, ids.shape[1])
            torch.manual_seed(1)
            output = generate(model, ids, drafter, step=step, max_new_tokens=NEW_TOKENS, **options)
            assert isinstance(output, torch.Tensor)
            ours = output[0].tolist()
            pairs = enumerate(zip(ours, expected, strict=False))
            parted = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(ours), len(expected)))
            rows.append(
                {
                    "step": step,
                    "sampled": bool(options),
                    "identical": ours == expected,
                    "tokens_before_parting": parted - ids.shape[1],
                    "passes": len(drafter.extended),
                }
            )
    return rows


def main() -> None:
    """Compare, print a line a family, and write it; any difference is a failure."""
    parser = argparse.ArgumentParser(description="The tokens of model.generate, on a device, in float32.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", nargs="+", choices=get_args(StepKind), default=["dynamic", "captured"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no family after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
    arguments = parser.parse_args()
    quieten()
    os.environ["HDRAFT_DEVICE"] = arguments.device
    sys.path.insert(0, str(TESTS))
    architectures, oracle = import_module("architectures"), import_module("oracle")
    HierarchyDrafter(architectures.VOCABULARY).warm_up()
    begin = perf_counter()
    families: dict[str, list[dict[str, Any]]] = {}
    left_out = []
    for name in (*architectures.FAMILIES, *architectures.UNLISTED):
        if perf_counter() - begin > arguments.seconds:
            left_out.append(name)
            continue
        model = architectures.build(name, architectures.attentions(name)[-1])
        families[name] = compare(model, arguments.steps, oracle.OracleDrafter, architectures.VOCABULARY)
        architectures.build.cache_clear()
        different = [f"{row['step']}, sampled {row['sampled']}" for row in families[name] if not row["identical"]]
        print(f"{name}: {'; '.join(different) or 'the same'}", flush=True)
    rows = [row for own in families.values() for row in own]
    same = sum(row["identical"] for row in rows)
    summary = f"{same} of {len(rows)} outputs of {len(families)} families are those of model.generate"
    print(summary + (f"; no time for {', '.join(left_out)}" if left_out else ""))
    if arguments.json:
        where = {**machine(), "accelerator": accelerator(arguments.device)}
        record = {"machine": where, "device": arguments.device, "dtype": "float32", "summary": summary}
        text = json.dumps(record | {"no_time_for": left_out, "families": families}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if same != len(rows):
        raise SystemExit("there are outputs that differ")


if __name__ == "__main__":
    main()
