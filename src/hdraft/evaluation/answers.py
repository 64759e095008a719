"""Answers on disk: Spec-Bench's own JSON lines, a file for each method, that survive being killed.

A line is written whole and synced before the next question is begun; a torn last line is cut off when the file is next
opened. A finished file holds the answers in the order of the questions.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdraft.building import journal
from hdraft.building.reading import BuildError, json_lines

Answer = dict[str, Any]
"""A line: `question_id`, `category`, `answer_id`, `model_id`, `choices`, `tstamp`."""

_LISTS = ("turns", "new_tokens", "wall_time", "accept_lengths")


class AnswerError(ValueError):
    """Answers that cannot be read, or not be added to; one line that says what to do."""


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, as this project or Spec-Bench wrote them; of two to one question, the last.

    A last line that a killed run was writing is passed over.

    Raises:
        BuildError, AnswerError: the file cannot be read, or a line is no answer; by file and line.
    """
    answers: dict[Any, Answer] = {}
    whole, _, torn = journal.whole_lines(path)
    try:
        for where, record, _ in json_lines(path):
            _check(where, record)
            answers[record["question_id"]] = record
    except BuildError as error:
        if not torn or not str(error).startswith(f"{path}:{whole + 1}: "):
            raise
    return list(answers.values())


def _check(where: str, record: Answer) -> None:
    """Refuse what is not an answer as far as a report reads it."""
    choices = record.get("choices")
    if not isinstance(record.get("question_id"), int | str) or not isinstance(record.get("category"), str):
        raise AnswerError(f'{where}: is no answer of Spec-Bench: "question_id" or "category" is missing')
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise AnswerError(f'{where}: is no answer of Spec-Bench: "choices" must be a list of objects')
    for choice in choices:
        for name in _LISTS:
            if not isinstance(choice.get(name), list):
                raise AnswerError(f'{where}: is no answer of Spec-Bench: "{name}" must be a list')
        counts = (*choice["new_tokens"], *choice["accept_lengths"])
        if not all(type(number) is int and 0 <= number < 2**31 for number in counts):
            raise AnswerError(f"{where}: new_tokens and accept_lengths must be counts of tokens")
        if not all(type(number) in (int, float) and 0 <= number < math.inf for number in choice["wall_time"]):
            raise AnswerError(f"{where}: wall_time must be seconds")
        if len(choice["new_tokens"]) != len(choice["wall_time"]) or sum(choice["wall_time"]) <= 0:
            raise AnswerError(f"{where}: each turn needs its new_tokens and its wall_time, some time in all")
        if "hdraft" in choice and not _is_ours(choice["hdraft"]):
            raise AnswerError(f'{where}: "hdraft" is not what hdraft bench writes: remove the field')


def _is_ours(fields: Any) -> bool:
    """Whether this is a choice's own field, complete."""
    if not isinstance(fields, dict) or not _lists_of(fields.get("output_ids"), list):
        return False
    if not all(_lists_of(ids, int) for ids in fields["output_ids"]):
        return False
    if "drafted" not in fields:
        return True
    accepted = fields.get("accepted")
    return (
        _lists_of(fields["drafted"], int)
        and _lists_of(fields.get("seconds_drafting"), float)
        and isinstance(accepted, dict)
        and all(_lists_of(counts, int) for counts in accepted.values())
    )


def _lists_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


class AnswerFile:
    """The answers of one method, open to add to.

    Attributes:
        answers: by question id.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        _, size, torn = journal.whole_lines(path)
        if torn:
            os.ftruncate(descriptor, size)
        self.answers = {answer["question_id"]: answer for answer in read_answers(path)}

    def add(self, answer: Answer) -> None:
        """Append an answer, and sync it."""
        journal.append(self.descriptor, _line(answer))
        self.answers[answer["question_id"]] = answer

    def sort(self, question_ids: Sequence[int | str]) -> None:
        """Put the answers into the order of the questions, at once or not at all; others stay behind them."""
        order = dict.fromkeys(identity for identity in (*question_ids, *self.answers) if identity in self.answers)
        replace(self.path, b"".join(_line(self.answers[identity]) for identity in order))


@contextmanager
def opened(path: Path) -> Iterator[AnswerFile]:
    """Open a method's answers to add to; a torn last line is cut off.

    Raises:
        AnswerError: another process writes them.
        BuildError, AnswerError: the file holds something else.
    """
    try:
        with journal.opened(path) as descriptor:
            yield AnswerFile(path, descriptor)
    except BlockingIOError:
        raise AnswerError(f"{path}: another process is writing it: wait for it, or choose another --output") from None


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, at once or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _line(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"
