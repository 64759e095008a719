"""What every Drafter must do, whatever its method: add a new one to `DRAFTERS`."""

import random
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hdraft
from hdraft.drafting import UNLIMITED, Drafter, DraftSession, DraftTree, Source
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import Candidates, lookahead_branch, lookahead_nodes, weighs_costs
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter, PublishedDrafter, RestDrafter

VOCAB = 12
EOS = 0


def text(seed: int, length: int) -> list[int]:
    """Repetitive, so that every method finds something to draft."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(1, VOCAB) for _ in range(rng.randrange(2, 6))] for _ in range(4)]
    ids: list[int] = []
    while len(ids) < length:
        ids += rng.choice(phrases)
    return ids[:length]


MODEL = ModelDatabase.from_documents([text(seed, 40) for seed in range(8)], VOCAB, EOS)
STATISTICS = StatisticsDatabase.from_documents([text(seed, 60) for seed in range(20)], VOCAB, EOS)

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "published": lambda: PublishedDrafter(VOCAB, MODEL, STATISTICS),
    "published, D_c alone": lambda: PublishedDrafter(VOCAB),
    "published, with a lookahead branch": lambda: PublishedDrafter(VOCAB, MODEL, STATISTICS, window=4),
    "prompt lookup": lambda: PromptLookupDrafter(VOCAB, draft=4),
    "REST": lambda: RestDrafter(VOCAB, STATISTICS),
    "hierarchy": lambda: HierarchyDrafter(VOCAB, MODEL, STATISTICS),
    "hierarchy, D_c alone": lambda: HierarchyDrafter(VOCAB),
    "hierarchy, learning": lambda: HierarchyDrafter(VOCAB, learn=True),
}


@pytest.fixture(params=DRAFTERS)
def drafter(request: pytest.FixtureRequest) -> Drafter:
    return DRAFTERS[request.param]()


def assert_conforms(tree: DraftTree, budget: int, max_depth: int) -> None:
    tokens, parents, depths = tree.tokens.tolist(), tree.parents.tolist(), tree.depths.tolist()
    assert len(tokens) == len(parents) == len(depths) == len(tree.sources) == len(tree.probabilities) <= budget
    assert tree.tokens.dtype == tree.parents.dtype == tree.depths.dtype == np.int32
    assert tree.sources.dtype == np.uint8 and tree.probabilities.dtype == np.float32
    assert all(-1 <= parent < node for node, parent in enumerate(parents)), "a parent behind its child"
    assert depths == [1 if parent < 0 else depths[parent] + 1 for parent in parents]
    assert max(depths, default=0) <= max_depth
    assert len(set(zip(parents, tokens, strict=True))) == len(tokens), "siblings hold the same token"
    assert all(0 <= token < VOCAB for token in tokens)
    assert all(0 <= p <= 1 for p in tree.probabilities.tolist())
    assert set(tree.sources.tolist()) <= set(Source)


def as_lists(tree: DraftTree) -> list[list[float]]:
    return [getattr(tree, name).tolist() for name in DraftTree.__slots__]


def trees(drafter: Drafter, prompt: list[int], steps: Iterable[list[int]], budget: int = 20) -> list[list[list[float]]]:
    session = drafter.session(prompt)
    drafts = []
    for tokens in steps:
        drafts.append(as_lists(session.propose(budget)))
        session.extend(tokens)
    session.close()
    return drafts


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", DRAFTERS)
def test_trees_are_tries_within_bounds(name: str, data: st.DataObject) -> None:
    ids = st.integers(0, VOCAB - 1)
    session = DRAFTERS[name]().session(data.draw(st.lists(ids, max_size=40)))
    for step in data.draw(st.lists(st.lists(ids, min_size=1, max_size=6), max_size=6)):
        budget, max_depth = data.draw(st.integers(0, 70)), data.draw(st.sampled_from([0, 1, 2, 5, UNLIMITED]))
        assert_conforms(session.propose(budget, max_depth), budget, max_depth)
        session.extend(step)
    session.close()


def test_drafts_something_and_repeats_itself(drafter: Drafter) -> None:
    session = drafter.session(text(3, 50))
    tree = session.propose(16)
    assert len(tree)
    assert as_lists(tree) == as_lists(session.propose(16))


def test_trees_are_never_changed_later(drafter: Drafter) -> None:
    session = drafter.session(text(5, 50))
    kept = []
    for token in text(5, 80)[50:]:
        tree = session.propose(16)
        kept.append((tree, as_lists(tree)))
        session.extend([token])
    session.close()
    assert all(as_lists(tree) == before for tree, before in kept)


@pytest.mark.parametrize("prompt", [[], [4], np.array([4], np.int64), np.array([], np.int64)])
def test_short_prompts(drafter: Drafter, prompt: list[int]) -> None:
    session = drafter.session(prompt)
    assert_conforms(session.propose(16), 16, UNLIMITED)
    for token in text(2, 30):
        session.extend([token])
        assert_conforms(session.propose(16), 16, UNLIMITED)


def test_no_budget_or_no_depth_is_no_draft(drafter: Drafter) -> None:
    session = drafter.session(text(3, 50))
    assert len(session.propose(0)) == len(session.propose(16, 0)) == 0


def test_several_tokens_at_once_are_the_same_text(drafter: Drafter) -> None:
    ids = text(1, 60)
    whole = drafter.session(ids).propose(16)
    steps = drafter.session([])
    for begin in range(0, 60, 7):
        steps.extend(np.array(ids[begin : begin + 7], np.int32))
    tree = steps.propose(16)
    # Probabilities may have been learnt from the output, and with them the order; not so for methods without.
    if np.all(whole.probabilities == 1):
        assert as_lists(tree) == as_lists(whole)
    assert_conforms(tree, 16, UNLIMITED)


@pytest.mark.parametrize("bad", [[VOCAB], [-1], [1, 2, VOCAB, 3], np.array([2**31], np.int64)])
def test_ids_outside_the_vocabulary_are_refused(drafter: Drafter, bad: list[int]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        drafter.session(bad)
    session = drafter.session(text(3, 50))
    before = as_lists(session.propose(16))
    with pytest.raises(ValueError, match="vocabulary"):
        session.extend(bad)
    assert as_lists(session.propose(16)) == before, "a refused step changed the session"


def test_closing_twice_is_closing_once(drafter: Drafter) -> None:
    session = drafter.session(text(3, 30))
    session.extend([1, 2])
    session.close()
    session.close()


def test_ngrams_and_candidates_are_taken(drafter: Drafter) -> None:
    session = drafter.session(text(3, 30))
    tree = session.propose(8)
    tokens = np.ones((1 + len(tree), 4), np.int64)
    ngrams = np.array([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]])
    session.extend([1], ngrams=ngrams, candidates=Candidates(tree, tokens, np.log(tokens / 4)))
    assert_conforms(session.propose(16), 16, UNLIMITED)


def test_no_lookahead_branch_is_larger_than_its_drafter_says(drafter: Drafter) -> None:
    session = drafter.session(text(3, 30))
    branch = lookahead_branch(session)
    assert (branch is None) == (lookahead_nodes(drafter) == 0)
    for _ in range(6 if branch is not None else 0):
        assert branch is not None and 0 < len(branch.nodes()) <= lookahead_nodes(drafter)
        session.extend([1], branch.advance(np.ones(len(branch.rows[-1])), 1))


def test_a_drafter_without_the_optional_attributes_is_one_too() -> None:
    class Minimal:
        vocab_size = VOCAB

    assert not weighs_costs(cast(Drafter, Minimal()))
    assert lookahead_nodes(cast(Drafter, Minimal())) == 0
    assert lookahead_branch(cast(DraftSession, Minimal())) is None
    assert not weighs_costs(None) and lookahead_nodes(None) == 0


def test_nothing_else_of_a_drafter_is_found_by_guessing() -> None:
    """Who uses one reads what the protocol declares."""
    package = Path(hdraft.__file__).parent
    guess = re.compile(r"(get|has)attr\(\s*[\w.]*(drafter|session)\b")
    assert {path.name for path in package.rglob("*.py") if guess.search(path.read_text(encoding="utf-8"))} == {
        "drafter.py"
    }


def test_sessions_are_independent(drafter: Drafter) -> None:
    first, second = text(1, 80), text(2, 80)
    sessions = [drafter.session(first[:20]), drafter.session(second[:20])]
    mixed: list[list[list[list[float]]]] = [[], []]
    for i in range(20, 80):
        for session, ids, drafts in zip(sessions, (first, second), mixed, strict=True):
            drafts.append(as_lists(session.propose(20)))
            session.extend([ids[i]])
    alone = trees(drafter, first[:20], ([token] for token in first[20:]))
    assert mixed[0] == alone


def test_eight_threads_share_a_drafter(drafter: Drafter) -> None:
    texts = [text(seed, 300) for seed in range(8)]
    sessions = [drafter.session(ids[:50]) for ids in texts]
    drafts: list[list[list[list[float]]]] = [[] for _ in texts]
    failures: list[BaseException] = []

    def run(i: int) -> None:
        try:
            for token in texts[i][50:]:
                tree = sessions[i].propose(20)
                assert_conforms(tree, 20, UNLIMITED)
                drafts[i].append(as_lists(tree))
                sessions[i].extend([token])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert drafts[0] == trees(drafter, texts[0][:50], ([token] for token in texts[0][50:]))
    for session in sessions:
        session.close()
