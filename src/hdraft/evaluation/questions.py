"""Questions in Spec-Bench's format (arXiv 2401.07851): JSON lines, read, selected, downloaded."""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hdraft import files

SMALL = Path(__file__).with_name("questions.jsonl")
"""24 questions of this project's own, four in each of Spec-Bench's subtasks, for runs without a network."""

SUBTASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
"""Spec-Bench's subtasks, in its order."""

_MT_BENCH = frozenset(["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"])

URL = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"  # Apache-2.0
SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
BYTES = 698_768


class QuestionError(ValueError):
    """Questions that cannot be read or had; one line that says what to do."""


@dataclass(frozen=True)
class Question:
    """A question of one or several turns; `category` says what kind it is."""

    id: int | str
    category: str
    turns: tuple[str, ...]


def subtask(category: str) -> str:
    """The subtask of a category: MT-Bench's eight are one, any other is its own."""
    return "mt_bench" if category in _MT_BENCH else category


def read_questions(path: str | os.PathLike[str], begin: int | None = None, end: int | None = None) -> list[Question]:
    """The questions of a file, from the one with index `begin` to before the one with index `end`.

    A line is {"question_id": int or str, "category": str, "turns": [str, …]}; other fields are passed over.

    Raises:
        QuestionError: the file cannot be read, or holds none, or two of one id, or a line is no question; by file and
            line.
    """
    questions: list[Question] = []
    seen: set[int | str] = set()
    for where, record, _ in files.json_lines(Path(path), QuestionError):
        identity, category, turns = (record.get(name) for name in ("question_id", "category", "turns"))
        if not isinstance(identity, int | str) or isinstance(identity, bool):
            raise QuestionError(f'{where}: "question_id" must be a number or a text')
        if not isinstance(category, str) or category in ("", "all"):
            raise QuestionError(f'{where}: "category" must be a text, other than "all"')
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise QuestionError(f'{where}: "turns" must be a list of texts, one at least')
        if identity in seen:
            raise QuestionError(f"{where}: a second question {identity!r}: every question_id must be another")
        seen.add(identity)
        questions.append(Question(identity, category, tuple(turns)))
    selected = questions[begin:end]
    if not selected:
        between = (
            "" if begin is end is None else f" from index {begin or 0} to {len(questions) if end is None else end}"
        )
        raise QuestionError(f"{path}: no questions{between}, of {len(questions)}")
    return selected


def in_subtask_order(subtasks: Sequence[str]) -> list[str]:
    """Each once: Spec-Bench's in its order, then others as they come."""
    known = [name for name in SUBTASKS if name in subtasks]
    return known + [name for name in dict.fromkeys(subtasks) if name not in known]


def download_questions(path: Path, url: str = URL, sha256: str = SHA256) -> bool:
    """Fetch Spec-Bench's questions to `path`, unless they are there; whether they had to be fetched.

    Raises:
        QuestionError: the server cannot be reached, what it sent is not the known file, or another file is there.
        OSError: the file cannot be written.
    """
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return False
        raise QuestionError(f"{path} is there and is not Spec-Bench's questions: name another file with --questions")
    files.try_file(path)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read(BYTES + 1)  # no more than it should be, whatever is sent
    except (OSError, http.client.HTTPException) as error:
        raise QuestionError(
            f"cannot download {url} ({error}): get it yourself, and give it with --questions"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise QuestionError(f"{url} is not the file known here (its checksum differs): nothing was written")
    files.replace(path, content)
    return True
