"""Kernels are compiled beside the work, or one line of the log says why not; nobody waits, and no text changes."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hdraft
from hdraft.drafting import Drafter, compiling, kernel_cache
from hdraft.drafting.compile_kernels import _all_methods, warm_up
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import lookahead_branch
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.kernel_cache import loading_only
from hdraft.drafting.methods import PromptLookupDrafter

LOG = "hdraft.drafting.compiling"


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_compilations", {})


def wait_for(compilation: compiling.Compilation | None) -> None:
    while compilation is not None and compilation.running():
        time.sleep(0.05)


def databases(vocab_size: int) -> Iterator[Drafter]:
    documents = [[5, 6, 7, 5, 6], [6, 7, 8] * 9]
    model = ModelDatabase.from_documents(documents, vocab_size, 0)
    general = StatisticsDatabase.from_documents(documents * 2000, vocab_size, 0)
    for stored in (None, model):
        for text in (None, general):
            for learn in (False, True):
                yield HierarchyDrafter(vocab_size, stored, text, learn=learn)


@pytest.mark.parametrize("vocab_size", [30_000, 100_000])  # ids of two bytes and of four
def test_after_warming_up_no_request_compiles_whatever_databases_it_has(vocab_size: int) -> None:
    warm_up(HierarchyDrafter(vocab_size))
    for drafter in databases(vocab_size):
        with loading_only():
            for _ in range(3):
                session = drafter.session([5, 6, 7] * 40)
                for budget in (4, 64):
                    tree = session.propose(budget, 3)
                    tree.check(vocab_size, budget, 3)
                    assert len(tree.best_chain(2))
                    session.extend([5, 6] * 200)
                session.close()


@pytest.mark.parametrize("vocab_size", [30_000, 100_000])
def test_after_warming_up_no_other_method_compiles_either(vocab_size: int) -> None:
    for drafter in _all_methods(vocab_size):
        warm_up(drafter)
        with loading_only():
            session = drafter.session([5, 6, 7] * 40)
            branch = lookahead_branch(session)
            for _ in range(12):
                session.propose(16, 3).check(vocab_size, 16, 3)
                ngrams = None
                if branch is not None:
                    ngrams = branch.advance(np.array([6] * len(branch.rows[-1])), 7)
                session.extend([5, 6, 7] * 20, ngrams)
            session.close()


def test_a_process_that_compiles_is_started_once_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_MODULE", "this")  # which ends soon
    drafter = HierarchyDrafter(30)
    with caplog.at_level(logging.WARNING, LOG):
        first = compiling.compile_beside(drafter)
        assert compiling.compile_beside(HierarchyDrafter(30)) is first
        wait_for(first)
        assert compiling.compile_beside(drafter) is first  # it may have ended since the kernel was looked for
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "in the background, once" in caplog.text


def test_a_process_that_dies_is_said_once_with_what_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_MODULE", "hdraft.no_such_module")
    drafter = PromptLookupDrafter(30)
    first = compiling.compile_beside(drafter)
    wait_for(first)
    assert compiling.compile_beside(drafter) is first
    for _ in range(3):
        assert compiling.compile_beside(drafter) is None
    assert len(caplog.records) == 2
    assert "`python -m hdraft.no_such_module 30 --all` says why" in caplog.records[1].getMessage()


def test_where_no_process_can_be_started_one_line_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    for _ in range(2):
        assert compiling.compile_beside(HierarchyDrafter(30)) is None
    (record,) = caplog.records
    assert "no process" in record.getMessage() and "nothing is drafted" in record.getMessage()


def test_where_no_folder_can_be_written_one_line_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "folders", set())
    for _ in range(2):
        assert compiling.compile_beside(HierarchyDrafter(30)) is None
    (record,) = caplog.records
    assert "set NUMBA_CACHE_DIR" in record.getMessage() and "warm_up(drafter)" in record.getMessage()


REQUESTS = """
import sys, time
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
import hdraft
from hdraft.drafting import compiling

if __name__ != "__main__":
    raise SystemExit("the script was imported")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
model = LlamaForCausalLM(config)
prompt = torch.tensor([[5, 6, 7, 8] * 6])
expected = model.generate(prompt, max_new_tokens=24, do_sample=False)
drafter = hdraft.HierarchyDrafter(60, learn=True)
drafted = []
while len(drafted) < 2 or not drafted[-1]:
    statistics = hdraft.Statistics()
    output = hdraft.generate(
        model, prompt, drafter, max_new_tokens=24, do_sample=False, statistics=statistics, costs=np.ones(65)
    )
    assert torch.equal(output, expected)
    drafted.append(statistics.drafted)
    print(statistics.drafted, flush=True)
    for compilation in compiling._compilations.values():
        while compilation.running():
            time.sleep(0.1)
print("learnt", len(drafter.model_database.snapshot()[1].tokens))
"""


def test_two_fresh_processes_with_nothing_compiled_decode_at_once_and_draft_later(tmp_path: Path) -> None:
    """Scripts without a main guard, in a folder with a module that would be in the way."""
    script = tmp_path / "script.py"
    script.write_text(REQUESTS)
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path / "kernels"),
        "PYTHONPATH": str(Path(hdraft.__file__).parents[1]),
    }
    command = [sys.executable, "-P", str(script)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, log = process.communicate()
        assert process.returncode == 0, log
        *drafted, learnt = output.split("\n")[:-1]
        assert int(drafted[0]) == 0 < int(drafted[-1])
        assert len(drafted) <= 3
        assert learnt != "learnt 0"
        assert log.count("compiling the drafting kernels in the background") == 1, log
