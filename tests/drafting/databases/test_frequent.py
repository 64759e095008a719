"""The frequent contexts of D_s, against counting in the plain text."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from hdraft.drafting.databases.frequent import FREQUENT, KEPT, SUFFIX_LENGTH, count_frequent, find_frequent
from hdraft.drafting.databases.sorting import build
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray, narrow
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.lookups import allocate, clear, continuations, descend

EOS, VOCAB = 0, 90


def corpus(seed: int) -> npt.NDArray[np.uint16]:
    """Documents of a chain in which some tokens are followed by many others, and some by always the same."""
    random = np.random.default_rng(seed)
    tokens = [1]
    while len(tokens) < 30_000:
        last = tokens[-1]
        if last == EOS or last > 5:
            tokens.append(int(random.choice([EOS, 1, 2, 3, 4, 5], p=[0.02, 0.38, 0.2, 0.2, 0.1, 0.1])))
        else:
            tokens.append(int(random.integers(1, VOCAB)) if last == 1 and random.random() < 0.5 else last % 5 + 1)
    return np.array([*tokens, EOS], np.uint16)


def sorted_array(tokens: npt.NDArray[np.uint16]) -> SuffixArray:
    return build(tokens, VOCAB, EOS)


def followers(tokens: list[int]) -> dict[tuple[int, ...], Counter[int]]:
    """What follows each context of up to `SUFFIX_LENGTH` tokens within a document."""
    found: dict[tuple[int, ...], Counter[int]] = {}
    for i in range(len(tokens)):
        for length in range(1, SUFFIX_LENGTH + 1):
            context = tuple(tokens[i : i + length])
            if EOS in context or i + length == len(tokens):
                break
            found.setdefault(context, Counter())[tokens[i + length]] += 1
    return {context: counts for context, counts in found.items() if counts.total() > FREQUENT}


def ranks_of(array: SuffixArray, context: tuple[int, ...]) -> tuple[int, int]:
    low, high = 0, len(array.suffixes)
    for length, token in enumerate(context):
        low, high = narrow(array, low, high, length, token)
    return low, high


@pytest.mark.parametrize("seed", range(4))
def test_what_follows_every_frequent_context_is_counted_exactly(seed: int) -> None:
    tokens = corpus(seed)
    array = count_frequent(sorted_array(tokens), EOS)
    expected = followers(tokens.tolist())
    assert {len(context) for context in expected} >= {1, 2, 3}
    assert len(array.contexts) == len(expected)
    for context, counts in expected.items():
        low, high = ranks_of(array, context)
        begin, end = find_frequent(array, len(context), low, high)
        rows = array.continuations[begin:end].tolist()
        assert 0 < len(rows) <= KEPT
        for token, first, occurred in rows:
            assert counts[token] == occurred
            assert narrow(array, low, high, len(context), token) == (first, first + occurred)
        occurrences = [occurred for _, _, occurred in rows]
        assert occurrences == sorted(occurrences, reverse=True)
        left_out = set(counts) - {token for token, _, _ in rows}
        assert all(counts[token] <= occurrences[-1] for token in left_out)
        assert len(rows) == KEPT or all(counts[token] * 256 < counts.total() for token in left_out)


def test_a_context_that_is_not_frequent_has_no_rows() -> None:
    array = count_frequent(sorted_array(corpus(0)), EOS)
    length, low, high, _ = array.contexts[3].tolist()
    assert find_frequent(array, length, low, high) != (0, 0)
    for asked in ((length, low, high - 1), (length, low + 1, high), (length + 9, low, high), (0, 0, 1)):
        assert find_frequent(array, *asked) == (0, 0)
    assert find_frequent(sorted_array(corpus(0)), length, low, high) == (0, 0)


def test_contexts_at_the_same_ranks_differ_by_their_length() -> None:
    """2 always follows 1, so `1` and `1 2` occur at the same ranks."""
    array = count_frequent(build(np.array([1, 2, 3, EOS] * 2000, np.uint16), VOCAB, EOS), EOS)
    low, high = ranks_of(array, (1,))
    assert (low, high) == ranks_of(array, (1, 2))
    for length, token in ((1, 2), (2, 3)):
        begin, end = find_frequent(array, length, low, high)
        assert array.continuations[begin:end].tolist() == [[token, low, high - low]]


def test_a_trie_lists_and_narrows_what_was_counted() -> None:
    tokens = corpus(1)
    array = count_frequent(sorted_array(tokens), EOS)
    trie = allocate(2**14)
    clear(trie, (array,))
    expected = followers(tokens.tolist())
    for context in sorted(expected, key=len):
        counts = expected[context]
        handle = 0
        for token in context:
            handle = descend(trie, array, handle, token)
        for probes in (16, 128):  # however few are asked for, all were counted
            first, end, shape = continuations(trie, array, handle, probes)
            assert trie.share[first:end].tolist() == pytest.approx(
                [counts[token] / counts.total() for token in trie.token[first:end].tolist()]
            )
        assert shape == (0 if len(counts) == 1 else 1 if 2 * max(counts.values()) >= counts.total() else 2)
        low, high = ranks_of(array, context)
        for token in range(1, VOCAB):
            child = descend(trie, array, handle, token)
            begin, after = narrow(array, low, high, len(context), token)
            if after - begin > 1:
                assert trie.node[child, :2].tolist() == [begin, after]


def test_drafts_are_those_of_a_database_whose_frequent_contexts_are_looked_up() -> None:
    """Where the likeliest continuations are so likely that no probe misses them."""
    tokens = corpus(2)
    counted = StatisticsDatabase.from_tokens(tokens, VOCAB, EOS)
    looked_up = StatisticsDatabase(VOCAB, EOS, array=SuffixArray(*counted.array[:3]))
    assert len(counted.array.contexts) and not len(looked_up.array.contexts)
    for prompt in ([7, 2], [9, 3, 4], [4, 5]):
        trees = [
            HierarchyDrafter(VOCAB, statistics_database=database).session(prompt).propose(4)
            for database in (counted, looked_up)
        ]
        assert len(trees[0]) == 4
        assert trees[0].tokens.tolist() == trees[1].tokens.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_damaged_rows_give_other_drafts_and_never_a_rank_outside_of_the_context(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = corpus(seed)
    good = count_frequent(sorted_array(tokens), EOS)
    contexts, rows = good.contexts.copy(), good.continuations.copy()
    for values in (contexts, rows):
        broken = random.random(values.shape) < 0.3
        values[broken] = random.integers(0, random.choice([VOCAB, len(tokens), 2**32]), values.shape)[broken]
        values.flags.writeable = False
    array = good._replace(contexts=contexts, continuations=rows)
    trie = allocate(2**12)
    clear(trie, (array,))
    for context in followers(tokens.tolist()):
        handle = 0
        for token in context:
            handle = descend(trie, array, handle, token)
            if handle < 0:
                break
            low, high = trie.node[handle, :2].tolist()
            assert 0 <= low < high <= len(tokens)
            continuations(trie, array, handle, 16)
    database = StatisticsDatabase(VOCAB, EOS, array=array)
    session = HierarchyDrafter(VOCAB, statistics_database=database).session([1, 2, 3])
    for token in tokens[:200].tolist():
        tree = session.propose(16)
        assert np.all((tree.tokens >= 0) & (tree.tokens < VOCAB))
        session.extend([token])
