import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting import tree as module
from hdraft.drafting.tree import DraftTree

sequences = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12)


def paths(tree: DraftTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_worked_examples_hold() -> None:
    assert doctest.testmod(module).failed == 0


@given(sequences)
def test_a_merged_tree_holds_each_prefix_once(drafts: list[list[int]]) -> None:
    tree = DraftTree.from_sequences(drafts)
    prefixes = {tuple(draft[:n]) for draft in drafts for n in range(1, len(draft) + 1)}
    assert sorted(paths(tree)) == sorted(prefixes)
    assert tree.depths.tolist() == [len(path) for path in paths(tree)]


@given(sequences, st.integers(0, 6))
def test_a_merged_tree_keeps_to_its_budget(drafts: list[list[int]], budget: int) -> None:
    assert len(DraftTree.from_sequences(drafts, budget=budget)) <= budget


@given(sequences)
def test_a_node_sees_its_ancestors_and_itself(drafts: list[list[int]]) -> None:
    tree = DraftTree.from_sequences(drafts)
    mask = tree.ancestor_mask()
    for node in range(len(tree)):
        seen, at = set(), node
        while at >= 0:
            seen.add(at)
            at = int(tree.parents[at])
        assert set(np.flatnonzero(mask[node]).tolist()) == seen


def test_the_best_chain_follows_the_likeliest_path_as_far_as_asked() -> None:
    tree = DraftTree([5, 6, 7, 8], [-1, -1, 1, 1], probabilities=[0.4, 0.5, 0.1, 0.3], sources=[0, 1, 2, 1])
    chain = tree.best_chain(2)
    assert chain.tokens.tolist() == [6, 8]
    assert chain.parents.tolist() == [-1, 0]
    assert chain.depths.tolist() == [1, 2]
    assert chain.sources.tolist() == [1, 1]
    assert tree.best_chain(1).tokens.tolist() == [6]
    assert len(tree.best_chain(0)) == 0


@given(sequences, st.integers(0, 5), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_best_chain_is_worth_as_much_as_any_path(drafts: list[list[int]], k: int, price: float, seed: int) -> None:
    tree = DraftTree.from_sequences(drafts)
    tree.probabilities[:] = np.random.default_rng(seed).random(len(tree))
    chain = tree.best_chain(k, price)
    worth = [0.0]
    for node in range(len(tree)):
        path = [node]
        while tree.parents[path[-1]] >= 0:
            path.append(int(tree.parents[path[-1]]))
        if len(path) <= k:
            worth.append(float(tree.probabilities[path].sum()) - price * len(path))
    assert float(chain.probabilities.sum()) - price * len(chain) == pytest.approx(max(worth), abs=1e-5)
    chain.check(4, k, k)
    assert not len(chain) or tuple(chain.tokens.tolist()) in paths(tree)


@given(sequences, st.lists(st.floats(0, 1), max_size=5), st.integers(0, 2**32 - 1))
def test_the_best_chain_is_weighed_by_the_price_of_its_length(
    drafts: list[list[int]], more: list[float], seed: int
) -> None:
    tree = DraftTree.from_sequences(drafts)
    tree.probabilities[:] = np.random.default_rng(seed).random(len(tree))
    prices = np.cumsum([1.0, *more])
    worth = [0.0]
    for node in range(len(tree)):
        path = [node]
        while tree.parents[path[-1]] >= 0:
            path.append(int(tree.parents[path[-1]]))
        if len(path) < len(prices):
            worth.append(float(tree.probabilities[path].sum() - prices[len(path)] + 1.0))
    chain = tree.best_chain(len(more), prices)
    assert float(chain.probabilities.sum() - prices[len(chain)]) + 1.0 == pytest.approx(max(worth), abs=1e-5)


def test_a_shared_token_keeps_the_source_of_the_first_sequence() -> None:
    assert DraftTree.from_sequences([[1, 2], [1, 3]], sources=[2, 1]).sources.tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (DraftTree([3, 4], [-1, 10**8], depths=[1, 2]), "node 1"),
        (DraftTree([3, 4], [0, 1], depths=[1, 2]), "node 0"),
        (DraftTree([3, 4], [-1, 0], depths=[1, 1]), "node 1"),
        (DraftTree([3, 4], [-1, 0], depths=[9, 10]), "node 0"),
        (DraftTree([3, 4], [-2, 0], depths=[1, 2]), "node 0"),
        (DraftTree([3, 99], [-1, 0]), "node 1"),
        (DraftTree([-1], [-1]), "node 0"),
        (DraftTree([3], [-1], sources=[9]), "node 0"),
        (DraftTree([3, 4, 5, 6], [-1, 0, 1, 2]), "node 3"),
        (DraftTree([3, 4, 5], [-1], depths=[1, 1, 1]), "different lengths"),
        (DraftTree([3] * 6, [-1] * 6), "budget of 5"),
    ],
)
def test_a_tree_that_is_none_is_refused(tree: DraftTree, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        tree.check(vocab_size=50, budget=5, max_depth=3)


@given(sequences)
def test_a_merged_tree_passes_the_check(drafts: list[list[int]]) -> None:
    DraftTree.from_sequences(drafts).check(vocab_size=4, budget=60, max_depth=5)
