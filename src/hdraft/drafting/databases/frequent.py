"""The frequent contexts of a suffix array: what follows them, counted once, when D_s is built.

In 24 million tokens some six thousand contexts occur more than 1,024 times. Nearly every draft tree asks for some of
them, and they are the dearest to look up: a request would read a sample of their occurrences (`lookups.py`), each
from memory that no cache holds. Counted beforehand, they take 0.09 bytes a token of D_s, and their shares are exact.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.suffixes import SuffixArray, end_of_run, token_at
from hdraft.drafting.kernel import kernel

FREQUENT = 1024
"""A context is frequent that occurs more often than this."""

KEPT = 48
"""The most continuations kept of a context, the most frequent."""

SUFFIX_LENGTH = 8
"""The longest context looked up in D_m and D_s, in tokens."""

_RAREST = 256  # a continuation is kept that follows once in so many occurrences or more often


def count_frequent(array: SuffixArray, separator: int) -> SuffixArray:
    """`array` with its frequent contexts of up to `SUFFIX_LENGTH` tokens; none goes beyond a `separator`.

    >>> from hdraft.drafting.databases.sorting import build
    >>> array = count_frequent(build(np.array([5, 6, 5, 7, 0] * 2000, np.uint16), vocab_size=8, separator=0), 0)
    >>> array.contexts[:4].tolist()  # 5, 6 and 7 follow each other; of two tokens: 5 6
    [[1, 2000, 6000, 0], [1, 6000, 8000, 2], [1, 8000, 10000, 3], [2, 2000, 4000, 4]]
    >>> array.continuations[:4].tolist()  # of 5: 6 and 7, of 6: 5, of 7: the end of the document
    [[6, 2000, 2000], [7, 4000, 2000], [5, 6000, 2000], [0, 8000, 2000]]
    """
    contexts: list[tuple[int, int, int, int]] = []
    continuations: list[npt.NDArray[np.uint32]] = []
    kept = 0
    ends = np.empty(len(array.starts), np.int64)
    ranges = [(0, len(array.suffixes))] if len(array.suffixes) > FREQUENT else []
    for length in range(SUFFIX_LENGTH + 1):
        longer: list[tuple[int, int]] = []
        for low, high in ranges:
            end = ends[: _runs(array, low, high, length, ends)]
            first = np.concatenate(([low], end[:-1]))
            positions = array.suffixes[first].astype(np.int64) + length
            inside = positions < len(array.tokens)  # the last document's end is the array's
            first, occurred = first[inside], (end - first)[inside]
            tokens = array.tokens[positions[inside]]
            if length:
                contexts.append((length, low, high, kept))
                likeliest = np.argsort(-occurred, kind="stable")[:KEPT]
                likeliest = likeliest[occurred[likeliest] * _RAREST >= high - low]
                continuations.append(np.stack((tokens, first, occurred), axis=1)[likeliest].astype(np.uint32))
                kept += len(likeliest)
            going_on = (occurred > FREQUENT) & (tokens != separator)
            longer += zip(first[going_on].tolist(), (first + occurred)[going_on].tolist(), strict=True)
        ranges = longer
    if not contexts:
        return array
    return array._replace(contexts=_frozen(np.array(contexts)), continuations=_frozen(np.concatenate(continuations)))


def _frozen(rows: npt.NDArray[np.integer]) -> npt.NDArray[np.uint32]:
    frozen = np.ascontiguousarray(rows, np.uint32)
    frozen.flags.writeable = False
    return frozen


@kernel
def _runs(array: SuffixArray, low: int, high: int, length: int, ends: npt.NDArray[np.int64]) -> int:
    """Where the ranks that go on with each token end, of those from `low` to `high`, which share `length` tokens."""
    count = 0
    while low < high and count < len(ends):
        low = end_of_run(array, low, high, length, token_at(array, low, length))
        ends[count] = low
        count += 1
    return count


@kernel
def find_frequent(array: SuffixArray, length: int, low: int, high: int) -> tuple[int, int]:
    """The rows in `continuations` of the context of `length` tokens at the ranks [low, high); (0, 0) for none."""
    first, end = 0, len(array.contexts)
    while first < end:
        middle = (first + end) >> 1
        there = np.int64(array.contexts[middle, 0])
        if there < length or (there == length and np.int64(array.contexts[middle, 1]) < low):
            first = middle + 1
        else:
            end = middle
    if first == len(array.contexts):
        return 0, 0
    row = array.contexts[first]
    if np.int64(row[0]) != length or np.int64(row[1]) != low or np.int64(row[2]) != high:
        return 0, 0
    begin, end = int(np.int64(row[3])), len(array.continuations)
    if first + 1 < len(array.contexts):
        end = min(end, int(np.int64(array.contexts[first + 1, 3])))
    return (begin, end) if begin < end else (0, 0)
