"""Drafting from a reference: real edits, the old version of a file given and the new one written.

python benchmarks/references.py --work /tmp/references

Two releases of openly licensed packages are fetched with pip. Of the files that both have, code and prose, those are
taken that changed by 5 to 20 % of the new file's tokens, in five places or more: the first in the order of a hash, so
that nothing is chosen by what it measures. Each new file is replayed as the answer to a short request: with the old one
as the reference, and, for comparison, with the old one in the prompt, by hdraft and by prompt lookup.
"""

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.demo import MODEL
from hdraft.drafting import Drafter, DraftSession
from hdraft.drafting.costs import Costs
from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter
from hdraft.evaluation.machine import machine
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request
from hdraft.loading import load_vocabulary

RESULTS = Path(__file__).parent / "results" / "references.json"
PACKAGES = {  # all under BSD, MIT or Apache licences
    "click": ("8.0.0", "8.1.7"),
    "flask": ("2.0.0", "2.3.3"),
    "jinja2": ("2.11.3", "3.1.4"),
    "requests": ("2.24.0", "2.32.3"),
    "rich": ("12.0.0", "13.7.1"),
    "attrs": ("20.3.0", "23.2.0"),
    "werkzeug": ("2.0.0", "2.3.8"),
    "httpx": ("0.20.0", "0.27.0"),
}
CODE, PROSE = {".py"}, {".rst", ".md", ".txt"}
EDITS, PER_PACKAGE = 48, 10  # at most
TOKENS = (200, 4000)  # of a new version
SHARES, PLACES = (0.05, 0.10, 0.15, 0.20), 5
BUDGETS = (16, 27, 64)
REQUEST = "Rewrite the file as the new version has it.\n\n"

Ids = npt.NDArray[np.int32]


class Edit(NamedTuple):
    """A file in two versions."""

    name: str
    old: Ids
    new: Ids
    changed: float  # the part of the new version's tokens that the old one has not in that place
    places: int


def fetch(work: Path, package: str, version: str) -> Path:
    """The unpacked source of a release."""
    folder = work / f"{package}-{version}"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(work)]
        subprocess.run([*command, f"{package}=={version}"], check=True, stdout=subprocess.DEVNULL)
        (archive,) = [
            path
            for path in work.glob("*.tar.gz")
            if path.name.lower().replace("_", "-") == f"{package}-{version}.tar.gz"
        ]
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def edits(work: Path, encode: Any) -> Iterator[Edit]:
    """Files of both releases that changed as asked, the first of each package in the order of a hash."""
    for package, versions in PACKAGES.items():
        before, after = (fetch(work, package, version) for version in versions)
        names = [path.relative_to(after) for path in after.rglob("*") if path.suffix in CODE | PROSE and path.is_file()]
        taken = 0
        for name in sorted(names, key=lambda name: sha256(str(name).encode()).hexdigest()):
            if taken == PER_PACKAGE or not (before / name).is_file():
                continue
            edit = compare(f"{package}/{name}", encode, before / name, after / name)
            if edit is not None:
                taken += 1
                yield edit


def compare(name: str, encode: Any, before: Path, after: Path) -> Edit | None:
    """The edit from one file to the other, if it is of the size that is asked for."""
    try:
        old, new = (np.array(encode(path.read_text(encoding="utf-8")), np.int32) for path in (before, after))
    except UnicodeDecodeError:
        return None
    if not TOKENS[0] <= len(new) <= TOKENS[1] or len(old) > 2 * TOKENS[1]:
        return None
    blocks = SequenceMatcher(None, old.tolist(), new.tolist(), autojunk=False).get_matching_blocks()
    changed, places = 1 - sum(block.size for block in blocks) / len(new), len(blocks) - 2
    return Edit(name, old, new, changed, places) if SHARES[0] <= changed <= SHARES[-1] and places >= PLACES else None


class Referring:
    """A drafter whose requests all have the same reference."""

    def __init__(self, drafter: HierarchyDrafter, reference: TokenIds) -> None:
        self.drafter, self.reference, self.vocab_size = drafter, reference, drafter.vocab_size

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> DraftSession:
        """Start a request."""
        return self.drafter.session(prompt_ids, costs, [self.reference])


def mat(drafter: Drafter, prompt: Sequence[int], new: Ids, budget: int) -> tuple[int, int]:
    """The tokens and steps of an answer."""
    request = Request("edit", "edit", np.array(prompt, np.int32), new)
    score = replay([request], drafter, budget).scores[ALL]
    return score.tokens, score.steps


def milliseconds(vocab_size: int, tokens: int = 100_000) -> float:
    """How much longer a session takes to begin with so many tokens of reference."""
    drafter = HierarchyDrafter(vocab_size)
    long = np.random.default_rng(0).integers(0, vocab_size, tokens)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(9):
        for referred in times:
            started = perf_counter()
            drafter.session([1, 2, 3], references=[long] if referred else [])
            times[referred].append(perf_counter() - started)
    return 1000 * (median(times[True]) - median(times[False]))


def main() -> None:
    """Choose, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where releases are unpacked")
    parser.add_argument("--model", default=str(MODEL), help="whose tokenizer is used")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer, size = load_vocabulary(arguments.model)
    vocab_size = size or len(tokenizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    chosen = list(edits(arguments.work, encode))[:EDITS]
    request = encode(REQUEST)
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        drafter = HierarchyDrafter(vocab_size)
        for edit in chosen:
            with_old = [*request, *edit.old.tolist()]
            counts = {
                "reference": mat(Referring(drafter, edit.old), request, edit.new, budget),
                "hd, in the prompt": mat(drafter, with_old, edit.new, budget),
                "pld, in the prompt": mat(PromptLookupDrafter(vocab_size), with_old, edit.new, budget),
            }
            rows.append({"edit": edit.name, "changed": edit.changed, "places": edit.places, "budget": budget, **counts})
    methods = ("reference", "hd, in the prompt", "pld, in the prompt")
    table = []
    for budget in BUDGETS:
        for low, high in [(SHARES[0], SHARES[-1]), *pairwise(SHARES)]:
            for kind in ("all", "code", "prose"):
                some = [
                    row
                    for row in rows
                    if row["budget"] == budget
                    and low <= row["changed"] <= high
                    and (kind == "all" or (Path(row["edit"]).suffix in CODE) == (kind == "code"))
                ]
                if some:
                    mats = {
                        name: sum(row[name][0] for row in some) / sum(row[name][1] for row in some) for name in methods
                    }
                    table.append({"budget": budget, "changed": [low, high], "kind": kind, "edits": len(some), **mats})
    figures = {
        "machine": machine(),
        "packages": PACKAGES,
        "tokenizer": Path(arguments.model).name,
        "milliseconds_of_100000_tokens": milliseconds(vocab_size),
        "table": table,
        "edits": rows,
    }
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for row in table:
        print(row)


if __name__ == "__main__":
    main()
