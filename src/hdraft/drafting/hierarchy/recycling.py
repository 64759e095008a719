"""What the candidates say of a context: the rows that the target verified with the same last tokens.

A row of a context's last two tokens is nearest to it, one of its last token alone comes next. And there is the row of
the context one token shorter: what the target found likely there, and did not choose, often comes next (LogitSpec,
arXiv 2507.01449). With the text `… a b` and rows kept for (a, b), (b) and (z, a), where z is what stands before a:

    rows[2]   after a b        the target's own guess, in another place of this request
    rows[1]   after b
    rows[0]   after z a        b was chosen; the others of that row may follow
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.candidates import MISSING, WIDTH, CandidateTable, find, key_of
from hdraft.drafting.databases.context import TEXT
from hdraft.drafting.hierarchy.matching import Databases, Matches
from hdraft.drafting.kernel import kernel

LENGTHS = 3
"""Rows are looked up by a context's last 0, 1 and 2 tokens."""

CODES = 12
"""What a row may say of a token, see `code_of`."""

SURENESS = 5
"""How likely a candidate is, see `sureness`."""


@kernel
def find_rows(databases: Databases, matches: Matches, row: int, rows: npt.NDArray[np.int64]) -> None:
    """Look the candidates of a context up, their slots into `rows`."""
    rows[:] = MISSING
    if len(databases.candidates.key) == 0:
        return
    last, before = _token_before(databases, matches, row, 0), _token_before(databases, matches, row, 1)
    rows[2] = find(databases.candidates, key_of(before, last))
    rows[1] = find(databases.candidates, key_of(-1, last))
    rows[0] = find(databases.candidates, key_of(_token_before(databases, matches, row, 2), before))


@kernel
def age_of(databases: Databases, slot: int) -> int:
    """How many tokens ago a row was verified."""
    return int(databases.context.sizes[TEXT] - databases.candidates.seen[slot])


@kernel
def shape_of(table: CandidateTable, slot: int) -> int:
    """How sure the target was, as `continuations` says it of a database: 0, or 1, or 2 where it was not."""
    likeliest = table.probability[slot, 0]
    return int(likeliest < 0.8) + int(likeliest < 0.4)


@kernel
def sureness(probability: float) -> int:
    """A probability in five ranges, the highest first."""
    return int(probability < 0.9) + int(probability < 0.6) + int(probability < 0.3) + int(probability < 0.1)


@kernel
def code_of(table: CandidateTable, slot: int, token: int) -> int:
    """What a row says of a token: 0 for no row, 1 for not among the candidates, else by probability and rank."""
    if slot == MISSING:
        return 0
    for rank in range(WIDTH):
        if table.token[slot, rank] == token:
            return 2 + sureness(table.probability[slot, rank]) + (0 if rank == 0 else SURENESS)
    return 1


@kernel
def _token_before(databases: Databases, matches: Matches, row: int, back: int) -> int:
    """The token that is `back` before the last one of a row's context; -2, which has no candidates, for none."""
    while row > 0 and back > 0:
        row = int(matches.parent[row])
        back -= 1
    if row > 0:
        return int(matches.token[row])
    position = int(databases.context.sizes[TEXT]) - 1 - back
    return int(databases.context.text[position]) if position >= 0 else -2
