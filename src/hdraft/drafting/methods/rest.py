"""REST, retrieval-based speculative decoding (arXiv 2311.08252).

Find the longest context in D_s, 16 to 2 tokens, and draft the tree of what followed it.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import UNLIMITED, Candidates, IdArray, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.methods.retrieval import CONTINUATION, Retrieval, allocate_retrieval, find, retrieve, suffix_array
from hdraft.drafting.tree import DraftTree, Source


class RestDrafter:
    """REST, retrieval-based speculative decoding, with its code's settings as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused, and never drafted.
        statistics_database: D_s.
        choices: the most continuations retrieved, and the most tokens of a tree.
        max_span: the longest context looked up.
        min_span: the shortest.

    Raises:
        ValueError: a setting out of range, or a database of another vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        statistics_database: StatisticsDatabase,
        *,
        choices: int = 64,
        max_span: int = 16,
        min_span: int = 2,
    ) -> None:
        if choices < 1 or not 1 <= min_span <= max_span:
            raise ValueError("choices must be at least 1, and 1 <= min_span <= max_span")
        self.vocab_size = vocab_size
        self.statistics, self.separator = suffix_array(statistics_database, vocab_size)
        self.choices = choices
        self.max_span = max_span
        self.min_span = min_span

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> "RestSession":
        """Start a request; `costs` are not looked at."""
        return RestSession(self, prompt_ids)


class RestSession:
    """One request of a `RestDrafter`."""

    def __init__(self, drafter: RestDrafter, prompt_ids: TokenIds) -> None:
        self._drafter = drafter
        self._found = allocate_retrieval(drafter.statistics, drafter.separator, drafter.vocab_size, drafter.choices)
        self._recent = np.empty(0, np.int32)
        self.extend(prompt_ids)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft the tree, the most frequent continuations first."""
        drafter = self._drafter
        room = min(budget, drafter.choices)
        if room < 1 or max_depth < 1 or not len(self._recent):
            return DraftTree.empty()
        tokens, parents, depths = np.empty((3, room), np.int32)
        n = _draft(self._recent, drafter.min_span, max_depth, self._found, tokens, parents, depths)
        return DraftTree(tokens[:n], parents[:n], np.full(n, Source.STATISTICS, np.uint8), depths=depths[:n])

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        """Append the tokens to the text; raises ValueError where one is outside the vocabulary."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        self._recent = np.concatenate((self._recent, ids))[-self._drafter.max_span :]

    def close(self) -> None:
        """End the request; nothing is learnt from it."""


@kernel
def _draft(
    recent: npt.NDArray[np.int32],
    min_span: int,
    max_depth: int,
    found: Retrieval,
    tokens: npt.NDArray[np.int32],
    parents: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int32],
) -> int:
    """Fill the last three with REST's tree; returns its size."""
    length, low, high = 0, 0, 0
    for span in range(min(min_span, len(recent)), len(recent) + 1):
        begin, end = find(found.array, recent[len(recent) - span :])
        if begin == end:
            break
        length, low, high = span, begin, end
    n = retrieve(found, low, high, length)
    _cut(found, n)
    size = 0
    for node in range(n):
        if found.marks[node] > 0 and found.depths[node] <= max_depth and size < len(tokens):
            parent = int(found.parents[node])
            tokens[size] = found.tokens[node]
            parents[size] = found.marks[parent] if parent >= 0 else -1
            depths[size] = found.depths[node]
            found.marks[node] = size
            size += 1
    return size


@kernel
def _cut(found: Retrieval, size: int) -> None:
    """Drop continuations, those of most distinct tokens first, until all together have no more of them than choices.

    A continuation's prefixes are continuations too, and each counts its own. `marks` of those that go is 0 then; a
    prefix goes after what it begins.
    """
    total = 0
    for node in range(size):
        distinct, other = 1, int(found.parents[node])
        if other >= 0:
            distinct += found.marks[other]
        while other >= 0:
            if found.tokens[other] == found.tokens[node]:
                distinct -= 1
                break
            other = int(found.parents[other])
        found.marks[node] = distinct
        total += distinct
    for most in range(CONTINUATION, 0, -1):
        for node in range(size - 1, -1, -1):
            if found.marks[node] == most and total > len(found.tokens):
                found.marks[node] = 0
                total -= most
