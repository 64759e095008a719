"""Make the D_m of the demonstration's real model: what it answers, greedily, to openly licensed prompts.

    python tools/make_demo_database.py CORPUS

CORPUS holds gsm8k_train.jsonl.gz (MIT) and taskmaster4_dialogs.jsonl.gz (CC-BY-4.0), from which the questions and the
customers' sentences are taken; further prompts, of our own, are in tools/demo_prompts.json. Only the model's answers go
into the database. Killed, the same command goes on where it was; a changed list of prompts keeps the answers it had.
"""

import argparse
import gzip
import hashlib
import json
import random
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import files
from hdraft.building import build_model
from hdraft.demo import SMOLLM2
from hdraft.demo.conversion import converted, find_gguf
from hdraft.loading import quieten

ROOT = Path(__file__).resolve().parent.parent
ROWS = 64  # that a pass of the model takes at once
WINDOW = 4 * ROWS  # prompts that are sorted by length, so that the rows of a batch end together
MAX_NEW_TOKENS = 128


def own_prompts() -> list[str]:
    """Every task of tools/demo_prompts.json with every text it is for."""
    groups = json.loads((ROOT / "tools" / "demo_prompts.json").read_text(encoding="utf-8"))
    return [task.replace("{}", text) for group in groups for text in group["texts"] for task in group["tasks"]]


def read_corpus(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a gzip-compressed JSON lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def corpus_prompts(corpus: Path) -> list[str]:
    """Two questions of GSM8K and one customer's first sentence from Taskmaster in turn, each list in a random order."""
    questions = [record["prompt"] for record in read_corpus(corpus / "gsm8k_train.jsonl.gz")]
    dialogs = [record["turns"] for record in read_corpus(corpus / "taskmaster4_dialogs.jsonl.gz")]
    orders = sorted({turns[0][1] for turns in dialogs if turns[0][0] == "user" and len(turns[0][1].split()) > 3})
    shuffled = random.Random(0)
    shuffled.shuffle(questions)
    shuffled.shuffle(orders)
    return list(chain.from_iterable(zip(questions[::2], questions[1::2], orders, strict=False)))


def as_chat(prompt: str) -> list[dict[str, str]]:
    """A prompt as its tokenizer's template takes it."""
    return [{"role": "user", "content": prompt}]


def answer(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[list[int]]:
    """The model's answers, in one batch; greedy, unless options of `generate` say otherwise."""
    chats = [as_chat(prompt) for prompt in prompts]
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**encoded, max_new_tokens=MAX_NEW_TOKENS, **{"do_sample": False} | options)
    end = tokenizer.eos_token_id
    rows = output[:, encoded["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def main() -> None:
    """Answer until there are tokens enough, then build the database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", type=Path, help="the model's folder; as `hdraft demo` has it, if left out")
    parser.add_argument("--tokens", type=int, default=400_000, help="of the answers, together")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "smollm2", help="where answers are kept")
    parser.add_argument("--output", type=Path, default=SMOLLM2 / "database")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quieten()
    folder = arguments.model or converted(find_gguf(), Console())
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    arguments.work.mkdir(parents=True, exist_ok=True)
    journal_file = arguments.work / "answers.jsonl"
    chosen: list[list[int]] = []
    with files.journal(journal_file) as journal:
        journal.cut(files.whole_lines(journal_file)[1])
        kept = {record["prompt"]: record["output_ids"] for _, record, _ in files.json_lines(journal_file)}
        prompts = iter(dict.fromkeys(chain(own_prompts(), corpus_prompts(arguments.corpus))))
        while sum(map(len, chosen)) < arguments.tokens and (window := list(islice(prompts, WINDOW))):
            names = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in window]
            missing = [(prompt, name) for prompt, name in zip(window, names, strict=True) if name not in kept]
            missing.sort(key=lambda each: len(each[0]))
            for batch in (missing[start : start + ROWS] for start in range(0, len(missing), ROWS)):
                for (_, name), ids in zip(batch, answer(model, tokenizer, [each[0] for each in batch]), strict=True):
                    kept[name] = ids
                    journal.append(json.dumps({"prompt": name, "output_ids": ids}).encode() + b"\n")
            chosen += [kept[name] for name in names]
            print(f"{len(chosen):,} answers, {sum(map(len, chosen)):,} tokens", flush=True)

    generations = arguments.work / "generations.jsonl"
    files.replace(generations, b"".join(json.dumps({"output_ids": ids}).encode() + b"\n" for ids in chosen))
    build_model(generations, arguments.output, tokenizer, model.config.vocab_size)


if __name__ == "__main__":
    main()
