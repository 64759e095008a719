"""Lookahead Decoding (arXiv 2402.02057), as its code runs by default.

It drafts from the n-grams of the lookahead branch alone: the `guess` latest that begin with the last token.
"""

from hdraft.drafting.methods.published import PublishedDrafter


class LookaheadDrafter(PublishedDrafter):
    """Lookahead Decoding, with the settings that the paper of Hierarchy Drafting ran it with as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused.
        ngram_size: tokens of an n-gram.
        window: columns of the lookahead branch.
        guess: n-grams kept for each token.

    Raises:
        ValueError: a setting out of range.
    """

    files_text = False

    def __init__(self, vocab_size: int, *, ngram_size: int = 5, window: int = 7, guess: int = 7) -> None:
        if window < 1:
            raise ValueError("Lookahead Decoding drafts from its lookahead branch: the window must be at least 1")
        super().__init__(vocab_size, ngram_size=ngram_size, guess=guess, order="W", max_sequences=guess, window=window)
