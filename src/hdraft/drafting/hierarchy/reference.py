"""References: texts that the answer will probably resemble, followed while it is written.

What the answer is at, in its references, is a few *places*: where its next token is expected to stand. As long as a
place foresees the text it moves on with it; where none does, the answer differs, and each way to go on is a place:

    reference   a b c d e f g           places before each token, the likeliest first
    answer      a                       at a (the beginning)
                  b                     at b
                    x                   at c: foresees c, so this is a difference
                      ?                 at c (x was inserted), at d (x stands for c)
                      e                 foreseen by neither, but e stands a little further on: d was left out, so at f

The text's last two tokens are also looked up in all of the references, wherever they stand; of several occurrences the
one that is nearest to where the difference began. A node of the tree has its parent's places, one token further on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.context import TEXT, ContextTrie
from hdraft.drafting.kernel import kernel

PLACES = 4
"""The most places kept at once."""

LONGEST = 12
"""Agreement beyond so many tokens is not counted."""

NOWHERE = -1
AGREED, INSERTED, REPLACED, BEGUN = range(4)
"""Why the answer may be at a place: it agreed so far, or its last tokens are in no reference, or nothing is written."""

_AT_LEAST = 3  # the length of a match that a place stands for, however little agrees
_END = -1  # between references: foresees nothing
_NEAR = 64  # tokens around a difference, among which a single token is found again
_ANCHOR, _SINCE = 0, 1  # what `state` holds


class Reference(NamedTuple):
    """The references of a request, and what is known of where its answer is."""

    text: npt.NDArray[np.int32]  # [tokens] one after another, each ended by -1
    pairs: npt.NDArray[np.int64]  # [tokens] each token with the one before it, sorted …
    ends: npt.NDArray[np.int32]  # [tokens] … and where it stands, equal pairs in the order of the text
    state: npt.NDArray[np.int32]  # [2] where the last difference began, and how many tokens ago


class Places(NamedTuple):
    """Of each row of a tree, its places, the likeliest first; row 0 is the text so far."""

    at: npt.NDArray[np.int32]  # [rows, PLACES] indices of `Reference.text`, or NOWHERE
    agreed: npt.NDArray[np.int32]  # [rows, PLACES] how many tokens before it agree, `LONGEST` at most
    why: npt.NDArray[np.int32]  # [rows, PLACES] AGREED, INSERTED, …


def make_reference(texts: Sequence[npt.NDArray[np.int32]]) -> Reference:
    """The references of a request, int32[n] each; none is as good as an empty one.

    100,000 tokens take about 10 ms, nearly all of it for sorting their pairs.
    """
    ends = np.array([_END], np.int32)
    text = np.concatenate([part for each in texts if len(each) for part in (each, ends)] or [ends[:0]])
    pairs = (np.concatenate((ends, text[:-1]))[: len(text)].astype(np.int64) << 32) | text.astype(np.uint32)
    order = np.argsort(pairs, kind="stable").astype(np.int32)
    return Reference(text, pairs[order], order, np.zeros(2, np.int32))


def allocate_places(rows: int, old: Places | None = None) -> Places:
    """Room for the places of a tree of `rows` - 1 nodes; row 0 is taken from `old`."""
    places = Places(*(np.full((rows, PLACES), NOWHERE, np.int32) for _ in range(3)))
    if old is not None:
        for new, before in zip(places, old, strict=True):
            new[0] = before[0]
    return places


def begin(reference: Reference, places: Places) -> None:
    """Put the text, of which nothing is written yet, at the beginning of the first references."""
    ends = np.flatnonzero(reference.text == _END)
    starts = np.concatenate(([0], ends + 1))[: min(PLACES, len(ends))]
    places.at[0, : len(starts)] = starts
    places.agreed[0, : len(starts)] = 0
    places.why[0, : len(starts)] = BEGUN


@kernel
def foreseen_at(reference: Reference, places: Places, row: int, i: int) -> int:
    """The token that a place foresees, negative for none."""
    at = places.at[row, i]
    return int(reference.text[at]) if at != NOWHERE else int(NOWHERE)


@kernel
def stands_for(places: Places, row: int, i: int) -> int:
    """The length of the match that a place is as good as; 0 for no place."""
    return int(max(places.agreed[row, i], _AT_LEAST)) if places.at[row, i] != NOWHERE else 0


@kernel
def descend(reference: Reference, places: Places, row: int, parent: int, token: int) -> None:
    """The places of `row`, a child of `parent` by `token`; where none foresees it, it may stand for what one does."""
    places.at[row] = NOWHERE
    if len(reference.text) == 0:
        return
    count = _move_on(reference, places, row, parent, token)
    first = places.at[parent, 0]
    if count == 0 and first != NOWHERE and reference.text[first] != _END:
        _add(reference, places, row, 0, first + 1, 0, REPLACED)


@kernel
def follow(reference: Reference, places: Places, context: ContextTrie, token: int) -> None:
    """Move row 0's places on by a token that was emitted, the last of the text."""
    if len(reference.text) == 0:
        return
    state, first = reference.state, int(places.at[0, 0])
    count = _move_on(reference, places, 0, 0, token)
    if count and places.agreed[0, 0] >= 2:
        state[_ANCHOR], state[_SINCE] = places.at[0, 0], 0
        return
    if count == 0:
        if state[_SINCE] == 0 and first != NOWHERE:
            state[_ANCHOR] = first
        state[_SINCE] += 1
    count = _find_again(reference, places, context, count)
    if state[_SINCE] == 0:
        return
    anchor, since = int(state[_ANCHOR]), int(state[_SINCE])
    if count == 0:
        near = _nearest(reference, token, anchor, since)
        if near >= 0:
            count = _add(reference, places, 0, count, near + 1, 1, AGREED)
    count = _add(reference, places, 0, count, anchor, 0, INSERTED)
    _add(reference, places, 0, count, anchor + since, 0, REPLACED)


@kernel
def _move_on(reference: Reference, places: Places, row: int, parent: int, token: int) -> int:
    """Put those places of `parent` that foresee `token` into `row`, one token further; returns how many."""
    count = 0
    for i in range(PLACES):
        at = int(places.at[parent, i])
        if at == NOWHERE:
            break
        if reference.text[at] == token:
            count = _add(reference, places, row, count, at + 1, min(int(places.agreed[parent, i]) + 1, LONGEST), AGREED)
    for i in range(count, PLACES):
        places.at[row, i] = NOWHERE
    return count


@kernel
def _add(reference: Reference, places: Places, row: int, count: int, at: int, agreed: int, why: int) -> int:
    """Put a place behind the `count` that a row has, unless it is one of them; returns how many it has then."""
    if count == PLACES or at >= len(reference.text):
        return count
    for i in range(count):
        if places.at[row, i] == at:
            return count
    places.at[row, count] = at
    places.agreed[row, count] = agreed
    places.why[row, count] = why
    return count + 1


@kernel
def _find_again(reference: Reference, places: Places, context: ContextTrie, count: int) -> int:
    """Put the place behind the nearest occurrence of the text's last two tokens behind `count` others."""
    end = int(context.sizes[TEXT])
    if end < 2:
        return count
    pair = (np.int64(context.text[end - 2]) << 32) | np.int64(context.text[end - 1])
    found = _nearest_pair(reference, int(pair), int(reference.state[_ANCHOR]))
    if found < 0:
        return count
    agreed = 2
    while agreed < LONGEST and agreed <= found and agreed < end:
        if reference.text[found - agreed] != context.text[end - 1 - agreed]:
            break
        agreed += 1
    return _add(reference, places, 0, count, found + 1, agreed, AGREED)


@kernel
def _nearest_pair(reference: Reference, pair: int, near: int) -> int:
    """Where the second token of a pair stands, nearest to `near`, rather behind it than before; -1 for nowhere."""
    low = _rank(reference, pair, -1)
    high = _rank(reference, pair, len(reference.text))
    if low == high:
        return -1
    ahead = _rank(reference, pair, near)
    if ahead == high:
        return int(reference.ends[high - 1])
    if ahead == low or reference.ends[ahead] - near <= 2 * (near - reference.ends[ahead - 1]):
        return int(reference.ends[ahead])
    return int(reference.ends[ahead - 1])


@kernel
def _rank(reference: Reference, pair: int, position: int) -> int:
    """How many entries come before the first of this pair that stands at `position` or behind it."""
    low, high = 0, len(reference.pairs)
    while low < high:
        middle = (low + high) >> 1
        before = reference.pairs[middle] < pair
        if reference.pairs[middle] == pair and reference.ends[middle] < position:
            before = True
        if before:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _nearest(reference: Reference, token: int, anchor: int, since: int) -> int:
    """Where a token stands near a difference of `since` tokens, nearest to where it would if as many were replaced."""
    nearest = -1
    for at in range(anchor, min(anchor + since + _NEAR, len(reference.text))):
        if reference.text[at] == _END:
            break
        if reference.text[at] == token and (
            nearest < 0 or abs(at - (anchor + since - 1)) < abs(nearest - (anchor + since - 1))
        ):
            nearest = at
    return nearest
