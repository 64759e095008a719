"""Replay recorded requests through a drafter: its exact MAT, with no model.

Verification accepts a draft token iff it is the one that the target emitted, drawn or likeliest, so a recorded output
says what every tree would have gained. The output `1 2 3 4` with the drafts `1 2 9` and, after 3, `4`:

    step 1   accepts 1 2, and the target itself adds 3
    step 2   nothing: the last token is always the target's own, so none is drafted (max_depth 0)

2 steps for 4 tokens: MAT 2.0. The first step verifies the first draft with the prompt.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.drafting import Drafter, DraftTree, Source
from hdraft.drafting.drafter import Candidates, DraftSession, UnknownDraws, takes_draws, uses_candidates
from hdraft.evaluation.costs import BUDGET, cost_curve
from hdraft.evaluation.machine import machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of

ALL = "all"
"""The category of every request."""

_NEITHER = {"model_database": None, "statistics_database": None, "learn": False, "adaptive": False}
_REPORTED = 256  # steps of one request between two calls of `progress`


@dataclass
class Score:
    """The gain of drafting over some requests.

    Attributes:
        tokens: tokens emitted.
        sizes: how many steps verified 0, 1, 2, … draft tokens, by that number.
        accepted: draft tokens accepted, by their source.
    """

    tokens: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    accepted: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))

    @property
    def steps(self) -> int:
        """Forward passes of the target, the first, with the prompt, too."""
        return self.sizes.total()

    @property
    def drafted(self) -> int:
        """Draft tokens verified."""
        return sum(size * steps for size, steps in self.sizes.items())

    @property
    def mat(self) -> float:
        """Mean accepted tokens: tokens emitted a step; 1.0 is ordinary decoding."""
        return self.tokens / max(self.steps, 1)

    def speedup(self, costs: npt.NDArray[np.floating]) -> float:
        """The predicted speed-up: tokens emitted in the time of one ordinary step; 1.0 is ordinary decoding.

        Args:
            costs: float[m], the time of a step over 0, 1, 2, … draft tokens. What drafting itself takes is left out.

        Raises:
            ValueError: a step verified `m` draft tokens or more.
        """
        if max(self.sizes, default=0) >= len(costs):
            raise ValueError(f"the costs end at {len(costs) - 1} draft tokens, and {max(self.sizes)} were drafted")
        time = sum(steps * float(costs[size]) for size, steps in self.sizes.items()) / float(costs[0])
        return self.tokens / time if time else 0.0

    def to_dict(self, costs: npt.NDArray[np.floating] | None = None) -> dict[str, Any]:
        """As JSON; `accepted_share` is each source's part of all accepted draft tokens.

        With costs, `predicted_speedup` too, see `speedup`.
        """
        accepted = max(sum(self.accepted.values()), 1)
        figures = {
            "mat": self.mat,
            "steps": self.steps,
            "tokens": self.tokens,
            "drafted_per_step": self.drafted / max(self.steps, 1),
            "accepted_share": {source.name.lower(): n / accepted for source, n in self.accepted.items()},
        }
        return figures if costs is None else figures | {"predicted_speedup": self.speedup(costs)}


@dataclass(frozen=True)
class ReplayResult:
    """The measurements of a replay.

    Attributes:
        scores: by category, in the order of the trace; that of all requests, under `ALL`, first.
        microseconds: float64[steps], the time of propose and extend in each step.
    """

    scores: dict[str, Score]
    microseconds: npt.NDArray[np.float64]

    def to_dict(self, costs: npt.NDArray[np.floating] | None = None) -> dict[str, Any]:
        """As JSON: `categories`, each with its score, and `microseconds` a step (`mean`, `p50`, `p99`)."""
        times = self.microseconds if len(self.microseconds) else np.zeros(1)
        p50, p99 = np.percentile(times, (50, 99))
        return {
            "categories": {category: score.to_dict(costs) for category, score in self.scores.items()},
            "microseconds": {"mean": float(times.mean()), "p50": float(p50), "p99": float(p99)},
        }


def replay_files(
    traces: Sequence[str | os.PathLike[str]],
    method: str = "hd",
    budget: int | None = None,
    *,
    model_database: str | os.PathLike[str] | None = None,
    statistics_database: str | os.PathLike[str] | None = None,
    learn: bool | None = None,
    adaptive: bool = False,
    cost: str | os.PathLike[str] | None = None,
    order: str | None = None,
    ngram_size: int | None = None,
    guess: int | None = None,
    previous_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Replay traces from files through a method, as `hdraft replay` does; nothing is written to disk.

    Args:
        traces: see `read_trace`.
        method: `hd`, `retrieval`, `published`, `pld` or `rest`. An option below that it does not use is refused.
        budget: the most draft tokens a step; 64 if it is not given, or as many as the cost curve goes up to.
        model_database: D_m, a folder or a name on the Hub (hd, published).
        statistics_database: D_s (hd, published, rest).
        learn: whether finished requests join D_m in memory (hd; by default they do).
        adaptive: whether the drafter's budget rule decides how much is worth drafting, by the cost curve (hd).
        cost: a built-in cost curve or a file, see `cost_curve`, to predict the speed-up with; `gpu` if adaptive.
        order, ngram_size, guess, previous_tokens: see `PublishedDrafter` (published).
        progress: see `replay`.

    Returns:
        As JSON: `settings`, `machine`, and what `ReplayResult.to_dict` has.

    Raises:
        DatabaseError, ValueError: arguments or files that do not go together; one line that says what to do.
        OSError: a file cannot be read.
    """
    options = method_options(
        method,
        model_database=model_database,
        statistics_database=statistics_database,
        learn=learn,
        adaptive=adaptive,
        order=order,
        ngram_size=ngram_size,
        guess=guess,
        previous_tokens=previous_tokens,
        window=0,  # a trace has no logits to run a lookahead branch on
    )
    if budget is not None and budget < 0:
        raise ValueError(f"the budget is {budget}: it must be at least 0")
    cost = "gpu" if cost is None and adaptive else cost
    costs = None if cost is None else cost_curve(cost, budget)
    if budget is None:
        budget = BUDGET if costs is None else len(costs) - 1
    trace = read_traces(traces)
    drafter = open_drafter(method, options, needed=vocabulary_of(trace))
    result = replay(trace, drafter, budget, costs=costs if adaptive else None, progress=progress)
    settings = {
        "traces": [str(trace) for trace in traces],
        "method": method,
        "budget": budget,
        **_NEITHER,
        **options,
        "cost": cost,
    }
    return {
        "settings": {name: str(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()},
        "machine": machine(),
        **result.to_dict(costs),
    }


def replay(
    trace: Sequence[Request],
    drafter: Drafter,
    budget: int,
    *,
    costs: npt.NDArray[np.floating] | None = None,
    observe: Callable[[Request, DraftTree, list[int]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReplayResult:
    """Replay a trace, one request after another, and close each session, so that a drafter that learns does.

    Args:
        trace: the requests, see `read_trace`.
        drafter: what to measure.
        budget: the most draft tokens a step.
        costs: float[m], for drafters that choose how much to draft; see `Drafter.session`.
        observe: called in each step with the request, the tree, and its nodes that were accepted.
        progress: called with the number of tokens emitted and of all, after each request, and within long ones.

    Raises:
        ValueError: a request's ids do not fit the drafter's vocabulary, or its category is `ALL`.
    """
    for request in trace:
        if request.largest_id >= drafter.vocab_size:
            raise ValueError(
                f"request {request.id}: token id {request.largest_id} is outside the drafter's vocabulary of "
                f"{drafter.vocab_size}: replay a trace with databases of the same tokenizer"
            )
        if request.category == ALL:
            raise ValueError(f"request {request.id}: the category {ALL!r} stands for every request: name it otherwise")
    for request in trace[:1]:  # load the compiled kernels before the clock runs; a session never closed leaves no trace
        session = begin(request, drafter, costs)
        session.propose(budget)
        session.extend(request.output_ids[:1])
    scores = {ALL: Score()}
    microseconds: list[float] = []
    total = sum(len(request.output_ids) for request in trace)
    done = 0
    recycles = uses_candidates(drafter)
    for request in trace:
        both = (scores[ALL], scores.setdefault(request.category, Score()))
        output = request.output_ids
        emitted = steps = 0
        session = begin(request, drafter, costs)
        while emitted < len(output):
            start = perf_counter_ns()
            tree = session.propose(budget, len(output) - emitted - 1)
            nanoseconds = perf_counter_ns() - start
            path = accepted_path(tree, output[emitted:-1])
            tokens = output[emitted : emitted + len(path) + 1]
            candidates = None if not recycles else recorded_candidates(request, emitted, tree, path)
            start = perf_counter_ns()
            session.extend(tokens, candidates=candidates)
            microseconds.append((nanoseconds + perf_counter_ns() - start) / 1000)
            emitted += len(tokens)
            steps += 1
            for score in both:
                score.tokens += len(tokens)
                score.sizes[len(tree)] += 1
                for node in path:
                    score.accepted[Source(tree.sources[node])] += 1
            if observe is not None:
                observe(request, tree, path)
            if progress is not None and steps % _REPORTED == 0:
                progress(done + emitted, total)
        session.close()
        done += emitted
        if progress is not None:
            progress(done, total)
    return ReplayResult(scores, np.array(microseconds))


def begin(request: Request, drafter: Drafter, costs: npt.NDArray[np.floating] | None = None) -> DraftSession:
    """The session of a recorded request; a trace does not say by which random numbers its tokens were drawn."""
    drawn = {"draws": UnknownDraws()} if request.temperature and takes_draws(drafter) else {}
    return drafter.session(request.prompt_ids, costs, **drawn)


def recorded_candidates(request: Request, emitted: int, tree: DraftTree, path: list[int]) -> Candidates | None:
    """What a trace knows of a step's candidates, behind `emitted` tokens of output: those of the accepted nodes.

    The rows of rejected nodes are not known; None where the trace has no candidates.
    """
    if request.candidates is None or request.log_probabilities is None:
        return None
    shape = 1 + len(tree), request.candidates.shape[1]
    tokens, scores = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    rows = [0, *(1 + node for node in path)]
    tokens[rows] = request.candidates[emitted : emitted + len(rows)]
    scores[rows] = request.log_probabilities[emitted : emitted + len(rows)]
    return Candidates(tree, tokens, scores)


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
