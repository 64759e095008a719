"""The evaluation: every method on every question, resumed where it was stopped.

Methods take turns, question by question, so that a machine whose speed drifts slows them all alike. A folder holds
`METHOD.jsonl` for each (`answers`), `settings.json`, which a later run must agree with, and the report.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch

from hdraft import files
from hdraft.evaluation import answers, report
from hdraft.evaluation.answering import Answerer, Setup, threads_of_each
from hdraft.evaluation.answers import Answer, AnswerError, AnswerFile
from hdraft.evaluation.differences import find_differences
from hdraft.evaluation.machine import accelerator, machine
from hdraft.evaluation.questions import Question, read_questions
from hdraft.text import dump_json, parse_json

_DATABASES = ("model_database", "statistics_database")
_GROWING = ("methods", "contents")  # settings that later runs may add to

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
    with _held(output), ExitStack() as stack:
        _agree(output / report.SETTINGS, _settings(setup, Path(questions), num_workers))
        by_method = {name: stack.enter_context(answers.opened(output / f"{name}.jsonl")) for name in setup.methods}
        for file in by_method.values():
            if not all(map(answers.is_ours, file.answers.values())):
                raise AnswerError(f"{file.path} holds answers that hdraft bench did not write: choose another --output")
        missing = [(each, [name for name in by_method if each.id not in by_method[name].answers]) for each in selected]
        pending = [(question, methods) for question, methods in missing if methods]
        total = len(selected) * len(by_method)
        done = total - sum(len(methods) for _, methods in pending)
        if pending:
            for method, answer in _runner(num_workers)(setup, pending, _learned(by_method)):
                by_method[method].add(answer)
                done += 1
                if progress is not None:
                    progress(done, total)
        for file in by_method.values():
            file.sort([question.id for question in everything])
        files.replace(output / report.DIFFERENCES, _dump(find_differences(setup, everything, output)))
        return report.write(output)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs, as what they would write there are other settings; made if it is not there.

    A run that fails before anything is answered leaves nothing behind.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    new = not (folder / report.SETTINGS).exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.exclusive(folder):
            yield
    except BlockingIOError:
        raise AnswerError(f"another run is writing {folder}: wait for it, or choose another --output") from None
    except BaseException:
        if new and not any(folder.glob("*.jsonl")):
            (folder / report.SETTINGS).unlink(missing_ok=True)
        for each in created:
            with suppress(OSError):
                each.rmdir()
        raise


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


def _learned(by_method: dict[str, AnswerFile]) -> list[list[int]]:
    """The answers that a learning D_m had taken in when an earlier run stopped."""
    method = next((method for method in ("hd", "retrieval") if method in by_method), None)
    if method is None:
        return []
    choices = (choice for answer in by_method[method].answers.values() for choice in answer["choices"])
    return [output_ids for choice in choices for output_ids in choice["hdraft"]["output_ids"]]


def _settings(setup: Setup, questions: Path, num_workers: int) -> dict[str, Any]:
    named = [setup.model]
    named += [
        options[name] for options in setup.methods.values() for name in _DATABASES if options.get(name) is not None
    ]
    threads = torch.get_num_threads() if num_workers == 1 else threads_of_each(num_workers)
    return {
        **setup.as_json(),
        "contents": {str(name): _contents(Path(name)) for name in named},
        "questions": sha256(questions.read_bytes()).hexdigest(),
        "question_file": questions.name,
        "num_workers": num_workers,
        "machine": {**machine(), "threads": threads, "accelerator": accelerator(setup.device)},
    }


def _contents(folder: Path) -> str | None:
    """A hash that changes when a folder does, from its files' names, sizes and times; None for a name on the Hub."""
    if not folder.is_dir():
        return None
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()]
    return sha256(repr(sorted(files)).encode()).hexdigest()[:16]


def _agree(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or make sure that they are those of the answers that are there; methods may be added."""
    answered = any(file.stat().st_size for file in path.parent.glob("*.jsonl"))
    if answered and not path.exists():
        raise AnswerError(f"{path.parent} holds files that are no run of hdraft bench: choose another --output")
    if answered:
        try:
            known = parse_json(path.read_bytes())
            grown = {name: known[name] | settings[name] for name in _GROWING}
        except (ValueError, KeyError, TypeError):
            raise AnswerError(f"{path} is damaged: choose another --output") from None
        for name, value in settings.items():
            if name in _GROWING:
                for each in known[name].keys() & value.keys():
                    if known[name][each] != value[each]:
                        raise _disagreement(path, each, known[name][each], value[each])
            elif name != "question_file" and known.get(name) != value:
                raise _disagreement(path, name, known.get(name), value)
        settings = settings | grown
    files.replace(path, _dump(settings))


def _disagreement(path: Path, name: str, known: Any, value: Any) -> AnswerError:
    return AnswerError(
        f"{path.parent} holds answers with {name} = {json.dumps(known)}, and now it is {json.dumps(value)}:"
        " choose another --output"
    )


def _dump(value: Any) -> bytes:
    return dump_json(value, indent=1).encode()
