"""Suffix sorting to a bounded depth: how the arrays of `suffixes.py` are built, grown and cut.

No draft looks further than `DEPTH` tokens, and none across the end of a document, so a comparison ends after `DEPTH`
tokens or after the first separator, whichever comes first; texts that are equal so far stay in the order of their
positions. The end of the array counts as a separator.

The sort goes from the most significant tokens to the least: a counting sort by the first token, then, for each run of
texts that are equal so far, a stable merge sort by the next eight bytes' worth of tokens, until `DEPTH` is reached:
`DEPTH` / 2 rounds of O(n log n) at most, whatever the text; where it repeats itself, runs that are in order already are
merged by one comparison.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.kernel import kernel

DEPTH = 16
"""The most tokens that a comparison looks at."""

_Int = int | np.integer
_Scalar = TypeVar("_Scalar", bound=np.generic)

_BLOCK = 12  # runs up to this long are sorted by insertion


def build(tokens: npt.NDArray[np.unsignedinteger], vocab_size: int, separator: int) -> SuffixArray:
    """Sort documents into a suffix array.

    Args:
        tokens: uint16[n] or uint32[n], n < 2**32, ids in 0..`vocab_size`, each document ended by `separator`.
        vocab_size: the largest id allowed is this one: the separator where there is no end-of-sequence id.
        separator: the id that ends a document.

    Raises:
        ValueError: an id is outside the vocabulary.

    >>> build(np.array([5, 6, 5, 7, 0], np.uint16), vocab_size=8, separator=0).suffixes.tolist()
    [4, 0, 2, 1, 3]
    """
    tokens = _frozen(np.ascontiguousarray(tokens))
    starts = np.zeros(vocab_size + 2, np.uint32)
    if not len(tokens):  # no kernel, and so no compiler, for a drafter without databases
        return SuffixArray(tokens, _frozen(np.empty(0, np.uint32)), _frozen(starts))
    if not _count_tokens(tokens, starts):
        raise ValueError(f"a token id is outside the vocabulary of {vocab_size} ids")
    suffixes = np.empty(len(tokens), np.uint32)
    _place(tokens, starts.copy(), suffixes)
    # settled[i]: the text at rank i is known to differ from the one at rank i - 1, or to equal it for good.
    settled = np.zeros(len(tokens) + 1, np.bool_)
    settled[starts] = True
    settled[starts[separator] : starts[separator + 1]] = True
    longest = int(np.diff(starts).max())
    keys, spare_keys, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.uint32)
    _refine(tokens, suffixes, settled, keys, spare_keys, spare, separator)
    return SuffixArray(tokens, _frozen(suffixes), _frozen(starts))


def append(array: SuffixArray, tokens: npt.NDArray[np.unsignedinteger], separator: int) -> SuffixArray:
    """Add documents (each ended by `separator`) behind those of `array`, in new arrays: a copy and a small sort."""
    new = build(tokens, len(array.starts) - 2, separator)
    together = _frozen(np.concatenate((array.tokens, new.tokens)))
    suffixes = np.empty(len(together), np.uint32)
    _merge(together, array, new.suffixes, separator, suffixes)
    return SuffixArray(together, _frozen(suffixes), _frozen(array.starts + new.starts))


def drop_oldest(array: SuffixArray, count: int) -> SuffixArray:
    """Take away the first `count` tokens, which must be whole documents: the order of the others is unchanged."""
    dropped = np.zeros_like(array.starts)
    _count_tokens(array.tokens[:count], dropped)
    tokens = array.tokens[count:].copy()
    suffixes = array.suffixes[array.suffixes >= count] - np.uint32(count)
    return SuffixArray(_frozen(tokens), _frozen(suffixes), _frozen(array.starts - dropped))


def _frozen(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    array = array.view()
    array.flags.writeable = False
    return array


@kernel
def _count_tokens(tokens: npt.NDArray[np.unsignedinteger], starts: npt.NDArray[np.uint32]) -> bool:
    """Fill the zeroed `starts`; False if a token is beyond them."""
    for token in tokens:
        if np.int64(token) + 1 >= len(starts):
            return False
        starts[np.int64(token) + 1] += np.uint32(1)
    for token in range(1, len(starts)):
        starts[token] += starts[token - 1]
    return True


@kernel
def _place(
    tokens: npt.NDArray[np.unsignedinteger], heads: npt.NDArray[np.uint32], suffixes: npt.NDArray[np.uint32]
) -> None:
    """The counting sort: each position at the head of its token's ranks, which moves on."""
    for position in range(len(tokens)):
        token = np.int64(tokens[position])
        suffixes[heads[token]] = position
        heads[token] += np.uint32(1)


@kernel
def _refine(
    tokens: npt.NDArray[np.unsignedinteger],
    suffixes: npt.NDArray[np.uint32],
    settled: npt.NDArray[np.bool_],
    keys: npt.NDArray[np.uint64],
    spare_keys: npt.NDArray[np.uint64],
    spare_suffixes: npt.NDArray[np.uint32],
    separator: _Int,
) -> None:
    """Sort to `DEPTH` what is sorted by its first token. The last rank of a run is followed by one that is settled."""
    n = len(tokens)
    bits = np.uint64(8 * tokens.itemsize)
    per_key = 8 // tokens.itemsize
    for depth in range(1, DEPTH, per_key):
        low: _Int = 0
        while low < n:
            high = low + 1
            while not settled[high]:
                high += 1
            size = high - low
            if size > 1:
                for i in range(size):
                    keys[i] = _key(tokens, np.int64(suffixes[low + i]) + depth, depth, separator)
                _merge_sort(keys[:size], suffixes[low:high], spare_keys[:size], spare_suffixes[:size])
                for i in range(1, size):
                    settled[low + i] = keys[i] != keys[i - 1] or _holds(keys[i], separator, bits)
            low = high


@kernel
def _key(tokens: npt.NDArray[np.unsignedinteger], position: _Int, depth: _Int, separator: _Int) -> np.uint64:
    """The tokens from `position`, `depth` into their text, as one number; zeros after a separator or `DEPTH`."""
    key = np.uint64(0)
    ended = False
    for i in range(8 // tokens.itemsize):
        key <<= np.uint64(8 * tokens.itemsize)
        if not ended and depth + i < DEPTH:
            token = np.int64(tokens[position + i]) if position + i < len(tokens) else separator
            key |= np.uint64(token)
            ended = token == separator
    return key


@kernel
def _holds(key: _Int, separator: _Int, bits: _Int) -> bool:
    """Whether one of the tokens in `key` is the separator: then texts with this key are equal for good."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    for _ in range(np.uint64(64) // bits):
        if key & mask == np.uint64(separator):
            return True
        key >>= bits
    return False


@kernel
def _merge_sort(
    keys: npt.NDArray[np.uint64],
    values: npt.NDArray[np.uint32],
    spare_keys: npt.NDArray[np.uint64],
    spare_values: npt.NDArray[np.uint32],
) -> None:
    """Sort `values` by `keys` and `keys` too, in place; equal keys keep their order."""
    n = len(keys)
    for low in range(0, n, _BLOCK):
        for i in range(low + 1, min(low + _BLOCK, n)):
            key, value = keys[i], values[i]
            j = i
            while j > low and keys[j - 1] > key:
                keys[j], values[j] = keys[j - 1], values[j - 1]
                j -= 1
            keys[j], values[j] = key, value
    from_keys, from_values, to_keys, to_values = keys, values, spare_keys, spare_values
    width = _BLOCK
    while width < n:
        for low in range(0, n, 2 * width):
            middle, high = min(low + width, n), min(low + 2 * width, n)
            left, right = low, middle
            if middle == high or from_keys[middle - 1] <= from_keys[middle]:
                _copy(from_keys[low:high], to_keys[low:high])
                _copy(from_values[low:high], to_values[low:high])
                continue
            for i in range(low, high):
                if right >= high or (left < middle and from_keys[left] <= from_keys[right]):
                    to_keys[i], to_values[i] = from_keys[left], from_values[left]
                    left += 1
                else:
                    to_keys[i], to_values[i] = from_keys[right], from_values[right]
                    right += 1
        from_keys, from_values, to_keys, to_values = to_keys, to_values, from_keys, from_values
        width *= 2
    if width > _BLOCK:
        _copy(from_keys, keys)
        _copy(from_values, values)


@kernel
def _copy(source: npt.NDArray[np.unsignedinteger], target: npt.NDArray[np.unsignedinteger]) -> None:
    for i in range(len(source)):  # assigning a slice would count references
        target[i] = source[i]


@kernel
def _merge(
    tokens: npt.NDArray[np.unsignedinteger],
    old: SuffixArray,
    added: npt.NDArray[np.uint32],
    separator: _Int,
    merged: npt.NDArray[np.uint32],
) -> None:
    """Fill `merged` with the suffixes of `old` and, among them, the sorted `added`, counted from the end of `old`."""
    offset = np.int64(len(old.tokens))
    copied = np.int64(0)
    for i in range(len(added)):
        position = np.int64(added[i]) + offset
        token = np.int64(tokens[position])
        begin = max(copied, min(np.int64(old.starts[token]), offset))
        end = min(np.int64(old.starts[token + 1]), offset)
        while begin < end:  # behind the texts that are equal
            middle = (begin + end) >> 1
            if _precedes(tokens, position, np.int64(old.suffixes[middle]), separator):
                end = middle
            else:
                begin = middle + 1
        _copy(old.suffixes[copied:begin], merged[copied + i : begin + i])
        merged[begin + i] = position
        copied = begin
    _copy(old.suffixes[copied:], merged[copied + len(added) :])


@kernel
def _precedes(tokens: npt.NDArray[np.unsignedinteger], one: _Int, other: _Int, separator: _Int) -> bool:
    """Whether the text at `one` comes before the text at `other`, which it must not equal by position alone."""
    for _ in range(DEPTH):
        a = np.int64(tokens[one]) if one < len(tokens) else separator
        b = np.int64(tokens[other]) if other < len(tokens) else separator
        if a != b:
            return bool(a < b)
        if a == separator:
            return False
        one += 1
        other += 1
    return False
