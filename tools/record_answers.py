"""Record what the demonstration's real model answers to openly licensed prompts, for `tools/fit_experience.py`.

    python tools/record_answers.py CORPUS TRACE [--temperature T] [--prompts N]

CORPUS and the prompts are those of `make_demo_database.py`. TRACE is as `hdraft record` writes it, and made in a
fraction of the time: many prompts are answered at once, and the candidates come from one more pass over each answer.
"""

import argparse
import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_demo_database import ROWS, answer, as_chat, corpus_prompts, own_prompts
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import files
from hdraft.decoding.likeliest import likeliest
from hdraft.demo.conversion import converted, find_gguf
from hdraft.evaluation.traces import Request, trace_line
from hdraft.loading import quieten


def choose(corpus: Path, count: int) -> list[tuple[str, str]]:
    """So many prompts with their categories, half of our own, half of the corpus, in an order always the same."""
    draw = random.Random(5)
    own, others = own_prompts(), corpus_prompts(corpus)
    chosen = [("own", prompt) for prompt in draw.sample(own, min(count // 2, len(own)))]
    chosen += [("corpus", prompt) for prompt in draw.sample(others, count - len(chosen))]
    draw.shuffle(chosen)
    return chosen


def record(model: Any, tokenizer: Any, prompt: str, output_ids: list[int], **fields: Any) -> Request:
    """A request with what the model found likely in the place of each token of an answer."""
    encoded = tokenizer.apply_chat_template(as_chat(prompt), add_generation_prompt=True, return_dict=True)
    prompt_ids = encoded["input_ids"]
    with torch.inference_mode():
        ids = torch.tensor([prompt_ids + output_ids])
        logits = model(input_ids=ids, logits_to_keep=len(output_ids) + 1).logits[0, :-1]
        tokens, scores = (each.numpy() for each in likeliest(logits))
    return Request(
        prompt_ids=np.array(prompt_ids, np.int32),
        output_ids=np.array(output_ids, np.int32),
        candidates=tokens,
        log_probabilities=scores,
        **fields,
    )


def main() -> None:
    """Answer and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--model", type=Path, help="the model's folder; as `hdraft demo` has it, if left out")
    arguments = parser.parse_args()
    quieten()
    torch.manual_seed(0)
    folder = arguments.model or converted(find_gguf(), Console())
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    drawing = {"do_sample": True, "temperature": arguments.temperature, "top_k": 0} if arguments.temperature else {}
    prompts = list(enumerate(choose(arguments.corpus, arguments.prompts)))
    prompts.sort(key=lambda each: len(each[1][1]))  # the rows of a batch end together
    lines: dict[int, str] = {}
    for batch in (prompts[begin : begin + ROWS] for begin in range(0, len(prompts), ROWS)):
        outputs = answer(model, tokenizer, [prompt for _, (_, prompt) in batch], **drawing)
        for (number, (category, prompt)), output_ids in zip(batch, outputs, strict=True):
            fields = {"id": str(number), "category": category, "temperature": arguments.temperature}
            lines[number] = trace_line(record(model, tokenizer, prompt, output_ids, **fields))
        print(f"{len(lines)} answers", flush=True)
    content = "".join(chain(lines[number] for number in sorted(lines)))
    files.replace(arguments.trace, content.encode(), arguments.trace.with_suffix(".tmp"))


if __name__ == "__main__":
    main()
