"""Hierarchy Drafting as published (arXiv 2502.05609): at most 7 sequences of 4 tokens, database after database.

Each database answers with sequences that followed the last token before. The slots are filled from the first database
of the order, then from the next, and merged into the tree. With level 3 and D_c alone, after `1 2 3 1 4 5 1`:

    n-grams         1 2 3   2 3 1   3 1 4   1 4 5   4 5 1
    filed under 1   (4 5), (2 3): drafted in this order, the most recent first

- D_c (W): for each token, the last `guess` sequences that followed it in this request and, with a `window`, in its
  lookahead branch; the least recently used makes room, as in the n-gram pool of Lookahead Decoding (arXiv 2402.02057).
- D_m (S): of the 100,000 n-grams that occur in the most outputs, for each token the `guess` most frequent.
- D_s (L): what followed the last `previous_tokens` tokens, found as REST (arXiv 2311.08252) does, see `retrieve`.

Where the authors' code and the paper differ, this follows the paper: every n-gram of the accepted text enters D_c (the
code files an empty slice in place of the newest one). D_s is asked once, about its 40 most frequent continuations, the
longest first; the code goes on to ask with fewer tokens, which is worth about 0.01 of MAT behind the other two. Neither
knows a budget; so that a small one is used well, the likeliest comes first: D_c's most recent and D_m's most frequent
sequence, which the code lists last. A sequence that the end of its document cuts short is drafted as it is, not filled
up with random tokens.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.sorting import build
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray, narrow, occurrences
from hdraft.drafting.drafter import UNLIMITED, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.methods.lookahead_branch import LookaheadBranch
from hdraft.drafting.tree import DraftTree, Source

LETTERS = {"W": Source.CONTEXT, "S": Source.MODEL, "L": Source.STATISTICS}
"""What the authors' code calls the databases."""

MODEL_NGRAMS = 100_000
"""D_m keeps this many n-grams."""

CHOICES = 40
"""D_s looks at this many continuations; the longest of them come first."""

OCCURRENCES = 5000
"""Retrieval looks at this many occurrences of a context, the first ones in lexicographic order, …"""

CONTINUATION = 10
"""… and this many tokens past it."""


class Documents(Protocol):
    """What D_m is made from: a `ModelDatabase`."""

    def documents(self) -> Iterable[npt.NDArray[np.integer]]:
        """The target's outputs, the token ids [n] of each, without the end of sequence."""
        ...


class NgramTable(NamedTuple):
    """The sequences that followed each token, the best first.

    Attributes:
        sequences: int32[vocab_size, guess, level - 1].
        sizes: int32[vocab_size], how many of a token's `guess` places are taken.
    """

    sequences: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]


class Retrieval(NamedTuple):
    """A trie of what most often followed a context, the most frequent first, and what it takes to find it.

    Attributes:
        tokens, parents, depths: int32[choices], as in `DraftTree`.
        counts: int32[choices], how many of the context's occurrences go on like this, …
        begins: int32[choices], … and where these begin in the scratch below.
        marks: int32[choices], for whoever reads the trie.
        positions, following: int64[OCCURRENCES].
    """

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int32]
    marks: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    following: npt.NDArray[np.int64]


class Nodes(NamedTuple):
    """A draft tree while it grows, as in `DraftTree`."""

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int32]
    sources: npt.NDArray[np.uint8]


@kernel
def _file(table: NgramTable, ngram: npt.NDArray[np.int32]) -> None:
    """Put an n-gram first in the list of its first token; the last one of a full list makes room."""
    token = ngram[0]
    sequences = table.sequences[token]
    guess, length = sequences.shape
    size = table.sizes[token]
    place = 0
    while place < size:
        same = 0
        while same < length and sequences[place, same] == ngram[same + 1]:
            same += 1
        if same == length:
            break
        place += 1
    if place == size and size < guess:
        table.sizes[token] += 1
    for i in range(min(place, guess - 1), 0, -1):
        for j in range(length):
            sequences[i, j] = sequences[i - 1, j]
    for j in range(length):
        sequences[0, j] = ngram[j + 1]


@kernel
def _file_text(table: NgramTable, text: npt.NDArray[np.int32], new: int) -> None:
    """File the n-grams that end in the last `new` tokens of `text`."""
    level = table.sequences.shape[2] + 1
    for end in range(max(len(text) - new + 1, level), len(text) + 1):
        _file(table, text[end - level : end])


@kernel
def _file_ngrams(table: NgramTable, ngrams: npt.NDArray[np.int32]) -> None:
    for ngram in ngrams:
        _file(table, ngram)


@kernel
def find(array: SuffixArray, context: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The ranks [low, high) of the texts that begin with `context`, one token at least."""
    low, high = occurrences(array, int(context[0]))
    for length in range(1, len(context)):
        if low < high:
            low, high = narrow(array, low, high, length, int(context[length]))
    return low, high


@kernel
def _sort(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
    """Sort both by `keys`, in place: Shell's sort."""
    gap = len(keys) >> 1
    while gap > 0:
        for i in range(gap, len(keys)):
            key, value = keys[i], values[i]
            place = i
            while place >= gap and keys[place - gap] > key:
                keys[place], values[place] = keys[place - gap], values[place - gap]
                place -= gap
            keys[place], values[place] = key, value
        gap >>= 1


@kernel
def _read_following(
    array: SuffixArray,
    separator: int,
    positions: npt.NDArray[np.int64],
    offset: int,
    following: npt.NDArray[np.int64],
) -> None:
    """Fill `following` with the tokens `offset` past `positions`, both sorted by it, which deep suffixes are not."""
    ordered = True
    for i in range(len(positions)):
        position = positions[i] + offset
        following[i] = array.tokens[position] if position < len(array.tokens) else separator
        ordered &= i == 0 or following[i - 1] <= following[i]
    if not ordered:
        _sort(following, positions)


@kernel
def _insert(found: Retrieval, size: int, parent: int, token: int, depth: int, count: int, begin: int) -> int:
    """Put a child of `parent` behind all that are as frequent; the last of a full list makes room if it is rarer."""
    if size < len(found.tokens):
        size += 1
    elif size - 1 == parent or found.counts[size - 1] >= count:
        return size
    place = size - 1
    while place - 1 > parent and found.counts[place - 1] < count:
        found.tokens[place] = found.tokens[place - 1]
        found.parents[place] = found.parents[place - 1]
        found.depths[place] = found.depths[place - 1]
        found.counts[place] = found.counts[place - 1]
        found.begins[place] = found.begins[place - 1]
        place -= 1
    found.tokens[place] = token
    found.parents[place] = parent
    found.depths[place] = depth
    found.counts[place] = count
    found.begins[place] = begin
    return size


@kernel
def retrieve(
    array: SuffixArray, separator: int, vocab_size: int, low: int, high: int, length: int, found: Retrieval
) -> int:
    """Find what most often followed the context of `length` tokens that begins the texts at ranks [low, high).

    REST's retrieval: of all that followed its first `OCCURRENCES` occurrences, up to `CONTINUATION` tokens long, and
    all prefixes of that, the most frequent; equally frequent ones in the order found. A document's end ends it.

    Returns:
        how many continuations `found` now holds.
    """
    choices = len(found.tokens)
    # Nodes up to `node` are settled; behind it wait those that its occurrences, [begin, end), can still displace.
    size, node, depth, begin, end = 0, -1, 0, 0, min(high - low, OCCURRENCES)
    for i in range(end):
        found.positions[i] = np.int64(array.suffixes[low + i]) + length
    while size < choices or found.counts[size - 1] < end - begin:
        if depth < CONTINUATION:
            following = found.following[begin:end]
            _read_following(array, separator, found.positions[begin:end], depth, following)
            first = 0
            for i in range(1, end - begin + 1):
                if i == end - begin or following[i] != following[first]:
                    token = following[first]
                    if token != separator and token < vocab_size:
                        size = _insert(found, size, node, token, depth + 1, i - first, begin + first)
                    first = i
        node += 1
        if node == size:
            break
        depth = int(found.depths[node])
        begin = int(found.begins[node])
        end = begin + int(found.counts[node])
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
def _draft(
    order: npt.NDArray[np.uint8],
    context: NgramTable,
    model: NgramTable,
    statistics: SuffixArray,
    separator: int,
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
            low, high = find(statistics, query)
            n = retrieve(statistics, separator, len(context.sizes), low, high, len(query), found)
            sequences, available = retrieved, _longest(found, n, retrieved)
        else:
            break
        taken = min(available, slots)
        for i in range(taken):
            size = _merge(nodes, size, sequences[i], source, max_depth)
        slots -= taken
    return size


def allocate_table(vocab_size: int, level: int, guess: int) -> NgramTable:
    """A table with nothing in it. Its memory is taken as it fills."""
    return NgramTable(np.empty((vocab_size, guess, level - 1), np.int32), np.zeros(vocab_size, np.int32))


def allocate_retrieval(choices: int) -> Retrieval:
    """Room to retrieve at most `choices` continuations."""
    return Retrieval(
        tokens=np.empty(choices, np.int32),
        parents=np.empty(choices, np.int32),
        depths=np.empty(choices, np.int32),
        counts=np.empty(choices, np.int32),
        begins=np.empty(choices, np.int32),
        marks=np.empty(choices, np.int32),
        positions=np.empty(OCCURRENCES, np.int64),
        following=np.empty(OCCURRENCES, np.int64),
    )


def most_frequent_ngrams(documents: Iterable[npt.NDArray[np.integer]], level: int) -> npt.NDArray[np.int32]:
    """The `MODEL_NGRAMS` n-grams that occur in the most documents, the most frequent first, earlier ones before later.

    Returns:
        int32[n, level].

    >>> most_frequent_ngrams([np.array([5, 6, 7]), np.array([6, 7, 6, 7])], level=2).tolist()
    [[6, 7], [5, 6], [7, 6]]
    """
    windows, owners = [np.empty((0, level), np.int32)], [np.empty(0, np.int64)]
    for index, document in enumerate(documents):
        if len(document) >= level:
            windows.append(np.lib.stride_tricks.sliding_window_view(np.asarray(document, np.int32), level))
            owners.append(np.full(len(windows[-1]), index))
    ngrams, owner = np.concatenate(windows), np.concatenate(owners)
    order = np.lexsort(ngrams.T[::-1])  # stable: equal n-grams stay in the order of their occurrence
    ngrams, owner = ngrams[order], owner[order]
    first = np.ones(len(ngrams), np.bool_)  # the n-gram's first occurrence
    first[1:] = np.any(ngrams[1:] != ngrams[:-1], axis=1)
    counted = first.copy()  # its first occurrence in a document
    counted[1:] |= owner[1:] != owner[:-1]
    heads = np.flatnonzero(first)
    frequency = np.add.reduceat(counted, heads, dtype=np.int64) if len(heads) else heads
    return ngrams[heads[np.lexsort((order[heads], -frequency))[:MODEL_NGRAMS]]]


def _model_table(model_database: Documents | None, vocab_size: int, level: int, guess: int) -> NgramTable:
    table = allocate_table(vocab_size, level, guess)
    if model_database is not None:
        ngrams = most_frequent_ngrams((check_ids(ids, vocab_size) for ids in model_database.documents()), level)
        order = np.argsort(ngrams[:, 0], kind="stable")
        keys = ngrams[order, 0]
        place = np.arange(len(keys)) - np.searchsorted(keys, keys)
        kept = place < guess
        table.sequences[keys[kept], place[kept]] = ngrams[order[kept], 1:]
        table.sizes[:] = np.minimum(np.bincount(keys, minlength=vocab_size), guess)
    return table


class PublishedDrafter:
    """Hierarchy Drafting as published, with its code's settings as defaults.

    Args:
        vocab_size: the target's; ids at or above it are refused, and never drafted.
        model_database: D_m, read once, here.
        statistics_database: D_s.
        level: tokens of an n-gram, its key included; sequences are one shorter.
        guess: sequences kept for each token in D_c and D_m.
        order: the databases to ask, W (D_c), S (D_m) and L (D_s) in any order, each at most once. One that is not given
            has nothing to offer.
        previous_tokens: the length of D_s's queries.
        max_sequences: the most sequences in a tree.
        window: columns of the lookahead branch, whose n-grams go to D_c; 0 for none. It runs where the target does: a
            replayed trace has no logits for it.

    Raises:
        ValueError: a setting out of range, or a database of another vocabulary.

    >>> drafter = PublishedDrafter(vocab_size=10, level=3)
    >>> drafter.session([1, 2, 3, 1, 4, 5, 1]).propose(budget=10).tokens.tolist()
    [4, 5, 2, 3]
    """

    files_text = True
    """Whether the n-grams of the text itself go to D_c."""

    def __init__(
        self,
        vocab_size: int,
        model_database: Documents | None = None,
        statistics_database: StatisticsDatabase | None = None,
        *,
        level: int = 5,
        guess: int = 7,
        order: str = "WSL",
        previous_tokens: int = 2,
        max_sequences: int = 7,
        window: int = 0,
    ) -> None:
        if not order or set(order) - set(LETTERS) or len(set(order)) < len(order):
            raise ValueError(f"order must be some of the letters W, S and L, each at most once, not {order!r}")
        if level < 2 or min(guess, previous_tokens, max_sequences) < 1:
            raise ValueError("level must be at least 2, and guess, previous_tokens and max_sequences at least 1")
        if window and "W" not in order:
            raise ValueError(f"the lookahead branch feeds W, which order {order!r} does not ask: leave out the window")
        if window:
            LookaheadBranch(np.zeros(1, np.int32), window, level)  # refuses what it cannot run
        self.vocab_size = vocab_size
        self.level = level
        self.guess = guess
        self.order = np.array([LETTERS[letter] for letter in order], np.uint8)
        self.previous_tokens = previous_tokens
        self.max_sequences = max_sequences
        self.window = window
        self.model = _model_table(model_database if "S" in order else None, vocab_size, level, guess)
        self.statistics, self.separator = suffix_array(statistics_database, vocab_size)

    def session(self, prompt_ids: TokenIds, costs: npt.NDArray[np.floating] | None = None) -> "PublishedSession":
        """Start a request; `costs` are not looked at: the method always drafts what it finds, up to the budget."""
        return PublishedSession(self, prompt_ids)


class PublishedSession:
    """One request of a `PublishedDrafter`.

    Attributes:
        lookahead: the branch to run beside the drafts, if there is one.
    """

    def __init__(self, drafter: PublishedDrafter, prompt_ids: TokenIds) -> None:
        self._drafter = drafter
        self._context = allocate_table(drafter.vocab_size, drafter.level, drafter.guess)
        self._found = allocate_retrieval(CHOICES)
        self._retrieved = np.empty((drafter.max_sequences, drafter.level - 1), np.int32)
        self._recent = np.empty(0, np.int32)
        self.extend(prompt_ids)
        self.lookahead: LookaheadBranch | None = None
        if drafter.window and len(prompt_ids):
            self.lookahead = LookaheadBranch(np.asarray(prompt_ids, np.int32), drafter.window, drafter.level)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft the sequences of the first databases, at most `budget` nodes, the first sequences whole."""
        drafter = self._drafter
        room = min(budget, drafter.max_sequences * (drafter.level - 1))
        if room < 1 or max_depth < 1 or not len(self._recent):
            return DraftTree.empty()
        nodes = Nodes(
            tokens=np.empty(room, np.int32),
            parents=np.empty(room, np.int32),
            depths=np.empty(room, np.int32),
            sources=np.empty(room, np.uint8),
        )
        n = _draft(
            drafter.order,
            self._context,
            drafter.model,
            drafter.statistics,
            drafter.separator,
            self._recent,
            drafter.previous_tokens,
            max_depth,
            self._found,
            self._retrieved,
            nodes,
        )
        return DraftTree(nodes.tokens[:n], nodes.parents[:n], nodes.sources[:n], depths=nodes.depths[:n])

    def extend(
        self,
        token_ids: TokenIds,
        ngrams: npt.NDArray[np.integer] | None = None,
        candidates: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """File the lookahead branch's n-grams, then those that end in the accepted tokens.

        Raises:
            ValueError: an id outside the vocabulary, or `ngrams` that are not int[m, level].
        """
        drafter = self._drafter
        ids = check_ids(token_ids, drafter.vocab_size)
        if ngrams is not None:
            ngrams = np.asarray(ngrams)
            if ngrams.ndim != 2 or ngrams.shape[1] != drafter.level:
                raise ValueError(f"ngrams must be an array [m, {drafter.level}], not {list(ngrams.shape)}")
            _file_ngrams(self._context, check_ids(ngrams.ravel(), drafter.vocab_size).reshape(ngrams.shape))
        text = np.concatenate((self._recent, ids))
        if drafter.files_text:
            _file_text(self._context, text, len(ids))
        self._recent = text[-max(drafter.level - 1, drafter.previous_tokens) :]

    def close(self) -> None:
        """End the request. Nothing is learnt from it: the published D_m is fixed."""


def suffix_array(database: StatisticsDatabase | None, vocab_size: int) -> tuple[SuffixArray, int]:
    """The arrays of D_s and its separator; empty ones where there is no D_s.

    Raises:
        ValueError: D_s has ids that the target has not.
    """
    if database is None:
        return build(np.empty(0, np.uint16 if vocab_size < 2**16 else np.uint32), vocab_size, vocab_size), vocab_size
    database.check_fits(vocab_size)
    return database.array, database.separator
