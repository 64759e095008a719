"""Several Ray workers: the same file as one, also if a worker is killed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_bench import ids, setup

from hdraft.evaluation.bench import bench

ray = pytest.importorskip("ray")


def workers() -> list[int]:
    """The processes of Ray's, below this one, that hold a replica."""
    parents, named = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ray::Worker" in (process / "cmdline").read_bytes():
                named.append(int(process.name))
        except OSError:  # gone meanwhile
            continue

    def ours(process: int) -> bool:
        while process not in (os.getpid(), 0):
            process = parents.get(process, 0)
        return process != 0

    return [process for process in named if ours(process)]


def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(
    small: dict[str, str], tmp_path: Path
) -> None:
    many = [json.loads(line) for line in Path(small["questions"]).read_text().splitlines()]
    many = [{**many[i % 4], "question_id": i} for i in range(6)]
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(each) + "\n" for each in many))
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not killed:
            killed.append(workers()[0])  # the other may be starting still
            os.kill(killed[0], signal.SIGKILL)

    settings: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0}
    methods = ("vanilla", "published", "hd")
    bench(setup(small, *methods, **settings), questions, tmp_path / "two", num_workers=2, progress=kill_one)
    assert killed
    bench(setup(small, *methods, **settings), questions, tmp_path / "one")
    for method in methods:
        lines = (tmp_path / "two" / f"{method}.jsonl").read_text().splitlines()
        assert [json.loads(line)["question_id"] for line in lines] == list(range(6))
        assert ids(tmp_path / "two", method) == ids(tmp_path / "one", method)
    assert not ray.is_initialized() and not workers()


def test_what_a_worker_refuses_is_raised_as_it_is(small: dict[str, str], output: Path) -> None:
    wrong = setup(small, "vanilla", chat_template="nothing")
    with pytest.raises(ValueError, match="no chat template nothing") as caught:
        bench(wrong, small["questions"], output, num_workers=2)
    assert "\n" not in str(caught.value) and type(caught.value).__name__ == "ConversationError"


def test_workers_that_die_again_and_again_end_the_run(
    small: dict[str, str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hdraft.evaluation import workers

    class Dying(workers.Worker):
        def answer(self, question: Any, methods: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "Worker", Dying)
    monkeypatch.setattr(workers, "_MOST_DEATHS", 2)
    with pytest.raises(ValueError, match=r"2 workers died over question \d+"):
        bench(setup(small, "vanilla"), small["questions"], output, num_workers=2)
