"""What follows a context in D_m and D_s: the part of their suffix arrays' tries that a request has looked at.

A suffix array answers by binary search through memory that no cache holds, and a request asks for the same contexts
again and again, step after step. So each context that is asked for becomes a node here, found again by a hash of its
parent and its last token; its continuations are counted when they are first needed, and kept most frequent first. With
the tokens `5 6 5 7 5 6 0` of one document:

    root ── 5 (ranks 1 to 3): opened, 6 twice, 7 once
              └── 6 (ranks 1 to 2): not opened yet

A context that occurs once needs no continuations of its own: its handle is `~position`, as in D_c. All suffix arrays of
a request share one trie; the nodes 0, 1, … are their roots.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.context import NONE, slot_of
from hdraft.drafting.kernel import kernel
from hdraft.drafting.suffixes import SuffixArray, narrow, occurrences

PROBES = 64
"""Of a context with more occurrences, so many evenly spaced ones are counted."""

_KEPT = 48  # continuations kept of a context, the most frequent
_LOW, _HIGH, _LENGTH, _PARENT, _TOKEN, _FIRST, _COUNT, _SHAPE = range(8)
_NODES, _ENTRIES = 0, 1  # what `sizes` holds
_CLOSED = -1


class SuffixTrie(NamedTuple):
    """The trie's arrays, with room to grow; where there is none left, contexts count as unknown until it is cleared."""

    node: npt.NDArray[np.int64]  # [nodes, 8] range of ranks, length, parent, token, first entry, entries, shape
    table: npt.NDArray[np.int32]  # [2**m] open-addressing hash of (parent, token) -> node, 0: free
    token: npt.NDArray[np.int32]  # [entries] continuations, those of a node next to each other, most frequent first …
    share: npt.NDArray[np.float32]  # [entries] … and how often each follows, relative to all
    sizes: npt.NDArray[np.int64]


def allocate(nodes: int, arrays: tuple[SuffixArray, ...]) -> SuffixTrie:
    """An empty trie with room for so many contexts of any of `arrays`."""
    trie = SuffixTrie(
        np.empty((nodes, 8), np.int64),
        np.empty(1 << (2 * nodes - 1).bit_length(), np.int32),
        np.empty(8 * nodes, np.int32),
        np.empty(8 * nodes, np.float32),
        np.zeros(2, np.int64),
    )
    clear(trie, arrays)
    return trie


def clear(trie: SuffixTrie, arrays: tuple[SuffixArray, ...]) -> None:
    """Forget every context but the roots."""
    trie.table[:] = 0
    trie.sizes[:] = len(arrays), 0
    for root, array in enumerate(arrays):
        trie.node[root] = 0, len(array.suffixes), 0, 0, 0, _CLOSED, 0, 0


def crowded(trie: SuffixTrie) -> bool:
    """Whether more than half of the room is taken."""
    nodes, entries = trie.sizes.tolist()
    return bool(2 * nodes > len(trie.node) or 2 * entries > len(trie.token))


@kernel
def step_down(trie: SuffixTrie, array: SuffixArray, handle: int, token: int) -> int:
    """The handle of the context `handle` lengthened by `token`, or `NONE`."""
    if handle < 0:
        position = ~handle + 1
        return int(~position) if 0 <= position < len(array.tokens) and array.tokens[position] == token else int(NONE)
    slot = slot_of(trie.table, handle, token)
    while True:
        node = np.int64(trie.table[slot])
        if node == 0:
            break
        if trie.node[node, _PARENT] == handle and trie.node[node, _TOKEN] == token:
            return _handle(trie, array, int(node))
        slot = (slot + 1) & (len(trie.table) - 1)
    node = trie.sizes[_NODES]
    if node == len(trie.node):
        return int(NONE)
    low, high = _range(trie, array, handle, token)
    trie.sizes[_NODES] = node + 1
    trie.table[slot] = node
    trie.node[node, _LOW] = low
    trie.node[node, _HIGH] = high
    trie.node[node, _LENGTH] = trie.node[handle, _LENGTH] + 1
    trie.node[node, _PARENT] = handle
    trie.node[node, _TOKEN] = token
    trie.node[node, _FIRST] = _CLOSED
    return _handle(trie, array, int(node))


@kernel
def _handle(trie: SuffixTrie, array: SuffixArray, node: int) -> int:
    low, high = trie.node[node, _LOW], trie.node[node, _HIGH]
    if low == high:
        return int(NONE)
    if high - low == 1:
        return int(~(np.int64(array.suffixes[low]) + trie.node[node, _LENGTH] - 1))
    return int(node)


@kernel
def _range(trie: SuffixTrie, array: SuffixArray, node: int, token: int) -> tuple[int, int]:
    low, high, length = trie.node[node, _LOW], trie.node[node, _HIGH], trie.node[node, _LENGTH]
    if length == 0:
        return occurrences(array, token)
    first, count = trie.node[node, _FIRST], trie.node[node, _COUNT]
    if first != _CLOSED and high - low <= PROBES and count < _KEPT:  # every continuation is listed
        listed = False
        for entry in range(first, first + count):
            listed |= trie.token[entry] == token
        if not listed:
            return low, low
    return narrow(array, low, high, length, token)


@kernel
def occurred(trie: SuffixTrie, array: SuffixArray, handle: int) -> int:
    """How often the context of a handle occurred; 0 for `NONE`, and for an only occurrence that nothing follows."""
    if handle >= 0:
        return int(trie.node[handle, _HIGH] - trie.node[handle, _LOW])
    return int(handle != NONE and 0 <= ~handle < len(array.tokens) - 1)


@kernel
def continuations(trie: SuffixTrie, array: SuffixArray, node: int) -> tuple[int, int, int]:
    """What follows a context: its first entry, the one after its last, and its shape.

    The shape is 0 where all continuations are the same, 1 where one makes up half of them, 2 where they are diverse.
    """
    if trie.node[node, _FIRST] == _CLOSED and not _open(trie, array, node):
        return 0, 0, 0
    first = trie.node[node, _FIRST]
    return int(first), int(first + trie.node[node, _COUNT]), int(trie.node[node, _SHAPE])


@kernel
def _open(trie: SuffixTrie, array: SuffixArray, node: int) -> bool:
    """Count the continuations of a context; returns whether there was room for them."""
    low, high, length = trie.node[node, _LOW], trie.node[node, _HIGH], trie.node[node, _LENGTH]
    probes = min(high - low, PROBES)
    first = trie.sizes[_ENTRIES]
    if first + probes > len(trie.token):
        return False
    for i in range(probes):
        position = np.int64(array.suffixes[low + ((2 * i + 1) * (high - low)) // (2 * probes)]) + length
        trie.token[first + i] = array.tokens[position] if 0 <= position < len(array.tokens) else -1
    # Equals are neighbours: count them, then put the frequent ones first.
    count, begin = 0, 0
    for end in range(1, probes + 1):
        if end == probes or trie.token[first + end] != trie.token[first + begin]:
            token, seen = trie.token[first + begin], np.float32(end - begin)
            begin = end
            place = first + count
            if token < 0:
                continue
            while place > first and trie.share[place - 1] < seen:
                trie.share[place] = trie.share[place - 1]
                trie.token[place] = trie.token[place - 1]
                place -= 1
            trie.share[place] = seen
            trie.token[place] = token
            count += 1
    shape = 0
    if count and trie.share[first] < probes:
        shape = 1 if 2 * trie.share[first] >= probes else 2
    count = min(count, _KEPT)
    for entry in range(first, first + count):
        trie.share[entry] /= np.float32(probes)
    trie.sizes[_ENTRIES] = first + count
    trie.node[node, _FIRST] = first
    trie.node[node, _COUNT] = count
    trie.node[node, _SHAPE] = shape
    return True
