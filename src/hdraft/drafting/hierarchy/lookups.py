"""Lookups in D_m and D_s, kept: the part of their suffix arrays' tries that a request has looked at.

A suffix array answers by binary search through memory that no cache holds, and a request asks for the same contexts
again and again. So each context that is asked for becomes a node here, found again by a hash of its
parent and its last token; its continuations are counted when they are first needed, and kept most frequent first. What
follows a frequent context of D_s was counted when that was built (`frequent.py`). Else, of many occurrences some are
looked at, evenly spaced; these probes say, too, between which ranks each continuation's are, so that little is left to
search. With the tokens `5 6 5 7 5 6 0` of one document:

    root ── 5 (ranks 1 to 3): opened, 6 twice, 7 once
              └── 6 (ranks 1 to 2): not opened yet

A context that occurs once needs no continuations of its own: its handle is `~position`, as in D_c. All suffix arrays of
a request share one trie; the nodes 0, 1, … are their roots.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.context import NONE, slot_of
from hdraft.drafting.databases.frequent import FREQUENT, KEPT, find_frequent
from hdraft.drafting.databases.suffixes import SuffixArray, first_rank, narrow, occurrences
from hdraft.drafting.kernel import kernel

PROBES = 128
"""The most occurrences of a context that are looked at."""

_COUNTED = 2**32  # in place of the number of probes: all occurrences were counted beforehand
_LOW, _HIGH, _LENGTH, _PARENT, _TOKEN, _FIRST, _COUNT, _PROBES = range(8)
_NODES, _ENTRIES = 0, 1  # what `sizes` holds
_CLOSED = -1


class SuffixTrie(NamedTuple):
    """The trie's arrays, with room to grow; where there is none left, contexts count as unknown until it is cleared."""

    node: npt.NDArray[np.int64]  # [nodes, 8] range of ranks, length, parent, token, first entry, entries, probes
    table: npt.NDArray[np.int32]  # [2**m] open-addressing hash of (parent, token) -> node, 0: free
    token: npt.NDArray[np.int32]  # [entries] continuations, those of a node next to each other, most frequent first …
    share: npt.NDArray[np.float32]  # [entries] … how often each follows, relative to all …
    rank: npt.NDArray[np.uint32]  # [entries, 2] … and the first and the last rank known to be of it
    sizes: npt.NDArray[np.int64]


def allocate(nodes: int) -> SuffixTrie:
    """Room for so many contexts; `clear` makes it a trie."""
    return SuffixTrie(
        np.empty((nodes, 8), np.int64),
        np.empty(1 << (2 * nodes - 1).bit_length(), np.int32),
        np.empty(8 * nodes, np.int32),
        np.empty(8 * nodes, np.float32),
        np.empty((8 * nodes, 2), np.uint32),
        np.zeros(2, np.int64),
    )


@kernel
def clear(trie: SuffixTrie, arrays: tuple[SuffixArray, ...]) -> None:
    """Make it the trie of `arrays`, with no context but their roots."""
    trie.table[:] = 0
    trie.sizes[_NODES], trie.sizes[_ENTRIES] = len(arrays), 0
    for root in range(len(arrays)):
        trie.node[root] = 0
        trie.node[root, _HIGH] = len(arrays[root].suffixes)
        trie.node[root, _FIRST] = _CLOSED


def forget(trie: SuffixTrie) -> None:
    """Have it emptied before the next lookup, as one that is crowded."""
    trie.sizes[_NODES] = len(trie.node)


@kernel
def is_new(trie: SuffixTrie) -> bool:
    """Whether it has not been made a trie yet."""
    return bool(trie.sizes[_NODES] == 0)


@kernel
def crowded(trie: SuffixTrie) -> bool:
    """Whether more than half of the room is taken."""
    return bool(2 * trie.sizes[_NODES] > len(trie.node) or 2 * trie.sizes[_ENTRIES] > len(trie.token))


@kernel
def descend(trie: SuffixTrie, array: SuffixArray, handle: int, token: int) -> int:
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
def occurred(trie: SuffixTrie, array: SuffixArray, handle: int) -> int:
    """How often the context of a handle occurred; 0 for `NONE`, and for an only occurrence that nothing follows."""
    if handle >= 0:
        return int(trie.node[handle, _HIGH] - trie.node[handle, _LOW])
    return int(handle != NONE and 0 <= ~handle < len(array.tokens) - 1)


@kernel
def continuations(trie: SuffixTrie, array: SuffixArray, node: int, probes: int) -> tuple[int, int, int]:
    """The continuations of a context, as `probes` of its occurrences or more tell.

    Returns its first entry, the one after its last, and its shape: 0 where all continuations are the same, 1 where one
    makes up half of them, 2 where they are diverse.
    """
    probes = min(probes, int(trie.node[node, _HIGH] - trie.node[node, _LOW]))
    closed = trie.node[node, _FIRST] == _CLOSED
    if (closed or trie.node[node, _PROBES] < probes) and not _open(trie, array, node, probes) and closed:
        return 0, 0, 0
    first, count = int(trie.node[node, _FIRST]), int(trie.node[node, _COUNT])
    shape = 0
    if count and trie.share[first] < 1.0:
        shape = 1 if trie.share[first] >= 0.5 else 2
    return first, first + count, shape


@kernel
def _open(trie: SuffixTrie, array: SuffixArray, node: int, probes: int) -> bool:
    """Count the continuations of a context; returns whether there was room for them."""
    low, high, length = trie.node[node, _LOW], trie.node[node, _HIGH], trie.node[node, _LENGTH]
    first = trie.sizes[_ENTRIES]
    if first + probes > len(trie.token):
        return False
    if _copy_counted(trie, array, node, first):
        return True
    stride = _stride(high - low, probes)
    for i in range(probes):
        position = np.int64(array.suffixes[low + _probe(i, stride)]) + length
        trie.token[first + i] = array.tokens[position] if 0 <= position < len(array.tokens) else -1
    # Equals are neighbours: count them, then put the frequent ones first.
    count, begin = 0, 0
    for end in range(1, probes + 1):
        if end == probes or trie.token[first + end] != trie.token[first + begin]:
            token, share = trie.token[first + begin], np.float32((end - begin) / probes)
            some, begin = begin, end
            if token < 0:
                continue
            place = first + count
            while place > first and trie.share[place - 1] < share:
                trie.share[place] = trie.share[place - 1]
                trie.token[place] = trie.token[place - 1]
                trie.rank[place, 0] = trie.rank[place - 1, 0]
                trie.rank[place, 1] = trie.rank[place - 1, 1]
                place -= 1
            trie.share[place] = share
            trie.token[place] = token
            trie.rank[place, 0] = low + _probe(some, stride)
            trie.rank[place, 1] = low + _probe(end - 1, stride)
            count += 1
    count = min(count, KEPT)
    trie.sizes[_ENTRIES] = first + count
    trie.node[node, _FIRST] = first
    trie.node[node, _COUNT] = count
    trie.node[node, _PROBES] = probes
    return True


@kernel
def _copy_counted(trie: SuffixTrie, array: SuffixArray, node: int, first: int) -> bool:
    """Take what follows a frequent context from where it was counted; returns whether it was."""
    low, high, length = trie.node[node, _LOW], trie.node[node, _HIGH], trie.node[node, _LENGTH]
    if high - low <= FREQUENT or first + KEPT > len(trie.token):
        return False
    begin, end = find_frequent(array, length, low, high)
    count = 0
    for row in range(begin, min(end, begin + KEPT)):
        some, occurred = np.int64(array.continuations[row, 1]), np.int64(array.continuations[row, 2])
        if some < low or occurred < 1 or some + occurred > high:  # a damaged database
            continue
        trie.token[first + count] = array.continuations[row, 0]
        trie.share[first + count] = np.float32(occurred / (high - low))
        trie.rank[first + count, 0] = some
        trie.rank[first + count, 1] = some + occurred - 1
        count += 1
    if count == 0:
        return False
    trie.sizes[_ENTRIES] = first + count
    trie.node[node, _FIRST] = first
    trie.node[node, _COUNT] = count
    trie.node[node, _PROBES] = _COUNTED
    return True


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
    first = trie.node[node, _FIRST]
    if first == _CLOSED:
        return narrow(array, low, high, length, token)
    begin, end, known = low, high, -1
    for entry in range(first, first + trie.node[node, _COUNT]):
        some, last = int(np.int64(trie.rank[entry, 0])), int(np.int64(trie.rank[entry, 1]))
        if trie.token[entry] < token:
            begin = max(begin, last + 1)
        elif trie.token[entry] > token:
            end = min(end, some)
        else:
            known = entry
    if known < 0:
        return narrow(array, begin, end, length, token)
    some, last = int(np.int64(trie.rank[known, 0])), int(np.int64(trie.rank[known, 1]))
    if trie.node[node, _PROBES] == _COUNTED:
        return some, last + 1
    begin, end = min(begin, some), max(end, last + 1)  # in a damaged array they may be out of order
    return first_rank(array, begin, some, length, token), first_rank(array, last + 1, end, length, token + 1)


@kernel
def _stride(count: int, probes: int) -> int:
    """How far apart the probes of so many occurrences are, times 2**16: to divide at each probe takes longer."""
    return int((np.int64(count) << 16) // np.int64(probes))


@kernel
def _probe(i: int, stride: int) -> int:
    """Which occurrence the i-th probe looks at: all of them where there is a probe for each."""
    return ((2 * i + 1) * stride) >> 17
