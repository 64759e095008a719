"""Candidates: what the target found likely in each row it verified, rejected ones too, recycled as a source of drafts.

A step's logits say what follows every node of its tree, and ordinary speculative decoding keeps one token of each row.
Token Recycling (arXiv 2408.08696) keeps the likeliest few by the row's last token, and drafts from them the next time
that token comes; RACER (arXiv 2604.14885) and LogitSpec (arXiv 2507.01449) join them with retrieval. Here a row is kept
by its last token and by its last two, the newest in the place of an older one:

    verified     row ends with    the target's candidates
    a b          a                b 0.7, c 0.2        kept for (a) and for (text's last token, a)
                 b                d 0.5, e 0.4        kept for (b) and for (a, b)

The table is a set-associative cache: as much memory as it begins with, where the oldest row of a set makes way.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.kernel import kernel

WIDTH = 8
"""The most candidates kept of a row."""

MISSING = -1
"""The slot of a context that is not kept."""

_WAYS = 4  # rows of a set
_MIXER = 0x9E3779B97F4A7C15


class CandidateTable(NamedTuple):
    """Rows by context; a row whose `key` is -1 is free."""

    key: npt.NDArray[np.int64]  # [slots]
    token: npt.NDArray[np.int32]  # [slots, WIDTH] likeliest first, then -1
    probability: npt.NDArray[np.float32]  # [slots, WIDTH]
    seen: npt.NDArray[np.int32]  # [slots] the text's length when the row was verified


def allocate(slots: int) -> CandidateTable:
    """Room for so many rows, a power of two."""
    return CandidateTable(
        np.full(slots, -1, np.int64),
        np.full((slots, WIDTH), -1, np.int32),
        np.zeros((slots, WIDTH), np.float32),
        np.zeros(slots, np.int32),
    )


@kernel
def key_of(before: int, last: int) -> int:
    """The key of a context by its last two tokens; by its last one where `before` is -1."""
    return int((np.int64(before + 1) << 32) | np.int64(last))


@kernel
def find(table: CandidateTable, key: int) -> int:
    """The slot of a context, or `MISSING`."""
    first = _set_of(table, key)
    for slot in range(first, first + _WAYS):
        if table.key[slot] == key:
            return int(slot)
    return int(MISSING)


@kernel
def put(
    table: CandidateTable, key: int, tokens: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], now: int
) -> int:
    """Keep a row, int32[k] tokens, likeliest first, and float32[k] logarithms of their probabilities: its slot."""
    place = _make_way(table, key, now)
    for i in range(WIDTH):
        known = i < len(tokens)
        table.token[place, i] = tokens[i] if known else -1
        table.probability[place, i] = probability_of(scores[i]) if known else 0.0
    return place


@kernel
def put_again(table: CandidateTable, key: int, slot: int, now: int) -> None:
    """Keep the row of a slot for another context, too."""
    place = _make_way(table, key, now)
    for i in range(WIDTH):
        table.token[place, i] = table.token[slot, i]
        table.probability[place, i] = table.probability[slot, i]


@kernel
def _make_way(table: CandidateTable, key: int, now: int) -> int:
    """The slot for a context that is seen now: its own, a free one, or the oldest of its set."""
    first = _set_of(table, key)
    place = first
    for slot in range(first, first + _WAYS):
        if table.key[slot] == key:
            place = slot
            break
        if table.key[slot] < 0 or (table.key[place] >= 0 and table.seen[slot] < table.seen[place]):
            place = slot
    table.key[place] = key
    table.seen[place] = now
    return int(place)


@kernel
def probability_of(score: float) -> float:
    """The probability whose logarithm it is; 0 for what is no number."""
    return math.exp(score) if score < 0.0 else (1.0 if score >= 0.0 else 0.0)


@kernel
def _set_of(table: CandidateTable, key: int) -> int:
    mixed = np.uint64(key) * np.uint64(_MIXER)
    mixed ^= mixed >> np.uint64(32)
    return int(np.int64(mixed & np.uint64(len(table.key) // _WAYS - 1))) * _WAYS
