"""The evaluation: every method on every question, resumed where it was stopped.

Methods take turns, question by question, so that a machine whose speed drifts slows them all alike. A folder holds
`METHOD.jsonl` for each (`answers`), `settings.json`, which a later run must agree with, and the report.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch

from hdraft.evaluation import answers, report
from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.answers import Answer, AnswerError, AnswerFile
from hdraft.evaluation.differences import find_differences
from hdraft.evaluation.machine import machine
from hdraft.evaluation.questions import Question, read_questions

Pending = list[tuple[Question, list[str]]]
"""Questions, and the methods that have not answered them."""


class Run(Protocol):
    """Answers what is pending, in any order."""

    def __call__(self, setup: Setup, pending: Pending, learned: list[list[int]]) -> Iterator[tuple[str, Answer]]:
        """Yield a method and its answer as they come."""
        ...


def bench(
    setup: Setup,
    questions: str | os.PathLike[str],
    output: Path,
    *,
    begin: int | None = None,
    end: int | None = None,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Let every method answer every question that it has not answered yet, and report.

    Args:
        setup: the target, the methods, and all that answers depend on.
        questions: a file, see `read_questions`.
        output: a folder: new, or an earlier run's.
        begin, end: of the questions, those from index `begin` to before index `end`.
        num_workers: replicas of the target, each in a process of Ray's where there are several.
        progress: called with how many answers are there, and of how many.

    Returns:
        The report, see `report.report`.

    Raises:
        AnswerError: the folder holds answers of other settings, or from another machine.
        ValueError, OSError: arguments or files that do not go together, or cannot be had.
    """
    everything, selected = read_questions(questions), read_questions(questions, begin, end)
    output.mkdir(parents=True, exist_ok=True)
    _agree(output / report.SETTINGS, _settings(setup, Path(questions), num_workers))
    with ExitStack() as stack:
        files = {method: stack.enter_context(answers.opened(output / f"{method}.jsonl")) for method in setup.methods}
        missing = [(each, [name for name in files if each.id not in files[name].answers]) for each in selected]
        pending = [(question, methods) for question, methods in missing if methods]
        total = len(selected) * len(files)
        done = total - sum(len(methods) for _, methods in pending)
        if pending:
            for method, answer in _runner(num_workers)(setup, pending, _learned(files)):
                files[method].add(answer)
                done += 1
                if progress is not None:
                    progress(done, total)
        for file in files.values():
            file.sort([question.id for question in everything])
        answers.replace(output / report.DIFFERENCES, _dump(find_differences(setup, everything, output)))
    return report.write(output)


def answer_here(setup: Setup, pending: Pending, learned: list[list[int]]) -> Iterator[tuple[str, Answer]]:
    """Answer with one replica, in this process."""
    answerer = Answerer(setup, learned)
    answerer.warm_up(pending[0][0])
    for question, methods in pending:
        for method in methods:
            yield method, answerer.answer(question, method)


def _runner(num_workers: int) -> Run:
    if num_workers == 1:
        return answer_here
    from hdraft.evaluation.workers import answer_with_workers

    def run(setup: Setup, pending: Pending, learned: list[list[int]]) -> Iterator[tuple[str, Answer]]:
        return answer_with_workers(setup, pending, learned, num_workers)

    return run


def _learned(files: dict[str, AnswerFile]) -> list[list[int]]:
    """What a learning D_m had taken in when an earlier run stopped."""
    if "hd" not in files:
        return []
    choices = (choice for answer in files["hd"].answers.values() for choice in answer["choices"])
    return [output_ids for choice in choices for output_ids in choice["hdraft"]["output_ids"]]


def _settings(setup: Setup, questions: Path, num_workers: int) -> dict[str, Any]:
    return {
        **setup.as_json(),
        "questions": {"file": questions.name, "sha256": sha256(questions.read_bytes()).hexdigest()},
        "num_workers": num_workers,
        "machine": {**machine(), "threads": torch.get_num_threads(), "accelerator": _accelerator()},
    }


def _accelerator() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _agree(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or make sure that they are those of the answers that are there; methods may be added."""
    answered = any(file.stat().st_size for file in path.parent.glob("*.jsonl"))
    if answered and path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            methods = known["methods"]
        except (ValueError, KeyError, TypeError):
            raise AnswerError(f"{path} is damaged: choose another --output") from None
        for name, value in settings.items():
            if name == "methods":
                other = next((each for each, options in value.items() if methods.get(each, options) != options), None)
                if other is not None:
                    raise _disagreement(path, other, methods[other], value[other])
            elif known.get(name) != value:
                raise _disagreement(path, name, known.get(name), value)
        settings = {**settings, "methods": methods | settings["methods"]}
    elif answered:
        raise AnswerError(f"{path.parent} holds files that are no run of hdraft bench: choose another --output")
    answers.replace(path, _dump(settings))


def _disagreement(path: Path, name: str, known: Any, value: Any) -> AnswerError:
    return AnswerError(
        f"{path.parent} holds answers with {name} = {json.dumps(known)}, and now it is {json.dumps(value)}:"
        " choose another --output"
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
