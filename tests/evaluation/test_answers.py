"""Answers on disk: what survives a kill, what is refused, and in which order a finished file is."""

import json
from pathlib import Path
from typing import Any

import pytest

from hdraft.evaluation import answers


def answer(identity: int, **choice: Any) -> answers.Answer:
    fields = {"index": 0, "turns": ["ü"], "decoding_steps": [2], "new_tokens": [3], "wall_time": [0.5]}
    return {
        "question_id": identity,
        "category": "qa",
        "answer_id": f"a{identity}",
        "model_id": "m",
        "choices": [fields | {"accept_lengths": [1, 2]} | choice],
        "tstamp": 1.0,
    }


def test_answers_are_kept_and_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "hd.jsonl"
    with answers.opened(path) as file:
        for identity in (3, 9, 1):
            file.add(answer(identity))
        file.sort([1, 2, 3])
    assert [each["question_id"] for each in answers.read_answers(path)] == [1, 3, 9], "one of no question stays last"
    assert answers.read_answers(path)[1] == answer(3)
    with answers.opened(path) as file:
        file.add(answer(2))
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "hd.jsonl"
    whole = json.dumps(answer(1)).encode() + b"\n"
    path.write_bytes(whole + whole[:cut])
    with answers.opened(path) as file:
        assert list(file.answers) == [1]
        assert path.read_bytes() == whole


def test_a_torn_last_line_is_passed_over_by_a_reader_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "hd.jsonl"
    whole = json.dumps(answer(1)) + "\n"
    path.write_text(whole + whole[:30])
    assert answers.read_answers(path) == [answer(1)]
    path.write_text(whole[:30] + "\n" + whole[:30])
    with pytest.raises(ValueError, match=r"hd\.jsonl:1: not valid JSON"):
        answers.read_answers(path)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "hd.jsonl"
    with (
        answers.opened(path),
        pytest.raises(ValueError, match="another process is writing it"),
        answers.opened(path),
    ):
        pass


OURS = {
    "output_ids": [[1]],
    "drafted": [2],
    "accepted": {"context": [1], "model": [0], "statistics": [0]},
    "seconds_drafting": [0.1],
}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"question_id": 1}, '"question_id" or "category" is missing'),
        (answer(1) | {"choices": []}, '"choices" must be'),
        (answer(1) | {"choices": [1]}, '"choices" must be'),
        (answer(1, turns=None), '"turns" must be a list'),
        (answer(1, new_tokens=["3"]), "must be counts"),
        (answer(1, accept_lengths=[1.5]), "must be counts"),
        (answer(1, new_tokens=[10**400]), "must be counts"),
        (answer(1, wall_time=[-1]), "must be seconds"),
        (answer(1, wall_time=[float("inf")]), "Infinity is no number"),
        (answer(1, wall_time=[10**400]), "must be seconds"),
        (answer(1, wall_time=[5e-324]), "some time in all"),
        (answer(True), '"question_id" or "category" is missing'),
        (answer(1) | {"category": "all"}, '"question_id" or "category" is missing'),
        (answer(1) | {"tstamp": float("nan")}, "NaN is no number"),
        (answer(1, hdraft={"output_ids": [[True]]}), '"hdraft" is not what'),
        (answer(1, hdraft=OURS | {"accepted": {"context": [1]}}), '"hdraft" is not what'),
        (answer(1, hdraft=OURS | {"drafted": [10**400]}), '"hdraft" is not what'),
        (answer(1, hdraft=OURS | {"seconds_drafting": [1e300]}), '"hdraft" is not what'),
        (answer(1, hdraft=None), '"hdraft" is not what'),
        (answer(1, hdraft={}), '"hdraft" is not what'),
        (answer(1, hdraft={"output_ids": [[1]], "drafted": [2]}), '"hdraft" is not what'),
        (answer(1, wall_time=[0]), "some time in all"),
        (answer(1, new_tokens=[1, 2]), "each turn needs"),
    ],
)
def test_what_is_no_answer_is_refused_by_its_line(tmp_path: Path, record: object, says: str) -> None:
    path = tmp_path / "hd.jsonl"
    path.write_text(json.dumps(answer(7)) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"hd\.jsonl:2: .*" + says):
        answers.read_answers(path)
