"""The lookahead branch: the Jacobi window of Lookahead Decoding (arXiv 2402.02057), whose n-grams feed D_c.

A step verifies its draft and, beside it, guesses further ahead: `window` columns are each a guess at the text from one
place on, `ngram_size` - 1 tokens long, and every step each column gets one token longer, the target's own next one. A
column then is an n-gram of `ngram_size` tokens; it goes to D_c, and the column goes on without its first token. With 4
columns and n-grams of 3 tokens, after a text that ends in `a`, row 0 begins with `a` itself:

    row 0     a ── b ── c ── d      the text, and guesses at the three tokens after it
              │    │    │    │
    row 1     p    q    r    s      what may follow each of them
              ┊    ┊    ┊    ┊
    new       w    x    y    z      what the target says follows row 1: n-grams a p w, b q x, c r y, d s z

A token of row 1 sees its column and, in row 0, what is left of it: a token's position is its depth in this drawing, and
what it sees are its ancestors. So the branch is a tree, and is forwarded as one. Next, row 0 is the text's new end
and `q r s`, row 1 is `w x y z`.

As the authors' code does by default, the window begins with tokens drawn from the prompt, fills a row a step, and moves
on by one column a step, however many tokens were emitted.
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.tree import DraftTree

_SEED = 0  # each session's own: the same request gives the same window

Row = npt.NDArray[np.int32]


class LookaheadBranch:
    """The window of one request.

    Attributes:
        rows: the tokens of each row, but for the text's last one, which row 0 begins with; `ngram_size` - 1 rows once
            the window is filled, the first with `window` - 1 tokens and the others with `window`.
    """

    def __init__(self, text: Row, window: int, ngram_size: int) -> None:
        """Begin with tokens drawn from `text`, the prompt, of one token at least."""
        self.ngram_size = ngram_size
        self.last = int(text[-1])
        self.rows: list[Row] = [np.random.default_rng(_SEED).choice(text, window + ngram_size - 3)]

    def nodes(self) -> DraftTree:
        """The window's tokens as nodes below the text's last token, row after row; siblings may be equal."""
        parents, depths = [], []
        start = above = 0  # where the row begins, and the one above it
        for row, tokens in enumerate(self.rows):
            column = np.arange(len(tokens))
            # column 0 of row 0 is the text itself, so that its node of column i is number i - 1
            parents.append(column - 1 if row < 2 else above + column)
            depths.append(column + max(row, 1))
            start, above = start + len(tokens), start
        return DraftTree(np.concatenate(self.rows), np.concatenate(parents), depths=np.concatenate(depths))

    @property
    def depth(self) -> int:
        """The depth of its deepest node."""
        return len(self.rows[-1]) + max(len(self.rows) - 2, 0)

    def advance(self, predictions: npt.ArrayLike, last: int) -> npt.NDArray[np.int32] | None:
        """Move on by a step.

        Args:
            predictions: int[n], the target's most likely token after each node of the last row.
            last: the text's last token after this step.

        Returns:
            The columns as n-grams, int32[window, ngram_size], the leftmost first; None while the window is filling.
        """
        new = np.asarray(predictions, dtype=np.int32)
        ngrams = None
        if len(self.rows) == self.ngram_size - 1:
            ngrams = np.stack([np.append(np.int32(self.last), self.rows[0]), *self.rows[1:], new], axis=1)
            self.rows = [self.rows[1][1:], *self.rows[2:], new]
        elif len(self.rows) == 1:  # nothing follows the text itself: what does is verified
            self.rows = [self.rows[0][1:], new]
        else:
            self.rows = [row[1:] for row in (*self.rows, new)]
        self.last = last
        return ngrams


def check_branch(window: int, ngram_size: int) -> None:
    """Refuse what no lookahead branch can be.

    Raises:
        ValueError: no column, or n-grams of fewer than 3 tokens.
    """
    if window < 1 or ngram_size < 3:
        raise ValueError("a lookahead branch needs a window of at least 1 column, and n-grams of at least 3 tokens")
