"""References: followed while the answer is written, found again after a difference, and no one else's."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.hierarchy import reference
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.tree import Source

VOCAB = 5000


def steps(session: HierarchySession, output: list[int], budget: int = 64) -> int:
    """How many steps it takes to write an output."""
    taken = done = 0
    while done < len(output):
        tree = session.propose(budget, len(output) - done - 1) if done < len(output) - 1 else None
        node, emitted = -1, []
        while True:
            emitted.append(output[done + len(emitted)])
            if tree is None or done + len(emitted) == len(output):
                break
            nodes = np.flatnonzero((tree.parents == node) & (tree.tokens == emitted[-1]))
            if not len(nodes):
                break
            node = int(nodes[0])
        session.extend(emitted)
        done += len(emitted)
        taken += 1
    return taken


def text(seed: int, n: int = 400) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def edited(seed: int, kind: str, places: int = 6) -> list[int]:
    """A text in which some tokens are replaced by others, left out, or have others inserted before them."""
    draw, result = np.random.default_rng(seed + 1), list(text(seed))
    for at in sorted(draw.choice(np.arange(20, 380, 12), places, replace=False).tolist(), reverse=True):
        new = draw.integers(0, VOCAB, 3).tolist()
        result[at : at + 3] = {"replaced": new, "left out": [], "inserted": [*new, *result[at : at + 3]]}[kind]
    return result


def test_an_answer_that_is_the_reference_is_drafted_from_its_first_token_on() -> None:
    session = HierarchyDrafter(VOCAB).session([1, 2, 3], references=[text(0)])
    assert session.propose(20).tokens.tolist() == text(0)[:20]
    assert set(session.propose(20).sources.tolist()) == {Source.REFERENCE}
    assert steps(session, text(0)) <= 400 / 40


@pytest.mark.parametrize("kind", ["replaced", "left out", "inserted"])
def test_after_a_difference_the_place_is_found_again(kind: str) -> None:
    answer = edited(3, kind)
    session = HierarchyDrafter(VOCAB).session([1, 2, 3], references=[text(3)])
    # at each of six places the tokens that are new, one more where it is uncertain how to go on, and the runs between
    assert steps(session, answer) <= 6 * (3 + 2) + 400 / 40
    assert steps(HierarchyDrafter(VOCAB).session([1, 2, 3, *text(3)]), answer) > steps(
        HierarchyDrafter(VOCAB).session([1, 2, 3], references=[text(3)]), answer
    )


def test_what_replaces_a_token_everywhere_is_foreseen_once_it_was_seen() -> None:
    """A new name for an old one: D_c knows what to write, the reference how it goes on."""
    original = text(5, 300)
    for at in range(10, 300, 15):
        original[at - 1 : at + 1] = [7, 8]
    answer = [9 if token == 8 else token for token in original]
    session = HierarchyDrafter(VOCAB).session([1], references=[original])
    assert steps(session, answer) < 20 * 1.5 + 300 / 40


def test_parts_of_several_references_in_another_order_are_found() -> None:
    parts = [text(seed, 60) for seed in range(10, 16)]
    references = [parts[0] + parts[1], parts[2] + parts[3], parts[4] + parts[5]]
    answer = [token for index in (3, 0, 5, 1) for token in parts[index]]
    assert steps(HierarchyDrafter(VOCAB).session([1], references=references), answer) < 4 * (2 + 60 / 30)


def test_it_is_never_learnt_and_no_other_request_sees_it() -> None:
    drafter = HierarchyDrafter(VOCAB, ModelDatabase(VOCAB), learn=True)
    session = drafter.session([1], references=[text(0)])
    session.extend([2, 3])
    session.close()
    assert len(drafter.session([1]).propose(8)) == 0
    assert sum(map(len, drafter.model_database.documents())) <= 3


def test_a_reference_of_another_text_changes_little() -> None:
    """And it is no longer trusted."""
    answer = (text(20, 40) * 4)[:150]
    alone = steps(HierarchyDrafter(VOCAB).session([1]), answer)
    assert steps(HierarchyDrafter(VOCAB).session([1], references=[text(21, 2000)]), answer) <= alone + 3


def test_an_empty_reference_is_none() -> None:
    assert len(HierarchyDrafter(VOCAB).session([1], references=[[], []]).propose(8)) == 0


@pytest.mark.parametrize("bad", [[VOCAB], [-1], [0.5], [[1]]])
def test_ids_that_are_none_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="token id"):
        HierarchyDrafter(VOCAB).session([1], references=[bad])


def test_many_tokens_of_reference_are_taken_in_at_once() -> None:
    """Of the time itself `benchmarks/references.py` tells: here, that it is no matter of seconds."""
    long = np.random.default_rng(0).integers(0, VOCAB, 100_000)
    drafter = HierarchyDrafter(VOCAB)
    drafter.session([1], references=[long[:100]]).propose(8)
    started = time.perf_counter()
    assert drafter.session([1], references=[long]).propose(8).tokens.tolist() == long[:8].tolist()
    assert time.perf_counter() - started < 5


tokens = st.integers(0, 3)


@given(st.lists(st.lists(tokens, max_size=20), max_size=4), tokens, tokens, st.integers(0, 60))
def test_the_nearest_pair_is_that_of_looking_at_all(texts: list[list[int]], before: int, last: int, near: int) -> None:
    made = reference.make_reference([np.array(each, np.int32) for each in texts])
    assert made.text.tolist() == [token for each in texts if each for token in (*each, -1)]
    ends = [at for at in range(1, len(made.text)) if made.text[at - 1 : at + 1].tolist() == [before, last]]
    found = reference._nearest_pair(made, (before << 32) | last, near)
    assert (found in ends) if ends else found == -1
    assert not ends or _distance(found, near) == min(_distance(at, near) for at in ends)


def _distance(at: int, near: int) -> int:
    """What comes before counts as twice as far."""
    return at - near if at >= near else 2 * (near - at)


@given(st.lists(tokens, max_size=30), st.lists(tokens, max_size=40))
def test_places_are_within_the_text_and_distinct_and_agree_with_what_was_written(
    referred: list[int], written: list[int]
) -> None:
    session = HierarchyDrafter(8).session([5], references=[referred])
    made, places = session._databases.reference, session._matches.places
    for done in range(1, len(written) + 1):
        session.extend([written[done - 1]])
        session.propose(4)
        places = session._matches.places
        held = [at for at in places.at[0].tolist() if at != reference.NOWHERE]
        assert len(set(held)) == len(held) and all(0 <= at < len(made.text) for at in held)
        for at, agreed in zip(held, places.agreed[0].tolist(), strict=False):
            assert made.text[at - agreed : at].tolist() == ([5, *written])[1 + done - agreed : 1 + done]
