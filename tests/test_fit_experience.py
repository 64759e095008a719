"""The tool that fits what a new drafter knows, on a few made-up texts."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy import mixing
from hdraft.drafting.hierarchy.experience import Experience, load
from hdraft.drafting.hierarchy.mixing import initial_weights
from hdraft.evaluation.traces import Request, trace_line

TOOL = Path(__file__).resolve().parent.parent / "tools" / "fit_experience.py"
if not TOOL.exists():
    pytest.skip("an installed package has no tools", allow_module_level=True)

MODULE = '''"""Numbers of kind {n}."""


def add_numbers(first, other):
    """Add {n} and what there is to it."""
    total = first + other
    if total > {n}:
        total = first
    return total
'''


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """The options that name a small corpus."""
    corpus, docs, library = (tmp_path / name for name in ("corpus", "docs", "library"))
    for folder in (corpus, docs, library):
        folder.mkdir()
    with gzip.open(corpus / "gsm8k_train.jsonl.gz", "wt") as file:
        for n in range(60):
            row = {
                "prompt": f"Ann has {n} pens and buys 2. How many?",
                "response": f"{n}+2={n + 2} pens.\n#### {n + 2}",
            }
            file.write(json.dumps(row) + "\n")
    with gzip.open(corpus / "taskmaster4_dialogs.jsonl.gz", "wt") as file:
        for n in range(60):
            file.write(json.dumps({"turns": [["user", f"{n} coffees please"], ["assistant", f"{n}, right?"]]}) + "\n")
    for n in range(20):
        (library / f"numbers{n}.py").write_text(MODULE.format(n=n) * 4)
        name = f":mod:`!numbers{n}`" if n % 2 else "A page"
        (docs / f"{n}.rst.txt").write_text(f"{name} --- numbers\n===\n\nIt adds numbers of kind {n}.\n" * 4)
    return ["--corpus", str(corpus), "--docs", str(docs), "--modules", str(library)]


def run(*options: str) -> str:
    return subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, check=True).stdout


def test_what_it_writes_is_what_a_drafter_reads_and_the_same_every_time(texts: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    for path in (first, second):
        assert "written to" in run(*texts, "--output", str(path))
    weights = load(first)
    assert np.count_nonzero(weights.lasting != 1) > 100
    assert np.count_nonzero(weights.weight != initial_weights().weight) > 20
    for values, again in zip(weights, load(second), strict=True):
        assert values.tolist() == again.tolist()


def test_a_check_measures_and_writes_nothing(texts: list[str], tmp_path: Path) -> None:
    printed = run(*texts, "--check", "--output", str(tmp_path / "none.npz"))
    assert printed.count("MAT of") == 2
    assert not list(tmp_path.glob("*.npz"))


def test_it_goes_on_with_recorded_answers_that_were_drawn(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lines = []
    for n in range(9):
        likely = np.array([draw.permutation(40)[:4] for _ in range(30)], np.int32)
        output = np.array([draw.choice(row) for row in likely], np.int32)
        scores = np.log(np.full(likely.shape, 0.2, np.float32))
        lines.append(trace_line(Request(str(n), "own", output[:5], output, likely, scores, 1.0)))
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(lines))
    StatisticsDatabase.from_documents([[1, 2, 3]], 40, 0).save_pretrained(tmp_path / "D_s")
    start, written = tmp_path / "start.npz", tmp_path / "written.npz"
    Experience(initial_weights()).save(start)
    options = ["--recorded", str(trace), "--statistics-database", str(tmp_path / "D_s"), "--start", str(start)]
    assert "6 requests" in run(*options, "--output", str(written))
    moved = load(written).lasting != load(start).lasting
    assert moved[mixing._DRAWN :].sum() > 5
