"""Prompt lookup decoding (PLD, github.com/apoorvumang/prompt-lookup-decoding), as Spec-Bench runs it.

Find where the request's last 3 tokens (else 2, else 1) occurred first, and draft the 10 tokens that followed.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.costs import Costs
from hdraft.drafting.drafter import UNLIMITED, Candidates, IdArray, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.tree import DraftTree


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

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> "PromptLookupSession":
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

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        """Append the tokens to the text; raises ValueError where one is outside the vocabulary."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        length = self._length + len(ids)
        if length > len(self._text):
            self._text = np.concatenate((self._text[: self._length], np.empty(length, np.int32)))
        self._text[self._length : length] = ids
        self._length = length

    def close(self) -> None:
        """End the request; nothing is learnt from it."""


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
