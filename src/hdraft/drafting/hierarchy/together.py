"""Chains for many requests at once: one call into compiled code for a piece of the batch, on several threads.

An engine that serves many requests has all rows of a batch to draft for between two forward passes, while its GPU
waits. What is done for each row by the interpreter is as little as can be: its tokens are put behind those of the
others, and its chain is cut out of an array. No row looks at what another changes, so the chains are the same on any
number of threads.
"""

from collections.abc import Sequence
from itertools import accumulate, chain, repeat

import numpy as np

from hdraft.drafting.drafter import TokenIds, check_ids
from hdraft.drafting.hierarchy.drafter import NOT_DRAWN, NOT_VERIFIED, HierarchySession
from hdraft.drafting.hierarchy.growth import ADDRESS, BUDGET, SIZE, TOKENS
from hdraft.drafting.threads import Threads

NODES = 2
"""Nodes of a tree, for each token that its chain may have."""


def draft_chains(
    sessions: Sequence[HierarchySession],
    token_ids: Sequence[TokenIds],
    lengths: Sequence[int],
    price: float = 0.0,
    least_match: int = 1,
    threads: Threads | None = None,
) -> list[list[int]]:
    """Take in what a step emitted in each session, and draft a chain for each: the best path of a tree.

    It is what `extend`, `propose(NODES * length, length, price)` and `best_chain(length, price)` give, for one session
    after another.

    Args:
        sessions: different ones, of one drafter, or of drafters `scoped` from one.
        token_ids: of each session, below the drafter's `vocab_size`.
        lengths: the most tokens of each chain.
        price: the probability above which a token is worth its place.
        least_match: how many of a text's last tokens must have occurred before in this order, for it to have a chain.
        threads: to share the work; none for the thread that calls alone.

    Raises:
        ValueError: an id is outside the vocabulary; then no session has taken anything in.

    >>> from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
    >>> drafter = HierarchyDrafter(vocab_size=100)
    >>> draft_chains([drafter.session([5, 6, 7, 5]), drafter.session([8, 9])], [[6], [8]], [3, 3])
    [[7, 5, 6], [9, 8, 9]]
    """
    if not sessions:
        return []
    rows, longest = len(sessions), max(0, *lengths)
    drafter = sessions[0]._drafter
    ids = check_ids(np.array(list(chain.from_iterable(token_ids)), np.int64), drafter.vocab_size)
    prices = price * np.arange(NODES * longest + 1.0)
    chains = np.zeros((rows, longest), np.int32)
    depths = [max(length, 0) for length in lengths]
    columns = (
        [session.address() for session in sessions],
        accumulate(map(len, token_ids)),
        depths,
        [NODES * depth for depth in depths],
        repeat(0),
    )
    calls = np.array(list(zip(*columns, strict=False)))
    kernels = drafter.kernels()
    arguments = (ids, True, NOT_VERIFIED, NOT_DRAWN, drafter.vocab_size, prices, least_match, chains)

    def work(begin: int, end: int) -> None:
        kernels.advance_and_grow(calls, kernels.kind, *arguments, begin, end)

    (threads or _ALONE).over(rows, work)
    while calls[:, SIZE].min() < 0:
        for row in np.flatnonzero(calls[:, SIZE] < 0).tolist():
            session, begin = sessions[row], calls[row - 1, TOKENS] if row else 0
            session.make_room(int(calls[row, TOKENS] - begin), int(calls[row, BUDGET]))
            calls[row, ADDRESS] = session.address()
            work(row, row + 1)
    return [path[:length] for path, length in zip(chains.tolist(), calls[:, SIZE].tolist(), strict=True)]


_ALONE = Threads(1)
