"""What each way of running a step is worth: the embedded model, ordinary decoding and hdraft, each kind by turns.

    python benchmarks/kinds.py [--device cuda] [--rounds 5] [--json FILE]

Milliseconds a token and a step are medians over the rounds; `ready` is the time until the first text is there, with
compilation and captures, less that of a later one. The texts must be those of `model.generate`.
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


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of step, without drafts and with."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.to(device)
    vocab_size = model.config.vocab_size
    drafter = HierarchyDrafter(vocab_size, ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size))
    prompts = [tokenizer(each.prompt, return_tensors="pt").input_ids.to(device) for each in read_prompts(PROMPTS)]
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = [model.generate(each, **options)[0].tolist() for each in prompts]

    def run(kind: StepKind, draft: bool) -> tuple[float, Statistics, int]:
        statistics, same, started = Statistics(), 0, perf_counter()
        for prompt, text in zip(prompts, expected, strict=True):
            output = generate(model, prompt, drafter if draft else None, step=kind, statistics=statistics, **options)
            assert isinstance(output, torch.Tensor)
            same += output[0].tolist() == text
        return perf_counter() - started, statistics, same

    rows = [{"step": kind, "draft": draft} for kind in reversed(get_args(StepKind)) for draft in (False, True)]
    for row in rows:
        row["ready"] = run(row["step"], row["draft"])[0]
    runs: list[list[tuple[float, Statistics, int]]] = [[] for _ in rows]
    for _ in range(rounds):
        for row, measured in zip(rows, runs, strict=True):
            measured.append(run(row["step"], row["draft"]))
    for row, measured in zip(rows, runs, strict=True):
        seconds = median(seconds for seconds, _, _ in measured)
        row |= {
            "ready": max(row["ready"] - seconds, 0.0),
            "ms_token": median(1000 * seconds / statistics.tokens for seconds, statistics, _ in measured),
            "ms_step": median(1000 * seconds / statistics.steps for seconds, statistics, _ in measured),
            "mat": median(statistics.mean_accepted_tokens for _, statistics, _ in measured),
            "texts": len(prompts),
            "identical": min(same for _, _, same in measured),
        }
    for row in rows:
        row["speedup"] = rows[0]["ms_token"] / row["ms_token"]
    return rows


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description="Ways of running a step, on the embedded model.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    rows = measure(arguments.device, arguments.rounds)
    table = Table("step", "drafts", "ms a token", "speed-up", "ms a step", "MAT", "ready after s", "same text")
    for row in rows:
        figures = (f"{row['ms_token']:.2f}", f"{row['speedup']:.2f}", f"{row['ms_step']:.2f}", f"{row['mat']:.2f}")
        same = f"{row['identical']}/{row['texts']}"
        table.add_row(row["step"], "hd" if row["draft"] else "none", *figures, f"{row['ready']:.1f}", same)
    Console().print(table)
    if arguments.json:
        result = {"machine": machine(), "device": arguments.device, "threads": torch.get_num_threads(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
