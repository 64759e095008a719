"""A suffix-sorted token array: what followed this context, how often, at any match length.

`suffixes` lists the positions of `tokens` in the lexicographic order of the texts that begin there, so all occurrences
of a context are one range of ranks, and those followed by the same token are neighbours within it. With the tokens
`5 6 5 7 0` and separator 0:

    rank      0  1    2      3    4
    suffixes  4  0    2      1    3
    reads     0  565… 57 0   65…  7 0

The context (5) is ranks 1 to 2; narrowed by 7 it is rank 2. A longer context is its prefix's range narrowed by one more
token, which is how a draft tree's node finds its matches from its parent's.

To count what follows a context takes two reads an occurrence. Contexts that are frequent are few, and asked for at
nearly every step, so what follows them is counted when D_s is built (`frequent.py`).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.kernel import kernel

_NO_CONTEXTS, _NO_CONTINUATIONS = np.empty((0, 4), np.uint32), np.empty((0, 3), np.uint32)
_NO_CONTEXTS.flags.writeable = _NO_CONTINUATIONS.flags.writeable = False


class SuffixArray(NamedTuple):
    """The arrays that the kernels read; all read-only, so that each kernel is compiled for one set of types.

    The last two are empty where frequent contexts are not counted.

    Attributes:
        tokens: uint16[n] or uint32[n], documents one after another, each ended by the separator.
        suffixes: uint32[n], positions in lexicographic order of what begins there.
        starts: uint32[vocab_size + 2], `suffixes[starts[t]:starts[t + 1]]` begin with token t.
        contexts: uint32[k, 4], the frequent contexts by length, and by rank: length, ranks [low, high), and the row in
            `continuations` that theirs begin at; they end where the next context's begin.
        continuations: uint32[m, 3], what follows them, the most frequent first: token, first rank, occurrences.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    suffixes: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint32]
    contexts: npt.NDArray[np.uint32] = _NO_CONTEXTS
    continuations: npt.NDArray[np.uint32] = _NO_CONTINUATIONS


@kernel
def token_at(array: SuffixArray, rank: int, offset: int) -> int:
    """The token `offset` places into the text at `rank`; -1 past the end, also where an index is corrupt."""
    position = np.int64(array.suffixes[rank]) + offset
    return int(np.int64(array.tokens[position])) if position < len(array.tokens) else -1


@kernel
def occurrences(array: SuffixArray, token: int) -> tuple[int, int]:
    """The ranks [low, high) of the texts that begin with `token`."""
    if token < 0 or token + 1 >= len(array.starts):
        return 0, 0
    low, high = int(np.int64(array.starts[token])), int(np.int64(array.starts[token + 1]))
    return (low, high) if low <= high <= len(array.suffixes) else (0, 0)


@kernel
def first_rank(array: SuffixArray, low: int, high: int, length: int, token: int) -> int:
    """Of the ranks [low, high), which share `length` tokens, the first that goes on with `token` or a higher one."""
    while low < high:
        middle = (low + high) >> 1
        if token_at(array, middle, length) < token:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def narrow(array: SuffixArray, low: int, high: int, length: int, token: int) -> tuple[int, int]:
    """Of the ranks [low, high), which share their first `length` tokens, those that go on with `token`."""
    first = first_rank(array, low, high, length, token)
    if first >= high or token_at(array, first, length) != token:
        return first, first
    return first, end_of_run(array, first, high, length, token)


@kernel
def end_of_run(array: SuffixArray, begin: int, high: int, length: int, token: int) -> int:
    """Where the ranks that go on with `token` end, of which `begin` is one; most are few, so gallop before halving."""
    stride = 1
    while begin + stride < high and token_at(array, begin + stride, length) == token:
        begin += stride
        stride <<= 1
    return first_rank(array, begin + 1, min(high, begin + stride), length, token + 1)
