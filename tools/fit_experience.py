"""Fit what a new drafter knows before its first request: `src/hdraft/drafting/hierarchy/experience.npz`.

    python tools/fit_experience.py --corpus CORPUS --docs DOCS [--check]

CORPUS holds gsm8k_train.jsonl.gz and taskmaster4_dialogs.jsonl.gz, DOCS the sources of Python's documentation
(*.rst.txt); the modules are those of this Python. Requests are made of these texts, a prompt and what comes after it;
of the texts that no request is made of, some are D_m and the others D_s. A drafter that knows nothing replays the
requests, and what it has learnt by their end is written. With `--check` nothing is written, but what some kinds of
requests have taught is measured on the others.
"""

import argparse
import keyword
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer
from train_demo_model import format_order, format_problem, read_json_lines, read_source, standard_library_files

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience, load
from hdraft.drafting.hierarchy.mixing import Weights, initial_weights
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 27
REQUESTS, MODEL = 30, 10  # of a hundred files or pages
EXERCISES, ORDERS = 12, 16  # of a hundred word problems or dialogues: there are more of them
PROMPTS, OUTPUTS, PAGE = (200, 500, 1000), (150, 300), 300  # tokens
LINES, WORD = 40, r"\b[a-z_]{4,}\b"  # of an edit


class Texts(NamedTuple):
    """The texts that requests and databases are made of, as token ids."""

    requests: list[Request]
    model: list[list[int]]
    statistics: list[list[int]]


def percentile(text: str) -> int:
    """Where a text falls among a hundred parts, the same every time."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100


def pages(folder: Path) -> Iterator[tuple[str, str]]:
    """Each page of the documentation, and the module that it is about, or ""."""
    for path in sorted(folder.rglob("*.rst.txt")):
        text = path.read_text(encoding="utf-8")
        title = re.match(r"(?:\s|\.\..*)*:mod:`!?([\w.]+)`", text)
        yield title[1] if title else "", text


def load_texts(corpus: Path, docs: Path, source: Path, tokenizer: Tokenizer) -> Texts:
    """Read everything; requests come in an order that is random, but always the same."""
    draw = random.Random(0)
    end = tokenizer.token_to_id("<|endoftext|>")
    texts = Texts([], [], [])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    def add_request(kind: str, prompt: Sequence[int], output: Sequence[int]) -> None:
        ids, output_ids = np.array([end, *prompt], np.int32), np.array([*output, end], np.int32)
        texts.requests.append(Request(str(len(texts.requests)), kind, ids, output_ids))

    def add(kind: str, text: str, requests: int) -> None:
        """Put a whole text where it belongs; of a long one, windows become requests."""
        ids, place = encode(text), percentile(text)
        if place >= requests:
            (texts.model if place < requests + MODEL else texts.statistics).append(ids)
        elif kind in ("code", "documentation"):
            for _ in range(min(3, len(ids) // 2000 + 1)):
                length, begin = draw.choice(PROMPTS), draw.randrange(max(1, len(ids) - 1000))
                middle = begin + length
                add_request(kind, ids[begin:middle], ids[middle : middle + draw.choice(OUTPUTS)])
        else:
            middle = len(encode(text.partition("\nAnswer:")[0])) if kind == "word problem" else len(ids) // 2
            add_request(kind, ids[:middle], ids[middle:])

    modules = {}
    for path in standard_library_files(source):
        if text := read_source(path):
            modules[".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")] = text
            add("code", text, REQUESTS)
            if percentile(text) < REQUESTS and (edit := renamed(text, draw)):
                add_request("edit", *map(encode, edit))
    for module, text in pages(docs):
        if module in modules:  # a module, and a part of its page
            page = encode(text)
            begin = draw.randrange(max(1, len(page) - PAGE))
            prompt = encode(modules[module])[: draw.choice((1000, 2000))]
            add_request("module and page", prompt, page[begin : begin + PAGE])
        else:
            add("documentation", text, REQUESTS)
    for row in read_json_lines(corpus / "gsm8k_train.jsonl.gz"):
        add("word problem", format_problem(row), EXERCISES)
    for row in read_json_lines(corpus / "taskmaster4_dialogs.jsonl.gz"):
        add("coffee order", format_order(row), ORDERS)
    draw.shuffle(texts.requests)
    draw.shuffle(texts.statistics)
    return texts


def renamed(source: str, draw: random.Random) -> tuple[str, str] | None:
    """Some lines of a module, and the same with a name changed, as in a request to edit them."""
    lines = source.split("\n")
    begin = draw.randrange(max(1, len(lines) - LINES))
    part = "\n".join(lines[begin : begin + LINES])
    uses = Counter(word for word in re.findall(WORD, part) if not keyword.iskeyword(word))
    names = sorted(word for word, times in uses.items() if times >= 3)
    if not names:
        return None
    return part, re.sub(rf"\b{draw.choice(names)}\b", draw.choice(re.findall(WORD, source)), part)


def main() -> None:
    """Read, fit, measure, write."""
    parser = argparse.ArgumentParser(description="Fit what a new drafter knows before its first request.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    parser.add_argument("--modules", type=Path, default=Path(sysconfig.get_path("stdlib")), help="Python's own modules")
    parser.add_argument(
        "--check", action="store_true", help="measure what one half teaches on the other; write nothing"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "src/hdraft/drafting/hierarchy/experience.npz")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    tokenizer = Tokenizer.from_file(str(ROOT / "src/hdraft/demo/model/tokenizer.json"))
    vocab_size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    texts = load_texts(arguments.corpus, arguments.docs, arguments.modules, tokenizer)
    statistics = StatisticsDatabase.from_documents(texts.statistics, vocab_size, end)

    def run(requests: list[Request], weights: Weights) -> tuple[Experience, float]:
        model = ModelDatabase.from_documents(texts.model, vocab_size, end)
        drafter = HierarchyDrafter(vocab_size, model, statistics, learn=True, experience=Experience(weights))
        return drafter.experience, replay(requests, drafter, BUDGET).scores[ALL].mat

    console.print(
        f"{len(texts.requests)} requests of {sum(len(request.output_ids) for request in texts.requests):,} tokens; "
        f"D_m {sum(map(len, texts.model)):,}, D_s {sum(map(len, texts.statistics)):,}"
    )
    if not arguments.check:
        experience, mat = run(texts.requests, initial_weights())
        experience.save(arguments.output)
        console.print(f"MAT {mat:.3f} while it learnt; written to {arguments.output}")
        return
    written = {"word problem", "documentation"}
    halves = [
        [request for request in texts.requests if (request.category in written) == side] for side in (True, False)
    ]
    for taught, measured in (halves, halves[::-1]):
        with TemporaryDirectory() as folder:
            learnt = Path(folder) / "experience.npz"
            run(taught, initial_weights())[0].save(learnt)
            before, after = run(measured, initial_weights())[1], run(measured, load(learnt))[1]
        console.print(f"MAT of {len(measured)} requests {before:.3f}; taught by {len(taught)} others {after:.3f}")


if __name__ == "__main__":
    main()
