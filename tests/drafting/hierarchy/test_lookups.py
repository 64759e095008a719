"""The trie over suffix arrays, against counting in the plain text."""

from collections import Counter
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases.context import NONE
from hdraft.drafting.databases.sorting import build
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.hierarchy.lookups import (
    PROBES,
    SuffixTrie,
    allocate,
    clear,
    continuations,
    crowded,
    descend,
    occurred,
)

EOS, VOCAB, LONGEST = 0, 5, 5
GUARD = 32  # what lies before and after each guarded array
texts = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=20), max_size=6)


def joined(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in (*document, EOS)]


def sorted_array(tokens: list[int], vocab_size: int = VOCAB) -> SuffixArray:
    return build(np.array(tokens, np.uint16), vocab_size, EOS)


def contexts_of(tokens: list[int]) -> set[tuple[int, ...]]:
    """The contexts of up to `LONGEST` tokens within a document, and each with one more token."""
    found = {tuple(tokens[i : i + k]) for k in range(1, LONGEST) for i in range(len(tokens) - k + 1)}
    found = {context for context in found if EOS not in context}
    return {(token,) for token in range(1, VOCAB)} | {(*context, t) for context in found for t in range(1, VOCAB)}


def occurrences_of(tokens: list[int], context: tuple[int, ...]) -> list[int]:
    """Where the occurrences of a context end."""
    k = len(context)
    return [i + k - 1 for i in range(len(tokens) - k) if tuple(tokens[i : i + k]) == context]


def walk(trie: SuffixTrie, array: SuffixArray, context: tuple[int, ...], root: int = 0) -> int:
    handle = root
    for token in context:
        handle = descend(trie, array, handle, token)
    return handle


def listed(
    trie: SuffixTrie, array: SuffixArray, handle: int, probes: int = PROBES
) -> tuple[list[int], list[float], int]:
    first, end, shape = continuations(trie, array, handle, probes)
    return trie.token[first:end].tolist(), trie.share[first:end].tolist(), shape


def check_against_text(
    trie: SuffixTrie, array: SuffixArray, tokens: list[int], contexts: list[tuple[int, ...]], root: int = 0
) -> None:
    for context in contexts:
        handle = walk(trie, array, context, root)
        ends = occurrences_of(tokens, context)
        assert occurred(trie, array, handle) == len(ends)
        if not ends:
            assert handle == NONE
        elif len(ends) == 1:
            assert handle == ~ends[0]
        else:
            following = Counter(tokens[end + 1] for end in ends)
            candidates, shares, shape = listed(trie, array, handle)
            assert dict(zip(candidates, shares, strict=True)) == pytest.approx(
                {token: count / len(ends) for token, count in following.items()}
            )
            assert shares == sorted(shares, reverse=True)
            most = max(following.values())
            assert shape == (0 if most == len(ends) else 1 if 2 * most >= len(ends) else 2)


@given(texts, st.randoms(use_true_random=False))
def test_contexts_are_counted_as_in_the_text_whatever_order_they_are_asked_in(
    documents: list[list[int]], random: Random
) -> None:
    tokens = joined(documents)
    array = sorted_array(tokens)
    trie = allocate(2**13)
    clear(trie, (array,))
    contexts = sorted(contexts_of(tokens))
    random.shuffle(contexts)
    check_against_text(trie, array, tokens, contexts)
    nodes = trie.sizes.tolist()
    check_against_text(trie, array, tokens, contexts)
    assert trie.sizes.tolist() == nodes  # what is known is not looked up again


@settings(max_examples=40)
@given(texts, texts)
def test_two_arrays_share_a_trie_and_nothing_in_it(one: list[list[int]], other: list[list[int]]) -> None:
    both = [joined(one), joined(other)]
    arrays = (sorted_array(both[0]), sorted_array(both[1]))
    trie = allocate(2**13)
    clear(trie, arrays)
    for context in sorted(contexts_of(both[0]) | contexts_of(both[1])):
        for root in (0, 1):
            check_against_text(trie, arrays[root], both[root], [context], root)


@settings(max_examples=40)
@given(texts, texts)
def test_a_cleared_trie_knows_nothing_of_before(before: list[list[int]], after: list[list[int]]) -> None:
    old, new = sorted_array(joined(before)), sorted_array(joined(after))
    trie = allocate(2**13)
    clear(trie, (old,))
    check_against_text(trie, old, joined(before), sorted(contexts_of(joined(before))))
    clear(trie, (new,))
    check_against_text(trie, new, joined(after), sorted(contexts_of(joined(after))))


counted = st.dictionaries(st.integers(2, 90), st.integers(1, 300), min_size=1, max_size=80)


@given(counted, st.sampled_from([1, 16, PROBES]))
def test_of_many_occurrences_the_shares_are_right_to_within_the_sampling(counts: dict[int, int], probes: int) -> None:
    total = sum(counts.values())
    array = sorted_array([token for after, n in counts.items() for token in [1, after, EOS] * n], 91)
    trie = allocate(64)
    clear(trie, (array,))
    handle = walk(trie, array, (1,))
    if total == 1:
        assert handle < 0
        return
    candidates, shares, shape = listed(trie, array, handle, probes)
    assert occurred(trie, array, handle) == total
    assert len(set(candidates)) == len(candidates)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1 + 1e-6
    for token, share in zip(candidates, shares, strict=True):
        assert share == pytest.approx(counts[token] / total, abs=1 / probes if total > probes else 1e-6)
    left_out = [counts[token] / total for token in counts.keys() - set(candidates)]
    assert max(left_out, default=0.0) <= shares[-1] + 1 / probes
    assert shape == (0 if len(counts) == 1 or shares[0] == 1 else 1 if shares[0] >= 0.5 else 2)


@given(counted, st.permutations(range(1, 92)), st.sampled_from([0, 1, 16, PROBES]))
def test_what_was_probed_of_a_context_finds_each_longer_one_as_a_search_does(
    counts: dict[int, int], order: list[int], probes: int
) -> None:
    """Whichever of its continuations were found, in whatever order they are asked for."""
    array = sorted_array([token for after, n in counts.items() for token in [1, after, EOS] * n], 91)
    trie = allocate(256)
    clear(trie, (array,))
    handle = walk(trie, array, (1,))
    if handle >= 0 and probes:
        listed(trie, array, handle, probes)
    for token in order:
        longer = descend(trie, array, handle, token)
        assert occurred(trie, array, longer) == counts.get(token, 0)
        if longer >= 0:
            assert listed(trie, array, longer)[0] == [EOS]


def test_a_context_is_probed_again_only_for_more_probes() -> None:
    array = sorted_array([token for after in range(2, 42) for token in [1, after, EOS] * 5], 91)
    trie = allocate(64)
    clear(trie, (array,))
    handle = walk(trie, array, (1,))
    found = [len(listed(trie, array, handle, probes)[0]) for probes in (16, 8, 32, 16)]
    assert found == [16, 16, 32, 32]


def test_without_room_for_more_probes_what_was_found_is_listed() -> None:
    array = sorted_array([token for after in range(2, 42) for token in [1, after, EOS] * 5], 91)
    trie = allocate(4)  # room for 32 continuations
    clear(trie, (array,))
    handle = walk(trie, array, (1,))
    found = listed(trie, array, handle, 16)
    assert len(found[0]) == 16
    assert listed(trie, array, handle, 64) == found


def guarded(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The same values, with a guard before and after them in memory."""
    room = np.full((len(values) + 2 * GUARD, *values.shape[1:]), 99, values.dtype)
    room[GUARD:-GUARD] = values
    return room[GUARD:-GUARD]


def untouched(values: npt.NDArray[np.generic]) -> bool:
    assert values.base is not None
    return bool(np.all(values.base[:GUARD] == 99) and np.all(values.base[-GUARD:] == 99))


@given(texts, st.integers(2, 40), st.randoms(use_true_random=False))
def test_without_room_contexts_are_unknown_and_nothing_else_is_written(
    documents: list[list[int]], nodes: int, random: Random
) -> None:
    tokens = joined([*documents, [1, 2, 3, 4], [1, 2, 3, 4]])
    array = sorted_array(tokens)
    trie = SuffixTrie(*(guarded(values) for values in allocate(nodes)))
    clear(trie, (array,))
    contexts = sorted(contexts_of(tokens))
    random.shuffle(contexts)
    for context in contexts:
        handle = walk(trie, array, context)
        ends = occurrences_of(tokens, context)
        assert handle == NONE or occurred(trie, array, handle) == len(ends)
        if handle >= 0:
            candidates, shares, _ = listed(trie, array, handle)
            following = Counter(tokens[end + 1] for end in ends)
            known = {token: count / len(ends) for token, count in following.items()}
            assert not candidates or dict(zip(candidates, shares, strict=True)) == pytest.approx(known)
    assert trie.sizes[0] == nodes
    assert crowded(trie)
    assert walk(trie, array, (1, 2, 3, 4, 0, 1)) == NONE
    assert all(untouched(values) for values in trie)
    clear(trie, (array,))
    assert not crowded(trie)
    assert occurred(trie, array, walk(trie, array, (1,))) == len(occurrences_of(tokens, (1,)))


def test_without_room_for_continuations_none_are_listed() -> None:
    """A trie of 16 contexts has room for 128 continuations, one context's with as many occurrences."""
    tokens = [1, 2, EOS] * PROBES
    array = sorted_array(tokens)
    trie = SuffixTrie(*(guarded(values) for values in allocate(16)))
    clear(trie, (array,))
    for context, room in (((1,), True), ((2,), False), ((1,), True), ((1, 2), False)):
        handle = walk(trie, array, context)
        assert occurred(trie, array, handle) == PROBES
        assert listed(trie, array, handle) == (([tokens[len(context)]] if context == (1,) else []), [1.0] * room, 0)
    assert all(untouched(values) for values in trie)


@given(st.integers(0, 2**31), st.booleans())
def test_a_corrupt_array_gives_tokens_of_the_array_or_nothing(seed: int, random_starts: bool) -> None:
    random = np.random.default_rng(seed)
    n = 100
    tokens = guarded(random.integers(0, VOCAB, n).astype(np.uint16))  # a read beside it would list 99
    tokens.flags.writeable = False
    good = sorted_array(tokens[:-1].tolist())
    suffixes = np.resize(good.suffixes, n)
    broken = random.random(n) < random.choice([0.1, 0.5, 1.0])
    beside = random.integers(n - 8, n + 8, n)
    suffixes[broken] = np.where(random.random(n) < 0.7, beside, random.integers(0, 2**32, n))[broken]
    starts = random.integers(0, 2 * n, VOCAB + 2).astype(np.uint32) if random_starts else np.copy(good.starts)
    for values in (suffixes, starts):
        values.flags.writeable = False
    array = SuffixArray(tokens, suffixes, starts)
    trie = allocate(512)
    clear(trie, (array,))
    for _ in range(30):
        handle = 0
        for token in random.integers(-1, VOCAB + 2, 8).tolist():
            handle = descend(trie, array, handle, token)
            if handle < 0:
                if occurred(trie, array, handle):
                    assert 0 <= ~handle < n - 1
                continue
            assert 0 <= occurred(trie, array, handle) <= n
            assert set(listed(trie, array, handle)[0]) <= set(range(VOCAB))
