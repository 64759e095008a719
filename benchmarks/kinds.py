"""The speed of each way of running a step: the embedded model, greedy and sampled, without drafts and with.

    python benchmarks/kinds.py [--device cuda] [--rounds 5] [--json FILE]

Milliseconds a token and a step are medians over the rounds; `ready` is what the first round took longer than
the others: compilation, captures, costs. Sampling waits for the device at every token, not once a step. The
texts must be those of `model.generate`.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import HierarchyDrafter, ModelDatabase, Statistics, generate
from hdraft.decoding import StepKind
from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.demo.comparison import read_prompts
from hdraft.evaluation.machine import machine

NEW_TOKENS = 96
GREEDY: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
SAMPLED: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "temperature": 0.3, "top_k": 50}


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of step, without drafts and with."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.to(device)
    vocab_size = model.config.vocab_size
    database = ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size)
    prompts = [tokenizer(each.prompt, return_tensors="pt").input_ids.to(device) for each in read_prompts(PROMPTS)]

    def ordinary(prompt: torch.Tensor, options: dict[str, Any]) -> list[int]:
        torch.manual_seed(0)
        text: list[int] = model.generate(prompt, **options)[0].tolist()
        return text

    expected = {
        sampled: [ordinary(each, SAMPLED if sampled else GREEDY) for each in prompts] for sampled in (False, True)
    }

    def run(step: StepKind, draft: bool, sampled: bool) -> tuple[float, Statistics, int]:
        statistics, same = Statistics(), 0
        options = SAMPLED if sampled else GREEDY
        drafter = None
        if draft:  # anew: no round profits from another's experience
            drafter = HierarchyDrafter(vocab_size, database)
            drafter.warm_up()
        started = perf_counter()
        for prompt, text in zip(prompts, expected[sampled], strict=True):
            torch.manual_seed(0)
            output = generate(model, prompt, drafter, step=step, statistics=statistics, **options)
            assert isinstance(output, torch.Tensor)
            same += output[0].tolist() == text
        return perf_counter() - started, statistics, same

    rows: list[dict[str, Any]] = [
        {"step": kind, "draft": draft, "sampled": sampled}
        for kind in reversed(get_args(StepKind))
        if kind != "exact" or device.startswith("cuda")
        for draft in (False, True)
        for sampled in (False, True)
    ]
    for row in rows:  # one after the other: a model keeps the programs of one kind at a time
        first, *measured = (run(row["step"], row["draft"], row["sampled"]) for _ in range(1 + rounds))
        seconds = median(seconds for seconds, _, _ in measured)
        row |= {
            "ready": max(first[0] - seconds, 0.0),
            "ms_token": median(1000 * seconds / statistics.tokens for seconds, statistics, _ in measured),
            "ms_step": median(1000 * seconds / statistics.steps for seconds, statistics, _ in measured),
            "mat": median(statistics.mean_accepted_tokens for _, statistics, _ in measured),
            "texts": len(prompts),
            "identical": min(same for _, _, same in measured),
        }
    for row in rows:
        row["speedup"] = rows[row["sampled"]]["ms_token"] / row["ms_token"]
    return rows


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description="Ways of running a step, on the embedded model.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    rows = measure(arguments.device, arguments.rounds)
    table = Table(
        "step", "drafts", "sampled", "ms a token", "speed-up", "ms a step", "MAT", "first round +s", "same text"
    )
    for row in rows:
        figures = (f"{row['ms_token']:.2f}", f"{row['speedup']:.2f}", f"{row['ms_step']:.2f}", f"{row['mat']:.2f}")
        same = f"{row['identical']}/{row['texts']}"
        table.add_row(
            row["step"],
            "hd" if row["draft"] else "none",
            "yes" if row["sampled"] else "",
            *figures,
            f"{row['ready']:.1f}",
            same,
        )
    Console().print(table)
    if arguments.json:
        result = {"machine": machine(), "device": arguments.device, "threads": torch.get_num_threads(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
