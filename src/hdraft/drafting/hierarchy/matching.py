"""The matches of a context: what of it occurred before, in which database, at which length.

A node's context is its parent's with one more token, so each of its matches is one of its parent's, one token longer: a
step down a trie. Matches are found when they are first asked for.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.context import MATCH, NONE, TEXT, ContextTrie, step_down
from hdraft.drafting.databases.context import MAX_LENGTH as CONTEXT_LENGTH
from hdraft.drafting.databases.frequent import SUFFIX_LENGTH
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.hierarchy import lookups as suffix_trie
from hdraft.drafting.hierarchy.lookups import SuffixTrie
from hdraft.drafting.kernel import kernel

LEVELS = 4
"""D_c, finished requests, stored D_m, D_s."""

_UNKNOWN = NONE + 1  # a handle not asked for yet


class Databases(NamedTuple):
    """What a step reads, in the order of the hierarchy."""

    context: ContextTrie
    trie: SuffixTrie
    suffixes: tuple[SuffixArray, SuffixArray, SuffixArray]  # finished requests, stored D_m, D_s
    separators: npt.NDArray[np.int64]  # [LEVELS] what ends a document: no context goes beyond it
    rarity: npt.NDArray[np.uint8]  # [vocab_size] of each token in general text, from 0 to 7


class Matches(NamedTuple):
    """The matches of each row's context: row 0 is the text so far, row i + 1 the tree's node i.

    A length above `longest` has no match; one below it may have none either.
    """

    token: npt.NDArray[np.int32]  # [rows]
    parent: npt.NDArray[np.int32]  # [rows]
    longest: npt.NDArray[np.int32]  # [rows, LEVELS]
    handle: npt.NDArray[np.int64]  # [rows, LEVELS, 1 + CONTEXT_LENGTH] contexts by length


@kernel
def _step_down(databases: Databases, level: int, handle: int, token: int) -> int:
    if handle == NONE or token == databases.separators[level]:
        return int(NONE)
    if level == 0:
        return step_down(databases.context, handle, token)
    return suffix_trie.step_down(databases.trie, databases.suffixes[level - 1], handle, token)


@kernel
def _handle(databases: Databases, matches: Matches, row: int, level: int, length: int) -> int:
    """The last `length` tokens of `row` as a context of a database; its prefixes are found on the way.

    Written without recursion: Numba's cache of compiled code does not survive it.
    """
    above, up = row, 0
    while matches.handle[above, level, length - up] == _UNKNOWN:
        above = int(matches.parent[above])
        up += 1
    handle = int(matches.handle[above, level, length - up])
    while up > 0:
        up -= 1
        above = row
        for _ in range(up):
            above = int(matches.parent[above])
        handle = _step_down(databases, level, handle, int(matches.token[above]))
        matches.handle[above, level, length - up] = handle
    return handle


@kernel
def match(databases: Databases, matches: Matches, row: int, level: int, length: int) -> tuple[int, int]:
    """The handle of a match, and how often something followed it; 0 for no match."""
    if length > matches.longest[row, level]:
        return int(NONE), 0
    handle = _handle(databases, matches, row, level, length)
    if handle == NONE:
        matches.longest[row, level] = length - 1
        return handle, 0
    if level:
        return handle, suffix_trie.occurred(databases.trie, databases.suffixes[level - 1], handle)
    trie = databases.context
    if handle >= 0 and trie.occurred[handle] > 1:
        return handle, int(trie.followed[handle])
    if handle >= 0:
        handle = ~int(trie.position[handle])
    return handle, int(~handle + 1 < trie.sizes[TEXT])


@kernel
def enter(matches: Matches, row: int, parent: int, token: int, limits: int) -> None:
    """Make `row` the child of `parent` by `token`; byte l of `limits` is the longest match that level l can have."""
    matches.parent[row] = parent
    matches.token[row] = token
    matches.handle[row] = _UNKNOWN
    for level in range(LEVELS):
        longest = min(matches.longest[parent, level] + 1, SUFFIX_LENGTH if level else CONTEXT_LENGTH)
        matches.longest[row, level] = min(longest, (limits >> (8 * level)) & 255)
        matches.handle[row, level, 0] = max(level - 1, 0)  # the root


@kernel
def advance(databases: Databases, matches: Matches, token: int) -> None:
    """Move row 0's matches in the suffix arrays on by one token."""
    for level in range(1, LEVELS):
        longest = min(int(matches.longest[0, level]) + 1, SUFFIX_LENGTH)
        for length in range(longest, 0, -1):
            handle = _handle(databases, matches, 0, level, length - 1)
            matches.handle[0, level, length] = _step_down(databases, level, handle, token)
            if matches.handle[0, level, length] == NONE:
                longest = length - 1
        matches.longest[0, level] = longest


@kernel
def settle(databases: Databases, matches: Matches) -> None:
    """Take row 0's matches in D_c from the end of its text."""
    matches.longest[0, 0] = databases.context.sizes[MATCH]
    for length in range(1, CONTEXT_LENGTH + 1):
        matches.handle[0, 0, length] = databases.context.matches[length]


def allocate(rows: int, old: Matches | None = None) -> Matches:
    """Room for a tree of `rows` - 1 nodes; row 0 is taken from `old`, or else is that of an empty text."""
    matches = Matches(
        token=np.zeros(rows, np.int32),
        parent=np.zeros(rows, np.int32),
        longest=np.zeros((rows, LEVELS), np.int32),
        handle=np.zeros((rows, LEVELS, 1 + CONTEXT_LENGTH), np.int64),
    )
    matches.handle[0, :, 0] = np.maximum(np.arange(LEVELS) - 1, 0)
    if old is not None:
        matches.longest[0], matches.handle[0] = old.longest[0], old.handle[0]
    return matches
