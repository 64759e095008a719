"""The matches of a context: what of it occurred before, in which database, at which length.

A node's context is its parent's with one more token, so each of its matches is one of its parent's, one token longer: a
descent by one node in a trie. Matches are found when they are first asked for.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.candidates import CandidateTable
from hdraft.drafting.databases.context import MATCH, NONE, TEXT, ContextTrie, descend
from hdraft.drafting.databases.context import MAX_LENGTH as CONTEXT_LENGTH
from hdraft.drafting.databases.frequent import SUFFIX_LENGTH
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.hierarchy import lookups as suffix_trie
from hdraft.drafting.hierarchy.lookups import SuffixTrie
from hdraft.drafting.hierarchy.reference import Places, Reference, allocate_places
from hdraft.drafting.kernel import kernel

TIERS = 4
"""The databases by their place in the hierarchy: 0 is D_c, 1 finished requests, 2 stored D_m, 3 D_s."""

RECYCLED, REFERENCE = TIERS, TIERS + 1
"""The places of the candidates and of references, which have no matches here: see `recycling` and `reference`."""

_UNKNOWN = NONE + 1  # a handle not asked for yet


class Databases(NamedTuple):
    """The databases as a request sees them, in the order of the hierarchy."""

    context: ContextTrie
    trie: SuffixTrie
    suffixes: tuple[SuffixArray, SuffixArray, SuffixArray]  # finished requests, stored D_m, D_s
    separators: npt.NDArray[np.int64]  # [TIERS] what ends a document: no context goes beyond it
    candidates: CandidateTable
    reference: Reference
    rarity: npt.NDArray[np.uint8]  # [vocab_size] of each token in general text, from 0 to 7


class Matches(NamedTuple):
    """The matches of each row's context: row 0 is the text so far, row i + 1 the tree's node i.

    A length above `longest` has no match; one below it may have none either.
    """

    token: npt.NDArray[np.int32]  # [rows]
    parent: npt.NDArray[np.int32]  # [rows]
    longest: npt.NDArray[np.int32]  # [rows, TIERS]
    handle: npt.NDArray[np.int64]  # [rows, TIERS, 1 + CONTEXT_LENGTH] contexts by length
    places: Places


def allocate(rows: int, old: Matches | None = None) -> Matches:
    """Room for a tree of `rows` - 1 nodes; row 0 is taken from `old`, or else is that of an empty text."""
    matches = Matches(
        token=np.zeros(rows, np.int32),
        parent=np.zeros(rows, np.int32),
        longest=np.zeros((rows, TIERS), np.int32),
        handle=np.zeros((rows, TIERS, 1 + CONTEXT_LENGTH), np.int64),
        places=allocate_places(rows, None if old is None else old.places),
    )
    matches.handle[0, :, 0] = np.maximum(np.arange(TIERS) - 1, 0)
    if old is not None:
        matches.longest[0], matches.handle[0] = old.longest[0], old.handle[0]
    return matches


@kernel
def match(databases: Databases, matches: Matches, row: int, tier: int, length: int) -> tuple[int, int]:
    """The handle of a match, and how often something followed it; 0 for no match."""
    if length > matches.longest[row, tier]:
        return int(NONE), 0
    handle = _handle(databases, matches, row, tier, length)
    if handle == NONE:
        matches.longest[row, tier] = length - 1
        return handle, 0
    if tier:
        return handle, suffix_trie.occurred(databases.trie, databases.suffixes[tier - 1], handle)
    trie = databases.context
    if handle >= 0 and trie.occurred[handle] > 1:
        return handle, int(trie.followed[handle])
    if handle >= 0:
        handle = ~int(trie.position[handle])
    return handle, int(~handle + 1 < trie.sizes[TEXT])


@kernel
def enter(matches: Matches, row: int, parent: int, token: int, limits: int) -> None:
    """Make `row` the child of `parent` by `token`; byte l of `limits` is the longest match that tier l can have."""
    matches.parent[row] = parent
    matches.token[row] = token
    matches.handle[row] = _UNKNOWN
    for tier in range(TIERS):
        longest = min(matches.longest[parent, tier] + 1, SUFFIX_LENGTH if tier else CONTEXT_LENGTH)
        matches.longest[row, tier] = min(longest, (limits >> (8 * tier)) & 255)
        matches.handle[row, tier, 0] = max(tier - 1, 0)  # the root


@kernel
def advance(databases: Databases, matches: Matches, token: int) -> None:
    """Move row 0's matches in the suffix arrays on by one token."""
    for tier in range(1, TIERS):
        longest = min(int(matches.longest[0, tier]) + 1, SUFFIX_LENGTH)
        for length in range(longest, 0, -1):
            handle = _handle(databases, matches, 0, tier, length - 1)
            matches.handle[0, tier, length] = _descend(databases, tier, handle, token)
            if matches.handle[0, tier, length] == NONE:
                longest = length - 1
        matches.longest[0, tier] = longest


@kernel
def look_up_anew(databases: Databases, matches: Matches) -> None:
    """Empty the trie of what was looked up in D_m and D_s, and look up the matches of the text again."""
    suffix_trie.clear(databases.trie, databases.suffixes)
    matches.longest[0, 1:] = 0
    end = int(databases.context.sizes[TEXT])
    for position in range(max(end - SUFFIX_LENGTH, 0), end):
        advance(databases, matches, databases.context.text[position])


@kernel
def settle(databases: Databases, matches: Matches) -> None:
    """Take row 0's matches in D_c from the end of its text."""
    matches.longest[0, 0] = databases.context.sizes[MATCH]
    for length in range(1, CONTEXT_LENGTH + 1):
        matches.handle[0, 0, length] = databases.context.matches[length]


@kernel
def _handle(databases: Databases, matches: Matches, row: int, tier: int, length: int) -> int:
    """The last `length` tokens of `row` as a context of a database; its prefixes are found on the way.

    Written without recursion: Numba's cache of compiled code does not survive it.
    """
    above, up = row, 0
    while matches.handle[above, tier, length - up] == _UNKNOWN:
        above = int(matches.parent[above])
        up += 1
    handle = int(matches.handle[above, tier, length - up])
    while up > 0:
        up -= 1
        above = row
        for _ in range(up):
            above = int(matches.parent[above])
        handle = _descend(databases, tier, handle, int(matches.token[above]))
        matches.handle[above, tier, length - up] = handle
    return handle


@kernel
def _descend(databases: Databases, tier: int, handle: int, token: int) -> int:
    if handle == NONE or token == databases.separators[tier]:
        return int(NONE)
    if tier == 0:
        return descend(databases.context, handle, token)
    return suffix_trie.descend(databases.trie, databases.suffixes[tier - 1], handle, token)
