"""Whether `hdraft.generate` gives the tokens of `model.generate` on a device: small models of every family, in float32.

    python benchmarks/lossless.py [--device cuda] [--families GROUP…] [--steps STEP…] [--seconds N] [--json FILE]

The models, and the drafter that hides the right tokens among wrong ones, are those of `tests/decoding`; pytest is not
needed. Each model is tried greedily and sampled, in every way to run a step that is asked for; `ran` counts the forward
passes by the way they were really run. What is known is written after every family. What an error on a GPU leaves
behind can spoil every later family of the process: so "experts", those likeliest to bring one about, go into another.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import torch
from transformers import PreTrainedModel

from hdraft import GenerationStats, generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.models.support import restore_frequencies
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.records import check_records, put
from hdraft.loading import quieten

TESTS = Path(__file__).resolve().parents[1] / "tests" / "decoding"
NEW_TOKENS = 72
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 40, "repetition_penalty": 1.1}

EXPERTS = ("mixtral", "mixtral-sliding", "deepseek-v3", "gpt-oss", "llama4", "falcon-rotary", "falcon-rotary-new")
"""Mixtures of experts, and models that index with lists: what they do waits for the device."""


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
            drafter, statistics = oracle(vocab_size, expected, ids.shape[1]), GenerationStats()
            torch.manual_seed(1)
            output = generate(
                model, ids, drafter, step=step, statistics=statistics, max_new_tokens=NEW_TOKENS, **options
            )
            assert isinstance(output, torch.Tensor)
            ours = output[0].tolist()
            pairs = enumerate(zip(ours, expected, strict=False))
            parted = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(ours), len(expected)))
            rows.append(
                {
                    "step": step,
                    "ran": statistics.kinds,
                    "sampled": bool(options),
                    "identical": ours == expected,
                    "tokens_before_parting": parted - ids.shape[1],
                    "passes": len(drafter.extended),
                }
            )
    return rows


def chosen(groups: Sequence[str], families: Sequence[str]) -> list[str]:
    """The families of these names, or of the groups "dense", "experts" and "all".

    Raises:
        ValueError: there is no such family.
    """
    experts = [name for name in families if name in EXPERTS]
    named = {"all": list(families), "experts": experts, "dense": [name for name in families if name not in experts]}
    unknown = [group for group in groups if group not in (*named, *families)]
    if unknown:
        raise ValueError(f"no family {unknown[0]}: there are {', '.join(named)}, or {', '.join(families)}")
    return list(dict.fromkeys(name for group in groups for name in named.get(group, [group])))


def told(rows: Sequence[dict[str, Any]]) -> str:
    """A family in a few words."""
    different = [f"{row['step']}, sampled {row['sampled']}, differs" for row in rows if not row["identical"]]
    replaced = {row["step"]: [kind for kind in row["ran"] if kind != "dynamic"] for row in rows}
    others = [
        f"{step} was {' and '.join(ran) or 'dynamic'}" for step, ran in replaced.items() if ran != [step] != ["dynamic"]
    ]
    return "; ".join([*(different or ["the same"]), *others])


def device_lost(device: str) -> bool:
    """Whether an error has spoilt the GPU for this process."""
    try:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def main() -> None:
    """Compare, print a line a family, and write it; a difference or a failure makes the exit status 1."""
    parser = argparse.ArgumentParser(description="The tokens of model.generate, on a device, in float32.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--families", nargs="+", default=["all"], metavar="GROUP", help="dense, experts, all; or names")
    parser.add_argument("--steps", nargs="+", choices=get_args(StepKind), default=["dynamic", "captured"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no family after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there too, beside records of other groups")
    arguments = parser.parse_args()
    begin = perf_counter()
    os.environ["HDRAFT_DEVICE"] = arguments.device
    sys.path.insert(0, str(TESTS))
    architectures, oracle = import_module("architectures"), import_module("oracle")
    try:
        names = chosen(arguments.families, [*architectures.FAMILIES, *architectures.UNLISTED])
        if arguments.json:
            check_records(arguments.json)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    quieten()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape
    HierarchyDrafter(architectures.VOCABULARY).warm_up()
    families: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    record: dict[str, Any] = {"machine": machine_with(arguments.device), "device": arguments.device, "dtype": "float32"}
    lost = None

    def summary() -> str:
        rows = [row for own in families.values() for row in own]
        same = sum(row["identical"] for row in rows)
        said = [f"{same} of {len(rows)} outputs of {len(families)} families are those of model.generate"]
        said += [f"{name} failed" for name in failed]
        return "; ".join(said + ([f"left out: {', '.join(left_out)}"] if left_out else []))

    def write() -> None:
        if arguments.json:
            own = {"summary": summary(), "families": families, "failed": failed, "left_out": left_out}
            put(arguments.json, " ".join(arguments.families), record | own)

    for name in names:
        reason = architectures.why_not(name)
        if lost is not None:
            reason = f"the GPU was of no more use to this process after {lost}"
        elif perf_counter() - begin > arguments.seconds:
            reason = f"the {arguments.seconds:.0f} seconds given were over"
        if reason is not None:
            left_out[name] = reason
            continue
        try:
            model = architectures.build(name, architectures.attentions(name)[-1])
            families[name] = compare(model, arguments.steps, oracle.OracleDrafter, architectures.VOCABULARY)
            print(f"{name}: {told(families[name])}", flush=True)
        except Exception as error:  # whatever befalls one family, the others are compared
            failed[name] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            print(f"{name}: failed: {failed[name]}", flush=True)
            lost = name if device_lost(arguments.device) else None
        architectures.build.cache_clear()
        write()
    write()
    print(summary())
    if failed or not all(row["identical"] for own in families.values() for row in own):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
