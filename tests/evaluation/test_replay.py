import dataclasses
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting import UNLIMITED, DraftTree, Source, TokenIds
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter, PublishedDrafter, RestDrafter
from hdraft.evaluation.replay import accepted_path, replay
from hdraft.evaluation.traces import Request, read_trace


def request(output: list[int], prompt: list[int] = [9], category: str = "qa") -> Request:  # noqa: B006
    return Request("1", category, np.array(prompt, np.int32), np.array(output, np.int32))


class Scripted:
    """Drafts the given trees, one a step, and records what it is told."""

    vocab_size = 10

    def __init__(self, *trees: DraftTree) -> None:
        self.trees = trees
        self.told: list[object] = []

    def session(self, prompt_ids: TokenIds, costs: object = None) -> "Scripted":
        self.next = iter(self.trees)
        self.told = [(list(prompt_ids), costs)]
        return self

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        self.told.append((budget, max_depth))
        return next(self.next, DraftTree.empty())

    def extend(self, token_ids: TokenIds, ngrams: object = None, candidates: object = None) -> None:
        self.told.append(list(token_ids))

    def close(self) -> None:
        self.told.append("closed")


class Told(Scripted):
    """Wants to know whether tokens were drawn."""

    takes_draws = True

    def session(self, prompt_ids: TokenIds, costs: object = None, draws: object = None) -> "Scripted":
        super().session(prompt_ids, costs)
        self.told.append(draws is not None)
        return self


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_drafter_that_asks_is_told_whether_the_recorded_tokens_were_drawn(temperature: float) -> None:
    drawn = dataclasses.replace(request([1, 2]), temperature=temperature)
    told, other = Told(), Scripted()
    for drafter in (told, other):
        replay([drawn], drafter, 7)
    assert told.told[1] == (temperature > 0)
    assert not any(type(each) is bool for each in other.told)


def test_a_worked_example() -> None:
    tree = DraftTree(
        tokens=[1, 5, 2, 9], parents=[-1, -1, 0, 2], sources=[0, 1, 2, 0], probabilities=[0.9, 0.5, 0.4, 0.1]
    )
    drafter = Scripted(tree)
    costs = np.ones(3)
    seen: list[tuple[str, int, list[int]]] = []
    result = replay(
        [request([1, 2, 3, 4])],
        drafter,
        7,
        costs=costs,
        observe=lambda request, tree, accepted: seen.append((request.category, len(tree), accepted)),
    )
    assert seen == [("qa", 4, [0, 2]), ("qa", 0, [])]
    assert drafter.told == [([9], costs), (7, 3), [1, 2, 3], (7, 0), [4], "closed"]
    score = result.scores["all"]
    assert (score.steps, score.tokens, score.drafted, score.mat) == (2, 4, 4, 2.0)
    assert score.accepted == dict.fromkeys(Source, 0) | {Source.CONTEXT: 1, Source.STATISTICS: 1}
    assert result.scores["qa"] == score


def test_the_predicted_speedup_is_tokens_over_time_in_ordinary_steps() -> None:
    trees = [DraftTree(tokens=[1, 2, 9], parents=[-1, 0, 1]), DraftTree(tokens=[4], parents=[-1])]
    result = replay([request([1, 2, 3, 4, 5])], Scripted(*trees), 7)
    assert result.scores["all"].sizes == {3: 1, 1: 1}
    costs = np.array([2.0, 3.0, 9.0, 5.0])  # steps over 3 and 1 draft tokens: (5 + 3) / 2 = 4 ordinary steps
    assert result.scores["qa"].speedup(costs) == 5 / 4
    assert result.to_dict(costs)["categories"]["all"]["predicted_speedup"] == 5 / 4
    assert result.scores["all"].speedup(np.ones(4)) == result.scores["all"].mat == 5 / 2
    with pytest.raises(ValueError, match="the costs end at 2 draft tokens, and 3 were drafted"):
        result.to_dict(costs[:3])


def test_the_last_token_is_the_targets_own() -> None:
    tree = DraftTree(tokens=[1, 2, 3], parents=[-1, 0, 1])  # deeper than it may be
    score = replay([request([1, 2])], Scripted(tree), 7).scores["all"]
    assert (score.steps, score.tokens, sum(score.accepted.values())) == (1, 2, 1)


def test_categories_add_up_and_all_comes_first() -> None:
    trace = [request([1, 2], category="qa"), request([1], category="rag"), request([1, 2, 3], category="qa")]
    done = []
    result = replay(trace, Scripted(), 7, progress=lambda *args: done.append(args))
    assert list(result.scores) == ["all", "qa", "rag"]
    assert [score.steps for score in result.scores.values()] == [6, 5, 1]
    assert done == [(2, 6), (3, 6), (6, 6)]
    assert len(result.microseconds) == 6 and (result.microseconds > 0).all()


def test_progress_within_a_long_request() -> None:
    done = []
    replay([request([1] * 1000)], Scripted(), 7, progress=lambda *args: done.append(args))
    assert len(done) > 3 and done == sorted(done) and done[-1] == (1000, 1000)


def test_to_dict_is_json() -> None:
    tree = DraftTree(tokens=[1, 2, 5], parents=[-1, 0, 1], sources=[1, 1, 0])
    record = json.loads(json.dumps(replay([request([1, 2, 3, 4])], Scripted(tree), 7).to_dict()))
    assert list(record["categories"]) == ["all", "qa"]
    assert record["categories"]["all"] == {
        "mat": 2.0,
        "steps": 2,
        "tokens": 4,
        "drafted_per_step": 1.5,
        "accepted_share": dict.fromkeys((source.name.lower() for source in Source), 0.0) | {"model": 1.0},
    }
    assert list(record["microseconds"]) == ["mean", "p50", "p99"]


@pytest.mark.parametrize("trace", [[], [request([])]])
def test_nothing_to_replay(trace: list[Request]) -> None:
    record = replay(trace, PublishedDrafter(10), 7).to_dict()
    assert record["categories"]["all"]["steps"] == 0
    assert record["microseconds"]["p99"] == 0


@pytest.mark.parametrize("bad", [request([10]), request([1], prompt=[3, 11])])
def test_ids_that_do_not_fit_are_refused_before_anything_runs(bad: Request) -> None:
    drafter = Scripted()
    with pytest.raises(ValueError, match=r"request 1: token id 1\d is outside the drafter's vocabulary of 10"):
        replay([request([1, 2]), bad], drafter, 7)
    assert not drafter.told


def test_the_category_of_all_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="request 1: the category 'all' stands for every request"):
        replay([request([1], category="all")], Scripted(), 7)


def test_a_learning_drafter_learns_from_one_request_to_the_next() -> None:
    trace = [request([1, 2, 3, 4, 5, 6, 7, 8])] * 2
    once = replay(trace, HierarchyDrafter(10), 8).scores["all"].steps
    learning = replay(trace, HierarchyDrafter(10, learn=True), 8).scores["all"].steps
    assert learning < once


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(0, 9))
def test_replay_is_decoding(output: list[int], budget: int) -> None:
    """MAT counts the steps of a decoder that verifies each tree with a target that always says what was recorded."""
    session = PublishedDrafter(10).session([9])
    emitted, steps = 0, 0
    while emitted < len(output):
        tree = session.propose(budget, len(output) - emitted - 1)
        node = -1
        begin = emitted
        while len(child := np.flatnonzero((tree.parents == node) & (tree.tokens == output[emitted]))):
            node = int(child[0])
            emitted += 1
        emitted += 1
        session.extend(output[begin:emitted])
        steps += 1
    assert replay([request(output)], PublishedDrafter(10), budget).scores["all"].steps == steps


def test_accepted_path_takes_the_one_child_that_matches() -> None:
    tree = DraftTree(tokens=[5, 6, 7, 7, 8], parents=[-1, -1, 0, 1, 3])
    assert accepted_path(tree, np.array([6, 7, 8, 9])) == [1, 3, 4]
    assert accepted_path(tree, np.array([7])) == []
    assert accepted_path(tree, np.array([], np.int32)) == []


# On recorded output of a real model, where there is any: the peers' published figures.
SHARED = Path(os.environ.get("HDRAFT_SHARED", Path(__file__).parents[3] / "shared")) / "replay"
TRACE, GENERATIONS, CORPUS = (
    SHARED / name
    for name in ("vicuna-7b-specbench-dev.jsonl.gz", "vicuna-7b-generations.jsonl.gz", "chat-corpus-0.npy")
)
needs_traces = pytest.mark.skipif(not TRACE.exists(), reason="no recorded traces here (HDRAFT_SHARED)")
CATEGORIES = ["all", "translation", "summarization", "qa", "math_reasoning", "rag", "mt_bench"]


@pytest.fixture(scope="module")
def trace() -> list[Request]:
    return read_trace(TRACE)


@pytest.fixture(scope="module")
def model_database() -> ModelDatabase:
    with gzip.open(GENERATIONS) as lines:
        return ModelDatabase.from_documents([json.loads(line)["output_ids"] for line in lines], 32000, 2)


@needs_traces
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (None, [1.753, 1.10, 2.80, 1.54, 1.80, 1.74, 1.63]),
        ("W", [1.836, 1.11, 2.58, 1.54, 2.03, 2.02, 1.72]),
        ("S", [1.274, 1.15, 1.15, 1.24, 1.37, 1.22, 1.32]),
        ("WS", [2.112, 1.28, 2.67, 1.83, 2.35, 2.20, 2.03]),
    ],
)
def test_faithful_baselines(
    trace: list[Request], model_database: ModelDatabase, order: str | None, expected: list[float]
) -> None:
    drafter = PublishedDrafter(32000, model_database, order=order) if order else PromptLookupDrafter(32000)
    scores = replay(trace, drafter, 64).scores
    assert scores["all"].mat == pytest.approx(expected[0], abs=0.005)
    for category, mat in zip(CATEGORIES, expected, strict=True):
        assert scores[category].mat == pytest.approx(mat, abs=0.016), category


@needs_traces
def test_baselines_with_general_text(trace: list[Request], model_database: ModelDatabase) -> None:
    """Figures of this implementation, on a slice of the corpus; `benchmarks/drafting.py` has the whole."""
    tokens = np.load(CORPUS)[:2_000_000]
    statistics = StatisticsDatabase.from_tokens(tokens, 32000, 2)
    for drafter, mat in (
        (PublishedDrafter(32000, None, statistics, order="L"), 1.313),
        (PublishedDrafter(32000, model_database, statistics), 2.162),
        (RestDrafter(32000, statistics), 1.359),
    ):
        assert replay(trace, drafter, 64).scores["all"].mat == pytest.approx(mat, abs=0.003)
