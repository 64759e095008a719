"""Fit what a new drafter knows before its first request: the two `.npz` of `src/hdraft/drafting/hierarchy`.

    python tools/fit_experience.py --corpus CORPUS --docs DOCS --output experience.npz [--check]
    python tools/fit_experience.py --recorded TRACE --statistics-database D_s --start experience.npz
        --output experience_sampled.npz

CORPUS holds gsm8k_train.jsonl.gz and taskmaster4_dialogs.jsonl.gz, DOCS the sources of Python's documentation
(*.rst.txt); the modules are those of this Python. Requests are made of these texts, a prompt and what comes after it;
of the texts that no request is made of, some are D_m and the others D_s. A drafter that knows nothing replays the
requests, and what it has learnt by their end is written. With `--check` nothing is written, but what some kinds of
requests have taught is measured on the others.

TRACE is of `tools/record_answers.py`: answers of a real model, with its candidates, which no text has. A drafter that
knows what texts have taught replays two thirds of them, with the others as its D_m. So `experience_sampled.npz` is made
from `experience.npz`, by a trace at temperature 1, whose random numbers are made up.
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
import numpy.typing as npt
from rich.console import Console
from tokenizers import Tokenizer
from train_demo_model import format_order, format_problem, read_json_lines, read_source, standard_library_files

from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import Draws, TokenIds
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.hierarchy.experience import Experience, load
from hdraft.drafting.hierarchy.mixing import Weights, initial_weights
from hdraft.drafting.tree import DraftTree
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_trace

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 27
REQUESTS, MODEL = 30, 10  # of a hundred files or pages
EXERCISES, ORDERS = 12, 16  # of a hundred word problems or dialogues: there are more of them
PROMPTS, OUTPUTS, PAGE = (200, 500, 1000), (150, 300), 300  # tokens
REFERRED = 0.3  # of recorded requests have a reference
LINES, WORD = 40, r"\b[a-z_]{4,}\b"  # of an edit


class Replaying:
    """Replays requests through a drafter, which knows by which random numbers sampled ones will be drawn.

    Some have a reference too: their answer before a few edits.

    A trace does not say. But of the target's probabilities p, which it has, a token is drawn where q / p is the least,
    and that is exponentially distributed: so such numbers can be made up, distributed as the true ones were.
    """

    takes_draws = recycles = True

    def __init__(self, drafter: HierarchyDrafter) -> None:
        self.drafter, self.vocab_size = drafter, drafter.vocab_size
        self.random = np.random.default_rng(0)

    def mat(self, requests: list[Request]) -> float:
        """Tokens a step, while it learns."""
        self.requests, self.emitted = iter([requests[0], *requests]), 0  # the first one is begun twice
        return replay(requests, self, BUDGET, observe=self.observe).scores[ALL].mat

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None, draws: Draws | None = None) -> HierarchySession:
        """Start the next request."""
        self.request, self.emitted = next(self.requests), 0
        self.rows: list[npt.NDArray[np.float32]] = []
        references = [self.edited(self.request.output_ids)] if self.random.random() < REFERRED else []
        return self.drafter.session(prompt_ids, costs, references, draws=None if draws is None else self)

    def edited(self, output_ids: npt.NDArray[np.int32]) -> list[int]:
        """What an answer may have been before: every so often some tokens are left out, put in, or other ones."""
        before: list[int] = []
        ids = output_ids.tolist()
        while ids:
            run = int(self.random.integers(4, 60))
            before += ids[:run]
            gone, new = self.random.integers(0, 4, 2).tolist()
            ids = ids[run + gone :]
            before += self.random.choice(output_ids, new).tolist()
        return before

    def observe(self, request: Request, tree: DraftTree, accepted: list[int]) -> None:
        """After each step: how far the request has come."""
        self.emitted += len(accepted) + 1

    def ahead(self, n: int) -> npt.NDArray[np.float32]:
        """See `Draws.ahead`."""
        end = min(self.emitted + n, len(self.request.output_ids))
        while len(self.rows) < end:
            self.rows.append(self.draw(len(self.rows)))
        return np.array(self.rows[self.emitted : end]).reshape(-1, self.vocab_size)

    def draw(self, place: int) -> npt.NDArray[np.float32]:
        """Numbers by which the recorded token is drawn in its place."""
        token = int(self.request.output_ids[place])
        assert self.request.candidates is not None and self.request.log_probabilities is not None
        likely = self.request.candidates[place]
        p = np.exp(self.request.log_probabilities[place].astype(float))
        rest = max(1 - p.sum(), 1e-4) / 30  # of a token that is not among the likeliest, about
        least = self.random.standard_exponential()
        q = self.random.standard_exponential(self.vocab_size, np.float32)
        q[likely] += p * least  # what is more than the least is as distributed as all of it
        q[token] = (p[likely == token][0] if token in likely else rest) * least
        return q


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


def go_on(arguments: argparse.Namespace, console: Console) -> None:
    """Fit what texts have taught to a recorded trace, and write it."""
    trace = read_trace(arguments.recorded)
    statistics = StatisticsDatabase.from_pretrained(arguments.statistics_database)
    before = [request.output_ids.tolist() for request in trace[::3]]
    model = ModelDatabase.from_documents(before, statistics.vocab_size, statistics.eos_token_id)
    experience = Experience(load(arguments.start))
    both = {"experience": experience, "sampled_experience": experience}
    drafter = HierarchyDrafter(statistics.vocab_size, model, statistics, learn=True, **both)
    requests = [request for place, request in enumerate(trace) if place % 3]
    mat = Replaying(drafter).mat(requests)
    experience.save(arguments.output)
    console.print(f"{len(requests)} requests, MAT {mat:.3f} while it learnt; written to {arguments.output}")


def main() -> None:
    """Read, fit, measure, write."""
    parser = argparse.ArgumentParser(description="Fit what a new drafter knows before its first request.")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--modules", type=Path, default=Path(sysconfig.get_path("stdlib")), help="Python's own modules")
    parser.add_argument(
        "--check", action="store_true", help="measure what one half teaches on the other; write nothing"
    )
    parser.add_argument("--recorded", type=Path, metavar="TRACE")
    parser.add_argument("--statistics-database", type=Path)
    parser.add_argument("--start", type=Path, help="what texts have taught")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    if arguments.recorded:
        go_on(arguments, console)
        return
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
