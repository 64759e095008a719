"""The baselines: prompt lookup, Lookahead Decoding and REST, by the same protocol.

- Prompt lookup decoding (PLD, github.com/apoorvumang/prompt-lookup-decoding), as Spec-Bench runs it: find where the
  request's last 3 tokens (else 2, else 1) occurred first, and draft the 10 tokens that followed.
- Lookahead Decoding (arXiv 2402.02057), as its code runs by default: the n-grams of the lookahead branch alone, the
  `guess` latest that begin with the last token.
- REST (arXiv 2311.08252): find the longest context in D_s, 16 to 2 tokens, and draft the tree of what followed it.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.drafter import UNLIMITED, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.methods.published import (
    CONTINUATION,
    PublishedDrafter,
    Retrieval,
    allocate_retrieval,
    find,
    retrieve,
    suffix_array,
)
from hdraft.drafting.tree import DraftTree, Source


@kernel
def _look_up(text: npt.NDArray[np.int32], max_ngram: int, draft: int) -> int:
    """Where the draft begins: after the first occurrence of the longest n-gram that ends `text`; -1 for none.

    An occurrence counts if `draft` tokens follow it and it ends more than its own length before the text does.
    """
    n = len(text)
    longest, found = 0, -1
    for begin in range(1, n - draft + 1):
        length = 0
        while length < min(max_ngram, begin, n - 1 - begin) and text[begin - 1 - length] == text[n - 1 - length]:
            length += 1
        if length > longest:
            longest, found = length, begin
            if longest == max_ngram:
                break
    return found


class PromptLookupDrafter:
    """Prompt lookup decoding, with Spec-Bench's settings as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused.
        max_ngram: the longest n-gram looked up.
        draft: tokens drafted; an occurrence that fewer tokens follow is passed over.

    Raises:
        ValueError: a setting below 1.

    >>> drafter = PromptLookupDrafter(vocab_size=10, draft=2)
    >>> drafter.session([1, 2, 3, 4, 1, 2]).propose(budget=10).tokens.tolist()
    [3, 4]
    """

    def __init__(self, vocab_size: int, *, max_ngram: int = 3, draft: int = 10) -> None:
        if max_ngram < 1 or draft < 1:
            raise ValueError("max_ngram and draft must be at least 1")
        self.vocab_size = vocab_size
        self.max_ngram = max_ngram
        self.draft = draft

    def session(self, prompt_ids: TokenIds, costs: npt.NDArray[np.floating] | None = None) -> "PromptLookupSession":
        """Start a request; `costs` are not looked at."""
        return PromptLookupSession(self, prompt_ids)


class PromptLookupSession:
    """One request of a `PromptLookupDrafter`."""

    def __init__(self, drafter: PromptLookupDrafter, prompt_ids: TokenIds) -> None:
        self._drafter = drafter
        self._text = np.empty(0, np.int32)
        self._length = 0
        self.extend(prompt_ids)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft one sequence."""
        text = self._text[: self._length]
        begin = _look_up(text, self._drafter.max_ngram, self._drafter.draft)
        size = min(self._drafter.draft, budget, max_depth)
        if begin < 0 or size < 1:
            return DraftTree.empty()
        return DraftTree(text[begin : begin + size].copy(), np.arange(-1, size - 1), depths=np.arange(1, size + 1))

    def extend(
        self,
        token_ids: TokenIds,
        ngrams: npt.NDArray[np.integer] | None = None,
        candidates: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Append the tokens to the text; raises ValueError where one is outside the vocabulary."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        length = self._length + len(ids)
        if length > len(self._text):
            self._text = np.concatenate((self._text[: self._length], np.empty(length, np.int32)))
        self._text[self._length : length] = ids
        self._length = length

    def close(self) -> None:
        """End the request; nothing is learnt from it."""


class LookaheadDrafter(PublishedDrafter):
    """Lookahead Decoding, with the settings that the paper of Hierarchy Drafting ran it with as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused.
        level: tokens of an n-gram.
        window: columns of the lookahead branch.
        guess: n-grams kept for each token.

    Raises:
        ValueError: a setting out of range.
    """

    files_text = False

    def __init__(self, vocab_size: int, *, level: int = 5, window: int = 7, guess: int = 7) -> None:
        if window < 1:
            raise ValueError("Lookahead Decoding drafts from its lookahead branch: the window must be at least 1")
        super().__init__(vocab_size, level=level, guess=guess, order="W", max_sequences=guess, window=window)


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


@kernel
def _rest_draft(
    array: SuffixArray,
    separator: int,
    vocab_size: int,
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
        begin, end = find(array, recent[len(recent) - span :])
        if begin == end:
            break
        length, low, high = span, begin, end
    n = retrieve(array, separator, vocab_size, low, high, length, found)
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

    def session(self, prompt_ids: TokenIds, costs: npt.NDArray[np.floating] | None = None) -> "RestSession":
        """Start a request; `costs` are not looked at."""
        return RestSession(self, prompt_ids)


class RestSession:
    """One request of a `RestDrafter`."""

    def __init__(self, drafter: RestDrafter, prompt_ids: TokenIds) -> None:
        self._drafter = drafter
        self._found = allocate_retrieval(drafter.choices)
        self._recent = np.empty(0, np.int32)
        self.extend(prompt_ids)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft the tree, the most frequent continuations first."""
        drafter = self._drafter
        room = min(budget, drafter.choices)
        if room < 1 or max_depth < 1 or not len(self._recent):
            return DraftTree.empty()
        tokens, parents, depths = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
        n = _rest_draft(
            drafter.statistics,
            drafter.separator,
            drafter.vocab_size,
            self._recent,
            drafter.min_span,
            max_depth,
            self._found,
            tokens,
            parents,
            depths,
        )
        return DraftTree(tokens[:n], parents[:n], np.full(n, Source.STATISTICS, np.uint8), depths=depths[:n])

    def extend(
        self,
        token_ids: TokenIds,
        ngrams: npt.NDArray[np.integer] | None = None,
        candidates: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Append the tokens to the text; raises ValueError where one is outside the vocabulary."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        self._recent = np.concatenate((self._recent, ids))[-self._drafter.max_span :]

    def close(self) -> None:
        """End the request; nothing is learnt from it."""
