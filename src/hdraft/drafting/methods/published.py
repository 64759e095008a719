"""Hierarchy Drafting as published (arXiv 2502.05609): at most 7 sequences of 4 tokens, database after database.

Each database answers with sequences that followed the last token before. The slots are filled from the first database
of the order, then from the next, and merged into the tree. With D_c alone and n-grams of 3, after `1 2 3 1 4 5 1`:

    n-grams         1 2 3   2 3 1   3 1 4   1 4 5   4 5 1
    filed under 1   (4 5), (2 3): drafted in this order, the most recent first

- D_c (W): for each token, the last `guess` sequences that followed it in this request and, with a `window`, in its
  lookahead branch; the least recently used makes room, as in the n-gram pool of Lookahead Decoding (arXiv 2402.02057).
- D_m (S): of the 100,000 n-grams that occur in the most outputs, for each token the `guess` most frequent.
- D_s (L): what followed the last `previous_tokens` tokens, found as REST (arXiv 2311.08252) does, see `retrieval`.

Where the authors' code and the paper differ, this follows the paper: every n-gram of the accepted text enters D_c (the
code files an empty slice in place of the newest one). D_s is asked once, about its 40 most frequent continuations, the
longest first; the code goes on to ask with fewer tokens, which is worth about 0.01 of MAT behind the other two. Neither
knows a budget; so that a small one is used well, the likeliest comes first: D_c's most recent and D_m's most frequent
sequence, which the code lists last. A sequence that the end of its document cuts short is drafted as it is, not filled
up with random tokens.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import UNLIMITED, Candidates, IdArray, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.methods.lookahead_branch import LookaheadBranch, check_branch
from hdraft.drafting.methods.ngrams import NgramTable, allocate_table, file_ngrams, file_text, table_of_outputs
from hdraft.drafting.methods.retrieval import CONTINUATION, Retrieval, allocate_retrieval, find, retrieve, suffix_array
from hdraft.drafting.tree import DraftTree, Source

LETTERS = {"W": Source.CONTEXT, "S": Source.MODEL, "L": Source.STATISTICS}
"""The names of the databases in the authors' code."""

CHOICES = 40
"""D_s looks at this many continuations; the longest of them come first."""


class PublishedDrafter:
    """Hierarchy Drafting as published, with its code's settings as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused, and never drafted.
        model_database: D_m, read once, here.
        statistics_database: D_s.
        ngram_size: tokens of an n-gram, its key included (the authors' `level`); sequences are one shorter.
        guess: sequences kept for each token in D_c and D_m.
        order: the databases to ask, W (D_c), S (D_m) and L (D_s) in any order, each at most once. One that is not given
            has nothing to offer.
        previous_tokens: the length of D_s's queries.
        max_sequences: the most sequences in a tree.
        window: columns of the lookahead branch, whose n-grams go to D_c; 0 for none. It runs where the target does: a
            replayed trace has no logits for it.

    Raises:
        ValueError: a setting out of range, or a database of another vocabulary.

    >>> drafter = PublishedDrafter(vocab_size=10, ngram_size=3)
    >>> drafter.session([1, 2, 3, 1, 4, 5, 1]).propose(budget=10).tokens.tolist()
    [4, 5, 2, 3]
    """

    files_text = True
    """Whether the n-grams of the text itself go to D_c."""

    def __init__(
        self,
        vocab_size: int,
        model_database: ModelDatabase | None = None,
        statistics_database: StatisticsDatabase | None = None,
        *,
        ngram_size: int = 5,
        guess: int = 7,
        order: str = "WSL",
        previous_tokens: int = 2,
        max_sequences: int = 7,
        window: int = 0,
    ) -> None:
        if not order or set(order) - set(LETTERS) or len(set(order)) < len(order):
            raise ValueError(f"order must be some of the letters W, S and L, each at most once, not {order!r}")
        if ngram_size < 2 or min(guess, previous_tokens, max_sequences) < 1:
            raise ValueError("ngram_size must be at least 2, and guess, previous_tokens and max_sequences at least 1")
        if window and "W" not in order:
            raise ValueError(f"the lookahead branch feeds W, which order {order!r} does not ask: leave out the window")
        if window:
            check_branch(window, ngram_size)
        self.vocab_size = vocab_size
        self.ngram_size = ngram_size
        self.guess = guess
        self.order = np.array([LETTERS[letter] for letter in order], np.uint8)
        self.previous_tokens = previous_tokens
        self.max_sequences = max_sequences
        self.window = window
        self.lookahead_nodes = window * (ngram_size - 1)
        self.model = table_of_outputs(model_database if "S" in order else None, vocab_size, ngram_size, guess)
        self.statistics, self.separator = suffix_array(statistics_database, vocab_size)

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> "PublishedSession":
        """Start a request; `costs` are not looked at: the method always drafts what it finds, up to the budget."""
        return PublishedSession(self, prompt_ids)


class PublishedSession:
    """One request of a `PublishedDrafter`.

    Attributes:
        lookahead: the branch to run beside the drafts, if there is one.
    """

    def __init__(self, drafter: PublishedDrafter, prompt_ids: TokenIds) -> None:
        self._drafter = drafter
        self._context = allocate_table(drafter.vocab_size, drafter.ngram_size, drafter.guess)
        self._found = allocate_retrieval(drafter.statistics, drafter.separator, drafter.vocab_size, CHOICES)
        self._retrieved = np.empty((drafter.max_sequences, drafter.ngram_size - 1), np.int32)
        self._recent = np.empty(0, np.int32)
        self.extend(prompt_ids)
        self.lookahead: LookaheadBranch | None = None
        if drafter.window and len(prompt_ids):
            self.lookahead = LookaheadBranch(np.asarray(prompt_ids, np.int32), drafter.window, drafter.ngram_size)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft the sequences of the first databases, at most `budget` nodes, the first sequences whole."""
        drafter = self._drafter
        room = min(budget, drafter.max_sequences * (drafter.ngram_size - 1))
        if room < 1 or max_depth < 1 or not len(self._recent):
            return DraftTree.empty()
        tokens, parents, depths = np.empty((3, room), np.int32)
        nodes = Nodes(tokens, parents, depths, np.empty(room, np.uint8))
        n = _draft(
            drafter.order,
            self._context,
            drafter.model,
            self._recent,
            drafter.previous_tokens,
            max_depth,
            self._found,
            self._retrieved,
            nodes,
        )
        return DraftTree(tokens[:n], parents[:n], nodes.sources[:n], depths=depths[:n])

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        """File the lookahead branch's n-grams, then those that end in the accepted tokens.

        Raises:
            ValueError: an id outside the vocabulary, or `ngrams` that are not int[m, ngram_size].
        """
        drafter = self._drafter
        ids = check_ids(token_ids, drafter.vocab_size)
        if ngrams is not None:
            ngrams = np.asarray(ngrams)
            if ngrams.ndim != 2 or ngrams.shape[1] != drafter.ngram_size:
                raise ValueError(f"ngrams must be an array [m, {drafter.ngram_size}], not {list(ngrams.shape)}")
            file_ngrams(self._context, check_ids(ngrams.ravel(), drafter.vocab_size).reshape(ngrams.shape))
        text = np.concatenate((self._recent, ids))
        if drafter.files_text:
            file_text(self._context, text, len(ids))
        self._recent = text[-max(drafter.ngram_size - 1, drafter.previous_tokens) :]

    def close(self) -> None:
        """End the request. Nothing is learnt from it: the published D_m is fixed."""


class Nodes(NamedTuple):
    """A draft tree while it grows, as in `DraftTree`."""

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int32]
    sources: npt.NDArray[np.uint8]


@kernel
def _draft(
    order: npt.NDArray[np.uint8],
    context: NgramTable,
    model: NgramTable,
    recent: npt.NDArray[np.int32],
    previous_tokens: int,
    max_depth: int,
    found: Retrieval,
    retrieved: npt.NDArray[np.int32],
    nodes: Nodes,
) -> int:
    """The published hierarchy: fill the slots, database after database; returns the size of the tree."""
    last = recent[-1]
    size, slots = 0, len(retrieved)
    for source in order:
        if source == Source.CONTEXT:
            sequences, available = context.sequences[last], int(context.sizes[last])
        elif source == Source.MODEL:
            sequences, available = model.sequences[last], int(model.sizes[last])
        elif slots > 0:
            query = recent[-previous_tokens:]
            low, high = find(found.array, query)
            n = retrieve(found, low, high, len(query))
            sequences, available = retrieved, _longest(found, n, retrieved)
        else:
            break
        taken = min(available, slots)
        for i in range(taken):
            size = _merge(nodes, size, sequences[i], source, max_depth)
        slots -= taken
    return size


@kernel
def _merge(nodes: Nodes, size: int, sequence: npt.NDArray[np.int32], source: int, max_depth: int) -> int:
    """Add a sequence, up to a -1, to the tree of `size` nodes, as far as there is room; returns its new size."""
    parent = -1
    for depth in range(min(len(sequence), max_depth)):
        token = sequence[depth]
        node = parent + 1
        while node < size and not (nodes.parents[node] == parent and nodes.tokens[node] == token):
            node += 1
        if token < 0 or node == len(nodes.tokens):
            break
        if node == size:
            nodes.tokens[node] = token
            nodes.parents[node] = parent
            nodes.depths[node] = depth + 1
            nodes.sources[node] = source
            size += 1
        parent = node
    return size


@kernel
def _longest(found: Retrieval, size: int, sequences: npt.NDArray[np.int32]) -> int:
    """Fill `sequences` with continuations, the longest first, cut to its width, none a prefix of an earlier one.

    Returns:
        how many there are; what is left of a shorter one is -1.
    """
    found.marks[:size] = 0  # 1: among the sequences
    filled = 0
    for depth in range(CONTINUATION, 0, -1):
        for leaf in range(size):
            node = leaf
            while found.depths[node] > sequences.shape[1]:
                node = int(found.parents[node])
            if found.depths[leaf] != depth or found.marks[node] or filled == len(sequences):
                continue
            sequences[filled] = -1
            while node >= 0:
                sequences[filled, found.depths[node] - 1] = found.tokens[node]
                found.marks[node] = 1
                node = int(found.parents[node])
            filled += 1
    return filled
