"""Spec-Bench's questions: the format, the set that ships with the package, the download."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hdraft.evaluation import questions
from hdraft.evaluation.questions import SMALL, SUBTASKS, download_questions, read_questions, subtask

SPEC_BENCH = Path(__file__).parents[3] / "shared" / "spec_bench" / "question.jsonl"


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def question(identity: object, **fields: object) -> dict[str, object]:
    return {"question_id": identity, "category": "qa", "turns": ["Why?"], **fields}


def test_the_small_set_has_four_questions_of_each_subtask() -> None:
    small = read_questions(SMALL)
    assert Counter(subtask(each.category) for each in small) == dict.fromkeys(SUBTASKS, 4)
    assert all(len(each.turns) == (2 if subtask(each.category) == "mt_bench" else 1) for each in small)
    assert len({turn for each in small for turn in each.turns}) == 28


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="Spec-Bench's questions are not at hand")
def test_spec_benchs_own_questions_are_read_and_known_by_their_checksum() -> None:
    assert hashlib.sha256(SPEC_BENCH.read_bytes()).hexdigest() == questions.SHA256
    assert SPEC_BENCH.stat().st_size == questions.BYTES
    read = read_questions(SPEC_BENCH)
    assert Counter(subtask(each.category) for each in read) == dict.fromkeys(SUBTASKS, 80)
    own = {turn for each in read_questions(SMALL) for turn in each.turns}
    assert not own & {turn for each in read for turn in each.turns}


def test_questions_are_selected_by_index(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *(question(i, reference=["x"]) for i in range(10, 20)))
    assert [each.id for each in read_questions(path, 3, 5)] == [13, 14]
    assert [each.id for each in read_questions(path, 8)] == [18, 19]
    with pytest.raises(ValueError, match="no questions from index 10 to 12, of 10"):
        read_questions(path, 10, 12)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"category": "qa", "turns": ["a"]}, '"question_id" must be'),
        (question(True), '"question_id" must be'),
        (question(2, category=""), '"category" must be'),
        (question(2, turns=[]), '"turns" must be'),
        (question(2, turns="Why?"), '"turns" must be'),
        (question(2, turns=["a", 1]), '"turns" must be'),
        (question(1), "a second question 1"),
        ([1], "not a JSON object"),
    ],
)
def test_what_is_no_question_is_refused_by_its_line(tmp_path: Path, record: object, says: str) -> None:
    path = write(tmp_path / "q.jsonl", question(1), record)
    with pytest.raises(ValueError, match=r"q\.jsonl:2: .*" + says):
        read_questions(path)


@pytest.fixture
def server() -> Iterator[str]:
    """Serves CONTENT on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/question.jsonl"
    server.shutdown()
    server.server_close()


CONTENT = json.dumps(question(1)).encode() + b"\n"
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


def test_the_download_is_checked_and_not_repeated(server: str, tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    assert download_questions(path, server, CHECKSUM)
    assert path.read_bytes() == CONTENT
    assert not download_questions(path, "http://127.0.0.1:9/", CHECKSUM), "it is there: nothing is asked for"
    assert list(tmp_path.iterdir()) == [path]


def test_another_file_is_never_written_nor_replaced(server: str, tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    with pytest.raises(ValueError, match="checksum differs"):
        download_questions(path, server, "0" * 64)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(ValueError, match="is not Spec-Bench's questions"):
        download_questions(path, server, CHECKSUM)
    assert path.read_text() == "mine"


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot download .* get it yourself"):
        download_questions(tmp_path / "question.jsonl", "http://127.0.0.1:9/question.jsonl")
    assert not list(tmp_path.iterdir())
