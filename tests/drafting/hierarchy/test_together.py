"""Chains for many requests at once are those of one after another, on any number of threads."""

from typing import Any

import numpy as np
import pytest

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.hierarchy.together import NODES, draft_chains
from hdraft.drafting.threads import Threads

VOCAB, EOS, ROWS = 400, 0, 23
PHRASES = [np.random.default_rng(seed).integers(1, VOCAB, 5 + seed % 9).tolist() for seed in range(40)]


def text(seed: int, phrases: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [token for i in rng.integers(0, len(PHRASES), phrases) for token in PHRASES[i]]


def drafter() -> HierarchyDrafter:
    stored = ModelDatabase.from_documents(PHRASES[::2], VOCAB, EOS)
    stored.learn(text(99, 20))
    return HierarchyDrafter(VOCAB, stored, StatisticsDatabase.from_documents(PHRASES[1::3], VOCAB, EOS))


def sessions() -> tuple[list[HierarchySession], list[list[int]]]:
    """Sessions of one drafter after prompts of many lengths, and what the target will write in each."""
    shared = drafter()
    return [shared.session(text(seed, seed)) for seed in range(ROWS)], [text(100 + seed, 25) for seed in range(ROWS)]


def run(draft: Any) -> list[list[list[int]]]:
    """All chains of some steps, in which as much is emitted as the chain foresaw."""
    made, outputs = sessions()
    emitted: list[list[int]] = [[] for _ in made]
    chains = []
    for step in range(20):
        lengths = [1 + (row + step) % 9 for row in range(ROWS)]
        chains.append(draft(made, emitted, lengths))
        for row, chain in enumerate(chains[-1]):
            count = next((i for i, (a, b) in enumerate(zip(chain, outputs[row], strict=False)) if a != b), len(chain))
            emitted[row], outputs[row] = outputs[row][: count + 1], outputs[row][count + 1 :]
    return chains


def one_by_one(price: float) -> Any:
    def draft(made: list[HierarchySession], emitted: list[list[int]], lengths: list[int]) -> list[list[int]]:
        chains = []
        for session, ids, length in zip(made, emitted, lengths, strict=True):
            session.extend(ids)
            tree = session.propose(NODES * length, length, price)
            chains.append(tree.best_chain(length, price).tokens.tolist())
        return chains

    return draft


@pytest.mark.parametrize("price", [0.0, 0.3])
def test_chains_are_those_of_one_session_after_another_on_any_number_of_threads(price: float) -> None:
    expected = run(one_by_one(price))
    assert sum(len(chain) for step in expected for chain in step) > 500
    for count in (1, 2, 4):
        threads = Threads(count)
        assert run(lambda *given: draft_chains(*given, price, 1, threads)) == expected  # noqa: B023


def test_a_text_outgrows_its_room_and_a_longer_chain_its_tree() -> None:
    shared = drafter()
    grown, given = shared.session([1, 2, 3]), shared.session([1, 2, 3])
    long = text(7, 400)
    [chain] = draft_chains([grown], [long], [30])
    given.extend(long)
    assert chain == given.propose(60, 30).best_chain(30).tokens.tolist()
    assert len(chain) > 5
    assert draft_chains([grown], [long[:5]], [2]) == [chain_of(given, long[:5], 2)]


def chain_of(session: HierarchySession, ids: list[int], length: int) -> list[int]:
    session.extend(ids)
    return session.propose(NODES * length, length).best_chain(length).tokens.tolist()  # type: ignore[no-any-return]


def test_shorter_matches_than_asked_for_and_no_tokens_to_come_have_no_chain() -> None:
    shared = HierarchyDrafter(20)
    for least, lengths in ((3, [4, 4]), (1, [0, -2])):
        made = [shared.session([1, 2, 3, 4, 5, 1]) for _ in range(2)]
        assert draft_chains(made, [[2], [2]], lengths, least_match=least) == [[], []]
    assert draft_chains([shared.session([1, 2, 3, 4, 5, 1])], [[2]], [4], least_match=2)[0][:3] == [3, 4, 5]
    assert draft_chains([], [], []) == []


def test_an_id_outside_the_vocabulary_is_refused_before_any_session_takes_anything_in() -> None:
    shared = HierarchyDrafter(20)
    made = [shared.session([1, 2, 3, 1]) for _ in range(2)]
    for wrong in (20, -1):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
            draft_chains(made, [[2], [2, wrong]], [4, 4])
    assert draft_chains(made, [[2], [2]], [1, 1]) == [[3], [3]]


def test_a_session_renewed_drafts_from_what_was_learned_since_it_began() -> None:
    shared = HierarchyDrafter(VOCAB, learn=True)
    session, other = shared.session([5, 6]), shared.session([5, 6])
    shared.model_database.learn([7, 8, 9, 10, 11])
    session.renew()
    session.extend([7, 8])
    other.extend([7, 8])
    assert session.propose(3).tokens.tolist() == [9, 10, 11]
    assert 9 not in other.propose(3).tokens.tolist()
    before = session._databases.suffixes
    session.renew()  # nothing new
    assert session._databases.suffixes is before
