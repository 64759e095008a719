"""How far number formats and attention kernels take hdraft's output from `model.generate`'s.

    python benchmarks/precision.py [--device cuda] [--step STEP] [--prompts N] [--json FILE]

`attention`: a pass over a tree, whose rows see different tokens, by every implementation of attention that torch has
here, in half precision. Its logits are held against those of the same weights in float32; an implementation whose error
is more than twice that of torch's plain one is wrong.

`agreement`: how often texts of the embedded model are the same, greedy and sampled. float32 must agree everywhere. In
float16 and bfloat16 a pass over several tokens rounds differently from a pass over one, so near-ties can flip. Of each
format the first row is with drafts, the second hdraft's loop without.
"""

import argparse
import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from hdraft import HierarchyDrafter, ModelDatabase, generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.target import Target
from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.demo.comparison import read_prompts
from hdraft.drafting import DraftTree
from hdraft.evaluation.machine import machine_with
from hdraft.evaluation.records import check_records, put
from hdraft.loading import quieten

NEW_TOKENS = 96
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}

FORMATS = ("float16", "bfloat16")
TEXT, DRAFT = 300, 63
BACKENDS = {
    "math": SDPBackend.MATH,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
WRONG = 2.0
"""An error larger than that of plain attention by so much is no rounding."""


def models() -> dict[str, PreTrainedModel]:
    """The embedded model, and a random one with the heads of large models, of which four share keys and values."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
    )
    torch.manual_seed(0)
    random = cast(Any, AutoModelForCausalLM).from_config(config)
    return {"embedded": AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"), "heads of 128": random}


def tree_logits(model: PreTrainedModel, step: StepKind, backend: SDPBackend | None) -> Tensor:
    """float32[1 + DRAFT, vocabulary], of a pass over a tree; the text before it is read by plain attention.

    Raises:
        RuntimeError: that implementation cannot run it.
    """
    random = np.random.default_rng(0)
    text = random.integers(model.config.vocab_size, size=TEXT)
    parents = [int(random.integers(-1, node)) for node in range(DRAFT)]
    tree = DraftTree(random.integers(model.config.vocab_size, size=DRAFT), parents)
    target = Target(model, step=step, budget=DRAFT, max_length=TEXT + DRAFT + 2)
    with torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            target.forward(text[:-1])
        target.keep([])
        with nullcontext() if backend is None else sdpa_kernel(backend):
            logits = target.forward(text[-1:], tree).float()
        if target.kind != step:
            raise RuntimeError(f"the step was {target.kind}")
    target.close()
    return logits


def attention(name: str, model: PreTrainedModel, dtype: str, device: str, step: StepKind) -> list[dict[str, Any]]:
    """For each implementation its error in a format, as a part of the logits' spread; and as captured steps have it."""
    half = cast(Any, copy.deepcopy(model)).to(device=device, dtype=getattr(torch, dtype))
    exact = tree_logits(copy.deepcopy(half).float(), "dynamic", SDPBackend.MATH)
    rows: list[dict[str, Any]] = []
    tried: list[tuple[str, StepKind, SDPBackend | None]] = [(name, "dynamic", each) for name, each in BACKENDS.items()]
    for backend, kind, context in [*tried, ("its own", step, None)]:
        row: dict[str, Any] = {"model": name, "dtype": dtype, "step": kind, "attention": backend}
        try:
            error = (tree_logits(half, kind, context) - exact).square().mean().sqrt() / exact.std()
            row["error"] = float(error) if bool(error.isfinite()) else None
            row["right"] = row["error"] is not None and row["error"] <= WRONG * (rows[0]["error"] if rows else 1.0)
        except RuntimeError as reason:
            row["cannot"] = next(iter(str(reason).splitlines()), "")
        rows.append(row)
    return rows


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
    """Measure, print a line for each figure and write what there is; what must agree and does not is a failure."""
    parser = argparse.ArgumentParser(description="How far formats and attention kernels take the output.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step", choices=get_args(StepKind), help="how a step is run, as hdraft.generate takes it")
    parser.add_argument("--prompts", type=int, metavar="N", help="the first N only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    try:
        if arguments.json:
            check_records(arguments.json)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    quieten()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape
    where = {"machine": machine_with(arguments.device), "device": arguments.device}
    rows: dict[str, list[dict[str, Any]]] = {"attention": [], "agreement": []}

    def report(of: str, new: list[dict[str, Any]]) -> None:
        rows[of] += new
        for row in new:
            print(of, row, flush=True)
        if arguments.json:
            put(arguments.json, of, where | {"rows": rows[of]})

    for name, model in models().items():
        for dtype in FORMATS:
            report("attention", attention(name, model, dtype, arguments.device, arguments.step or "dynamic"))
    for dtype in ("float32", *FORMATS):
        report("agreement", agreement(dtype, arguments.device, arguments.step, arguments.prompts))
    if any(row["identical"] != row["texts"] for row in rows["agreement"] if row["dtype"] == "float32"):
        raise SystemExit("in float32 the output differs from model.generate's")
    if not all(row.get("right", True) for row in rows["attention"]):
        raise SystemExit("an implementation of attention is off by more than rounding")


if __name__ == "__main__":
    main()
