"""D_c, the context-dependent database: a counting trie of this request's own text, built as the text grows.

Every n-gram of up to `MAX_LENGTH` + 1 tokens is a path from the root; its node counts how often it occurred. A context
that occurred once stays a leaf that points into the text, and is opened at its second occurrence, so that novel text
costs a few nodes a token. Children are kept most recent first. After `1 2 1 3 1`:

    root ── 1 (3 times) ── 3, 2 (once each)
         ── 2 (a leaf: its continuation is the text after position 1)
         ── 3 (a leaf)

and the matches of the text's end are the contexts that occurred before: here (1), of length 1.
A suffix trie with counts is what SuffixDecoding (arXiv 2411.04975) keeps for its requests too.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.kernel import kernel

MAX_LENGTH = 12
"""The longest context looked up, in tokens."""

NONE = -(2**62)
"""The handle of a context that never occurred."""

_ROOT = 0
TEXT, _NODES, MATCH = 0, 1, 2  # what `sizes` holds: tokens of text, nodes, the longest match's length
_MOST_NODES_A_TOKEN = 2 * (MAX_LENGTH + 1)


class ContextDatabase:
    """D_c of one request."""

    def __init__(self, token_ids: TokenIds = ()) -> None:
        room = max(256, 2 * len(token_ids))
        self.trie = _allocate(room, 2 * room)
        self.trie.sizes[_NODES] = 1
        self.trie.occurred[_ROOT] = 2  # no leaf
        self.extend(token_ids)

    def __len__(self) -> int:
        return int(self.trie.sizes[TEXT])

    def extend(self, token_ids: TokenIds) -> None:
        """Append `token_ids` to the text."""
        ids = np.ascontiguousarray(token_ids, dtype=np.int32)
        done = 0
        while (done := _append_all(self.trie, ids, done)) < len(ids):
            self.reserve(1)

    def reserve(self, tokens: int) -> None:
        """Make room for `append` to take in so many tokens."""
        old = self.trie
        text, nodes = int(old.sizes[TEXT]), int(old.sizes[_NODES])
        text_needed, nodes_needed = text + tokens, nodes + tokens * _MOST_NODES_A_TOKEN
        if text_needed <= len(old.text) and nodes_needed <= len(old.token):
            return
        self.trie = _allocate(
            len(old.text) if text_needed <= len(old.text) else max(2 * len(old.text), text_needed),
            len(old.token) if nodes_needed <= len(old.token) else max(2 * len(old.token), nodes_needed),
        )
        self.trie.text[:text] = old.text[:text]
        for new, values in zip(self.trie[1:9], old[1:9], strict=True):
            new[:nodes] = values[:nodes]
        self.trie.matches[:] = old.matches
        self.trie.sizes[:] = old.sizes
        _fill_table(self.trie)


class ContextTrie(NamedTuple):
    """The trie's arrays, with room to grow.

    A context's handle is its node, or `~position` for a context that occurred once, at that position of the text.
    """

    text: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]  # [nodes] the n-gram's last token
    parent: npt.NDArray[np.int32]  # [nodes]
    occurred: npt.NDArray[np.int32]  # [nodes] occurrences of the n-gram
    followed: npt.NDArray[np.int32]  # [nodes] occurrences that a token followed: the sum of the children's counts
    position: npt.NDArray[np.int32]  # [nodes] where the n-gram's latest occurrence ends
    first: npt.NDArray[np.int32]  # [nodes] most recent child, 0: none
    older: npt.NDArray[np.int32]  # [nodes] next sibling, 0: none
    newer: npt.NDArray[np.int32]  # [nodes] previous sibling, 0: none
    table: npt.NDArray[np.int32]  # [2**m] open-addressing hash of (parent, token) -> node, 0: free
    matches: npt.NDArray[np.int32]  # [MAX_LENGTH + 1] the node of the text's last k tokens, k up to sizes[MATCH]
    sizes: npt.NDArray[np.int32]


@kernel
def has_room(trie: ContextTrie, tokens: int) -> bool:
    """Whether so many tokens can be appended, whatever they are."""
    nodes = trie.sizes[_NODES] + tokens * _MOST_NODES_A_TOKEN
    return bool(trie.sizes[TEXT] + tokens <= len(trie.text) and nodes <= len(trie.token))


@kernel
def append(trie: ContextTrie, token: int) -> None:
    """Take in one token: every context that the text ended with is now followed by it."""
    position = trie.sizes[TEXT]
    trie.text[position] = token
    trie.sizes[TEXT] = position + 1
    matched = 0
    context = _ROOT
    for length in range(trie.sizes[MATCH] + 1):
        node = find(trie, context, token)
        following = trie.matches[length + 1] if length < MAX_LENGTH else 0
        if node == 0:
            _add_leaf(trie, context, token, position)
        else:
            _count_again(trie, context, node)
            if length < MAX_LENGTH:
                if trie.occurred[node] == 2:  # no leaf any more: what followed its first occurrence becomes a child
                    after = trie.position[node] + 1
                    _add_leaf(trie, node, trie.text[after], after)
                matched = length + 1
                trie.matches[matched] = node
            trie.position[node] = position
        context = following
    trie.sizes[MATCH] = matched


@kernel
def find(trie: ContextTrie, parent: int, token: int) -> int:
    """The child of `parent` that holds `token`; 0 if there is none."""
    slot = slot_of(trie.table, parent, token)
    while True:
        node = trie.table[slot]
        if node == 0 or (trie.parent[node] == parent and trie.token[node] == token):
            return int(node)
        slot = (slot + 1) & (len(trie.table) - 1)


@kernel
def descend(trie: ContextTrie, handle: int, token: int) -> int:
    """The handle of the context `handle` lengthened by `token`, or `NONE`."""
    if handle >= 0:
        if trie.occurred[handle] > 1:
            child = find(trie, handle, token)
            return child if child else int(NONE)
        position = int(trie.position[handle])
    else:
        position = ~handle
    position += 1
    if position < trie.sizes[TEXT] and trie.text[position] == token:
        return ~position
    return int(NONE)


@kernel
def slot_of(table: npt.NDArray[np.int32], parent: int, token: int) -> int:
    """Where a hash table of 2**m slots begins to look for the child of `parent` that holds `token`."""
    mixed = np.uint64(parent) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(token) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return int(np.int64((mixed >> np.uint64(32)) & np.uint64(len(table) - 1)))


@kernel
def _put_first(trie: ContextTrie, parent: int, node: int) -> None:
    head = trie.first[parent]
    trie.older[node] = head
    trie.newer[node] = 0
    if head:
        trie.newer[head] = node
    trie.first[parent] = node


@kernel
def _add_leaf(trie: ContextTrie, parent: int, token: int, position: int) -> None:
    node = trie.sizes[_NODES]
    trie.sizes[_NODES] = node + 1
    trie.token[node] = token
    trie.parent[node] = parent
    trie.occurred[node] = 1
    trie.followed[node] = 0
    trie.position[node] = position
    trie.first[node] = 0
    _put_first(trie, parent, node)
    trie.followed[parent] += 1
    slot = slot_of(trie.table, parent, token)
    while trie.table[slot]:
        slot = (slot + 1) & (len(trie.table) - 1)
    trie.table[slot] = node


@kernel
def _count_again(trie: ContextTrie, parent: int, node: int) -> None:
    trie.occurred[node] += 1
    trie.followed[parent] += 1
    if trie.newer[node]:  # move to the front
        trie.older[trie.newer[node]] = trie.older[node]
        if trie.older[node]:
            trie.newer[trie.older[node]] = trie.newer[node]
        _put_first(trie, parent, node)


@kernel
def _append_all(trie: ContextTrie, token_ids: npt.NDArray[np.int32], begin: int) -> int:
    """Take in `token_ids[begin:]` while there is room; returns how many of `token_ids` are in."""
    for i in range(begin, len(token_ids)):
        if not has_room(trie, 1):
            return i
        append(trie, token_ids[i])
    return len(token_ids)


@kernel
def _fill_table(trie: ContextTrie) -> None:
    for node in range(1, trie.sizes[_NODES]):
        slot = slot_of(trie.table, trie.parent[node], trie.token[node])
        while trie.table[slot]:
            slot = (slot + 1) & (len(trie.table) - 1)
        trie.table[slot] = node


def _allocate(text: int, nodes: int) -> ContextTrie:
    slots = 1 << (2 * nodes - 1).bit_length()  # at most half full
    lengths = [text, *[nodes] * 8, slots, MAX_LENGTH + 1, 3]
    return ContextTrie(*(np.zeros(length, np.int32) for length in lengths))
