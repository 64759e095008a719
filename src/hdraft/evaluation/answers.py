"""Answers on disk: Spec-Bench's own JSON lines, a file for each method, that survive being killed.

A line is written whole and synced before the next question is begun; a torn last line is cut off when the file is next
opened. A finished file holds the answers in the order of the questions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdraft import files
from hdraft.drafting import Source
from hdraft.text import dump_json

Answer = dict[str, Any]
"""A line: `question_id`, `category`, `answer_id`, `model_id`, `choices`, `tstamp`."""

_LISTS = ("turns", "new_tokens", "wall_time", "accept_lengths")
_SOURCES = {source.name.lower() for source in Source}
_ALWAYS = {"context", "model", "statistics"}  # of answers that were written before there were others
_SHORTEST, _LONGEST = 1e-9, 1e9  # seconds that can be those of an answer


class AnswerError(ValueError):
    """Answers that cannot be read, or not be added to; one line that says what to do."""


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, as this project or Spec-Bench wrote them; of two to one question, the last.

    A last line that a killed run was writing is passed over.

    Raises:
        AnswerError: the file cannot be read, or a line is no answer; by file and line.
    """
    answers: dict[Any, Answer] = {}
    for where, record, _ in files.json_lines(path, AnswerError, torn=True):
        _check(where, record)
        answers[record["question_id"]] = record
    return list(answers.values())


def is_ours(answer: Answer) -> bool:
    """Whether `hdraft bench` wrote an answer, with the token ids of each turn."""
    return all("hdraft" in choice for choice in answer["choices"])


def _check(where: str, record: Answer) -> None:
    """Refuse what is not an answer as far as a report reads it."""
    choices, category = record.get("choices"), record.get("category")
    if type(record.get("question_id")) not in (int, str) or not isinstance(category, str) or category in ("", "all"):
        raise AnswerError(f'{where}: is no answer of Spec-Bench: "question_id" or "category" is missing, or of no use')
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise AnswerError(f'{where}: is no answer of Spec-Bench: "choices" must be a list of objects')
    for choice in choices:
        for name in _LISTS:
            if not isinstance(choice.get(name), list):
                raise AnswerError(f'{where}: is no answer of Spec-Bench: "{name}" must be a list')
        if not _counts(choice["new_tokens"]) or not _counts(choice["accept_lengths"]):
            raise AnswerError(f"{where}: new_tokens and accept_lengths must be counts of tokens")
        if not _seconds(choice["wall_time"]):
            raise AnswerError(f"{where}: wall_time must be seconds")
        if len(choice["new_tokens"]) != len(choice["wall_time"]) or sum(choice["wall_time"]) < _SHORTEST:
            raise AnswerError(f"{where}: each turn needs its new_tokens and its wall_time, some time in all")
        if "hdraft" in choice and not _is_ours(choice["hdraft"]):
            raise AnswerError(f'{where}: "hdraft" is not what hdraft bench writes: remove the field')


def _is_ours(fields: Any) -> bool:
    """Whether this is a choice's own field, complete."""
    if not isinstance(fields, dict) or not _lists_of(fields.get("output_ids"), list):
        return False
    if not all(map(_counts, fields["output_ids"])):
        return False
    if "drafted" not in fields:
        return True
    accepted = fields.get("accepted")
    return (
        _counts(fields["drafted"])
        and _seconds(fields.get("seconds_drafting"))
        and isinstance(accepted, dict)
        and _ALWAYS <= accepted.keys() <= _SOURCES
        and all(map(_counts, accepted.values()))
    )


def _counts(values: Any) -> bool:
    return _lists_of(values, int) and all(0 <= value < 2**31 for value in values)


def _seconds(values: Any) -> bool:
    return _lists_of(values, int, float) and all(0 <= value < _LONGEST for value in values)


def _lists_of(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= set(kinds)


class AnswerFile:
    """The answers of one method, open to add to.

    Attributes:
        answers: by question id.
    """

    def __init__(self, journal: files.Journal) -> None:
        self.path = journal.path
        self._journal = journal
        _, size, torn = files.whole_lines(self.path)
        if torn:
            journal.cut(size)
        self.answers = {answer["question_id"]: answer for answer in read_answers(self.path)}

    def add(self, answer: Answer) -> None:
        """Append an answer, and sync it."""
        self._journal.append(_line(answer))
        self.answers[answer["question_id"]] = answer

    def sort(self, question_ids: Sequence[int | str]) -> None:
        """Put the answers into the order of the questions, at once or not at all; others stay behind them."""
        order = dict.fromkeys(identity for identity in (*question_ids, *self.answers) if identity in self.answers)
        files.replace(self.path, b"".join(_line(self.answers[identity]) for identity in order))


@contextmanager
def opened(path: Path) -> Iterator[AnswerFile]:
    """Open a method's answers to add to; a torn last line is cut off.

    Raises:
        AnswerError: another process writes them, or the file holds something else.
    """
    try:
        with files.journal(path) as journal:
            yield AnswerFile(journal)
    except BlockingIOError:
        raise AnswerError(f"{path}: another process is writing it: wait for it, or choose another --output") from None


def _line(answer: Answer) -> bytes:
    return dump_json(answer).encode()
