"""Replay recorded requests through a drafter: its exact MAT, with no model.

Greedy verification accepts a draft token iff it is the one that the target emitted, so a recorded output says what
every tree would have gained. The output `1 2 3 4` with the drafts `1 2 9` and, after 3, `4`:

    step 1   accepts 1 2, and the target itself adds 3
    step 2   nothing: the last token is always the target's own, so none is drafted (max_depth 0)

2 steps for 4 tokens: MAT 2.0. The first step verifies the first draft with the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.drafting import Drafter, DraftTree, Source
from hdraft.evaluation.traces import Request

ALL = "all"
"""The category of every request."""


@dataclass
class Score:
    """What drafting gained over some requests.

    Attributes:
        steps: forward passes of the target, the first, with the prompt, too.
        tokens: tokens emitted.
        drafted: draft tokens verified.
        accepted: draft tokens accepted, by their source.
    """

    steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))

    @property
    def mat(self) -> float:
        """Mean accepted tokens: tokens emitted a step; 1.0 is ordinary decoding."""
        return self.tokens / max(self.steps, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `accepted_share` is each source's part of all accepted draft tokens."""
        accepted = max(sum(self.accepted.values()), 1)
        return {
            "mat": self.mat,
            "steps": self.steps,
            "tokens": self.tokens,
            "drafted_per_step": self.drafted / max(self.steps, 1),
            "accepted_share": {source.name.lower(): n / accepted for source, n in self.accepted.items()},
        }


@dataclass(frozen=True)
class Calibration:
    """Each drafted node's estimated probability, and whether verification reached and accepted it.

    Attributes:
        probabilities: float32[n].
        accepted: bool[n].
    """

    probabilities: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReplayResult:
    """What a replay measured.

    Attributes:
        scores: by category, in the order of the trace; that of all requests, under `ALL`, first.
        microseconds: float64[steps], the time of propose and extend in each step.
        calibration: if it was asked for.
    """

    scores: dict[str, Score]
    microseconds: npt.NDArray[np.float64]
    calibration: Calibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `categories`, each with its score, and `microseconds` a step (`mean`, `p50`, `p99`)."""
        times = self.microseconds if len(self.microseconds) else np.zeros(1)
        p50, p99 = np.percentile(times, (50, 99))
        return {
            "categories": {category: score.to_dict() for category, score in self.scores.items()},
            "microseconds": {"mean": float(times.mean()), "p50": float(p50), "p99": float(p99)},
        }


def replay(
    trace: Sequence[Request],
    drafter: Drafter,
    budget: int,
    *,
    costs: npt.NDArray[np.floating] | None = None,
    calibrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ReplayResult:
    """Replay a trace, one request after another, and close each session, so that a drafter that learns does.

    Args:
        trace: the requests, see `read_trace`.
        drafter: what to measure.
        budget: the most draft tokens a step.
        costs: float[m], for drafters that choose how much to draft; see `Drafter.session`.
        calibrate: whether to keep each node's probability and fate.
        progress: called after each request with the number done and the number of all.

    Raises:
        ValueError: a request's ids do not fit the drafter's vocabulary.
    """
    for request in trace:
        largest = max(request.prompt_ids.max(initial=0), request.output_ids.max(initial=0))
        if largest >= drafter.vocab_size:
            raise ValueError(
                f"request {request.id}: token id {largest} is outside the drafter's vocabulary of "
                f"{drafter.vocab_size}: replay a trace with databases of the same tokenizer"
            )
    for request in trace[:1]:  # load the compiled kernels before the clock runs; a session never closed leaves no trace
        session = drafter.session(request.prompt_ids, costs)
        session.propose(budget)
        session.extend(request.output_ids[:1])
    scores = {ALL: Score()}
    microseconds: list[float] = []
    probabilities: list[npt.NDArray[np.float32]] = []
    fates: list[npt.NDArray[np.bool_]] = []
    for done, request in enumerate(trace, start=1):
        score = scores.setdefault(request.category, Score())
        output = request.output_ids
        emitted = 0
        session = drafter.session(request.prompt_ids, costs)
        while emitted < len(output):
            start = perf_counter_ns()
            tree = session.propose(budget, len(output) - emitted - 1)
            nanoseconds = perf_counter_ns() - start
            path = accepted_path(tree, output[emitted:-1])
            tokens = output[emitted : emitted + len(path) + 1]
            start = perf_counter_ns()
            session.extend(tokens)
            microseconds.append((nanoseconds + perf_counter_ns() - start) / 1000)
            emitted += len(tokens)
            for each in (scores[ALL], score):
                each.steps += 1
                each.tokens += len(tokens)
                each.drafted += len(tree)
                for node in path:
                    each.accepted[Source(tree.sources[node])] += 1
            if calibrate:
                probabilities.append(tree.probabilities)
                fates.append(np.isin(np.arange(len(tree)), path))
        session.close()
        if progress is not None:
            progress(done, len(trace))
    calibration = Calibration(_join(probabilities, np.float32), _join(fates, np.bool_)) if calibrate else None
    return ReplayResult(scores, np.array(microseconds), calibration)


def accepted_path(tree: DraftTree, output_ids: npt.NDArray[np.integer]) -> list[int]:
    """The nodes that greedy verification accepts where the target goes on with `output_ids`, from the root down.

    >>> accepted_path(DraftTree(tokens=[5, 6, 7], parents=[-1, 0, 0]), np.array([5, 7, 8]))
    [0, 2]
    """
    path: list[int] = []
    parent = -1
    expected = iter(output_ids.tolist())
    token = next(expected, None)
    for node, candidate in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
        if candidate == (parent, token):  # parents come before children
            path.append(node)
            parent = node
            token = next(expected, None)
    return path


def _join(arrays: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])
