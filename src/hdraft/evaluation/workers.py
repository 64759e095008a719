"""Several replicas of the target, each in a process of Ray's that has a GPU to itself where there are any."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, cast

import torch

from hdraft.evaluation.answering import Answerer, Setup, threads_of_each
from hdraft.evaluation.answers import Answer
from hdraft.evaluation.questions import Question
from hdraft.loading import quieten

_MOST_DEATHS = 3  # of workers over one question


class WorkerError(ValueError):
    """Workers that cannot be had, or do not live; one line that says what to do."""


class Worker:
    """One replica. It is loaded by a method, since Ray reports an error in a constructor as the death of the worker."""

    def load(self, setup: Setup, learned: list[list[int]], threads: int | None, question: Question) -> None:
        """Load the target, and warm up on a question."""
        quieten()
        self.answerer = Answerer(setup, learned, threads)
        self.answerer.warm_up(question)

    def answer(self, question: Question, methods: list[str]) -> list[tuple[str, Answer]]:
        """The answers of `methods` to one question."""
        return [(method, self.answerer.answer(question, method)) for method in methods]


def answer_with_workers(
    setup: Setup, pending: list[tuple[Question, list[str]]], learned: list[list[int]], num_workers: int
) -> Iterator[tuple[str, Answer]]:
    """Answer with several replicas; the question of a worker that dies is asked again, of a new one.

    Each worker's D_m learns from its own answers, and from those that were there before. A Ray that is running already
    is used, else one is started here.

    Raises:
        WorkerError: Ray is not installed, has too few GPUs, or workers die over the same question again and again.
        LoadError, DatabaseError, ValueError: what an `Answerer` raises.
    """
    try:
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
    except ImportError:
        raise WorkerError("several workers need Ray: pip install 'hdraft[ray]'") from None
    if setup.device.startswith("cuda:"):
        raise WorkerError(f"--device {setup.device} names one GPU, and each worker is given its own: leave it out")
    on_gpu = setup.device.startswith("cuda") or (setup.device == "auto" and torch.cuda.is_available())
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        gpus = int(cast(Any, ray).available_resources().get("GPU", 0))
        if on_gpu and gpus < num_workers:
            raise WorkerError(f"{num_workers} workers need a GPU each, and {gpus} are free: lower --num-workers")
        remote: Any = ray.remote(num_cpus=0, num_gpus=1 if on_gpu else 0)(Worker)
        threads = None if on_gpu else threads_of_each(num_workers)
        queue = deque(pending)
        deaths: Counter[int | str] = Counter()
        running: dict[Any, tuple[Any, tuple[Question, list[str]] | None]] = {}

        def start() -> None:
            worker = remote.remote()
            running[worker.load.remote(setup, learned, threads, pending[0][0])] = (worker, None)

        for _ in range(min(num_workers, len(pending))):
            start()
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            worker, asked = running.pop(finished)
            try:
                answered = ray.get(finished)
            except RayTaskError as error:
                raise error.cause from None
            except (RayActorError, OutOfMemoryError):
                question = pending[0][0] if asked is None else asked[0]
                deaths[question.id] += 1
                if deaths[question.id] == _MOST_DEATHS:
                    raise WorkerError(
                        f"{_MOST_DEATHS} workers died over question {question.id}, perhaps for want of memory:"
                        " lower --num-workers; what is finished is kept"
                    ) from None
                if asked is not None:
                    queue.appendleft(asked)
                start()
                continue
            if asked is not None:
                yield from answered
            if queue:
                asked = queue.popleft()
                running[worker.answer.remote(*asked)] = (worker, asked)
    finally:
        if started:
            ray.shutdown()
