"""The adaptive hierarchy: one draft tree, grown best-first over all databases at once.

The published method fills a fixed number of sequences, database after database. Here the next node is always the one
with the highest estimated probability, whichever database it comes from. To estimate what follows a node, its context
is looked up in every database at every match length, from the longest match to the shortest and at each length from the
highest temporal locality to the lowest (D_c, finished requests, D_m, D_s). Each match gives its relative frequencies,
and takes a share of the probability that the matches before it left (Jelinek-Mercer interpolation):

    p(token) = w1 f1(token) + (1 - w1) w2 f2(token) + (1 - w1)(1 - w2) w3 f3(token) + …

A shorter match with as many occurrences as the longer one before it says nothing new and is passed over. The weights
depend on (database, match length, number of occurrences, how concentrated their continuations are), and are learnt
online by expectation-maximisation from every token that the target emits.

A path's probability is the product of its nodes'. A child's matches are its parent's, narrowed by one token, so nothing
is searched for twice, and only as far down the hierarchy as what is left there could still make a node.
"""

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.budget import BudgetRule, least_worthwhile
from hdraft.drafting.context import (
    MATCH,
    NONE,
    TEXT,
    ContextDatabase,
    ContextTrie,
    append,
    step_down,
)
from hdraft.drafting.context import MAX_LENGTH as CONTEXT_LENGTH
from hdraft.drafting.drafter import UNLIMITED, TokenIds, check_ids
from hdraft.drafting.kernel import kernel
from hdraft.drafting.model import ModelDatabase
from hdraft.drafting.statistics import StatisticsDatabase
from hdraft.drafting.suffixes import SuffixArray, narrow, occurrences
from hdraft.drafting.tree import DraftTree, Source

SUFFIX_LENGTH = 8
"""The longest context looked up in D_m and D_s, in tokens."""

_LEVELS = 4  # D_c, finished requests, stored D_m, D_s
_SOURCES = np.array([Source.CONTEXT, Source.MODEL, Source.MODEL, Source.STATISTICS], np.uint8)
_COUNTS = 8  # occurrences: 1, 2, 3-4, 5-8, … more than 64
_SHAPES = 3  # continuations: all the same, one dominant, diverse
_PROBES = 24  # continuations looked at in a long range of suffixes
_RECENT = 24  # children looked at of a context in D_c
_UNKNOWN = -1
_LEAST = 1e-4  # no node is drafted below this probability
_UNSEEN = 1 / 65536  # the probability of a token that no match foresaw, to within an order of magnitude
_TOKENS = 256  # the most tokens considered to follow one node
_PRIOR = 8.0  # observations that an initial weight counts for
_NO_IDS = np.empty(0, np.int32)
_FORGET = 0.8  # of the running rate, from one request to the next


class Databases(NamedTuple):
    """What a step reads, in the order of the hierarchy."""

    context: ContextTrie
    suffixes: tuple[SuffixArray, SuffixArray, SuffixArray]  # finished requests, stored D_m, D_s
    separators: npt.NDArray[np.int64]  # [levels] what ends a document: no context goes beyond it


class Matches(NamedTuple):
    """The matches of each row's context: row 0 is the text so far, row i + 1 the tree's node i.

    A length above `longest` has no match. Below row 0, ranges of suffixes are found when they are first needed; until
    then they are `_UNKNOWN`.
    """

    token: npt.NDArray[np.int32]  # [rows]
    parent: npt.NDArray[np.int32]  # [rows]
    longest: npt.NDArray[np.int32]  # [rows, levels]
    handle: npt.NDArray[np.int64]  # [rows, 1 + CONTEXT_LENGTH] contexts in D_c, by length
    low: npt.NDArray[np.int64]  # [rows, levels, 2 + SUFFIX_LENGTH] ranges of suffixes, by length
    high: npt.NDArray[np.int64]


class Mixture(NamedTuple):
    """Scratch: the tokens that may follow one row, and how likely each is."""

    token: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]  # the largest contribution to it …
    level: npt.NDArray[np.uint8]  # … and whose it was
    slot: npt.NDArray[np.int32]  # hash of token -> index + 1
    following: npt.NDArray[np.int64]  # what a range of suffixes goes on with
    seen: npt.NDArray[np.int64]  # [levels] occurrences of the longest match yet


class Growth(NamedTuple):
    """A tree while it grows: its nodes, likeliest first, and after them the candidates for its next one, likewise."""

    token: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    level: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float64]


class Weights(NamedTuple):
    """The interpolation weights float64[classes], each `taken` / `reached`; `_class_of` numbers the classes.

    `reached` is how much of the emitted tokens' probability got as far as matches of this class, `taken` how much of it
    they explained.
    """

    weight: npt.NDArray[np.float64]
    taken: npt.NDArray[np.float64]
    reached: npt.NDArray[np.float64]


class Evidence(NamedTuple):
    """Scratch: the matches of the text, and how much of an emitted token's probability each explains."""

    match_class: npt.NDArray[np.int64]
    explained: npt.NDArray[np.float64]


@kernel
def _class_of(level: int, length: int, count: int, shape: int) -> int:
    """The class of a match; occurrences count by powers of two."""
    bits = 0
    count -= 1
    while count > 0 and bits < _COUNTS - 1:
        count >>= 1
        bits += 1
    return ((level * (CONTEXT_LENGTH + 1) + length) * _COUNTS + bits) * _SHAPES + shape


@kernel
def _narrowed(databases: Databases, level: int, low: int, high: int, length: int, token: int) -> tuple[int, int]:
    """The range of a context of `length` tokens that ends with `token`, from the range of the tokens before it."""
    array = databases.suffixes[level - 1]
    if token == databases.separators[level]:
        return 0, 0
    if length == 1:
        return occurrences(array, token)
    if low >= high:
        return low, low
    return narrow(array, low, high, length - 1, token)


@kernel
def _range(databases: Databases, matches: Matches, row: int, level: int, length: int) -> tuple[int, int]:
    """The range of suffixes that begin with the last `length` tokens of `row`; its prefixes' are found on the way.

    Written without recursion: Numba's cache of compiled code does not survive it.
    """
    above, up = row, 0
    while up + 1 < length and matches.low[above, level, length - up] == _UNKNOWN:
        above = int(matches.parent[above])
        up += 1
        if matches.longest[above, level] < length - up:
            return 0, 0
    low, high = matches.low[above, level, length - up], matches.high[above, level, length - up]
    while up > 0 or low == _UNKNOWN:
        if low != _UNKNOWN:
            up -= 1
            above = row
            for _ in range(up):
                above = int(matches.parent[above])
        low, high = _narrowed(databases, level, low, high, length - up, int(matches.token[above]))
        matches.low[above, level, length - up] = low
        matches.high[above, level, length - up] = high
    return low, high


@kernel
def _look(array: SuffixArray, low: int, high: int, length: int, following: npt.NDArray[np.int64], probes: int) -> None:
    """Fill `following[:probes]` with what follows a context at evenly spaced ranks of its range, in ascending order.

    The positions are read first and the tokens after, so that the memory's latencies overlap.
    """
    for i in range(probes):
        following[i] = array.suffixes[low + ((2 * i + 1) * (high - low)) // (2 * probes)] + int(length)
    for i in range(probes):
        following[i] = array.tokens[following[i]] if following[i] < len(array.tokens) else -1


@kernel
def _suffix_shape(following: npt.NDArray[np.int64], probes: int) -> int:
    """How concentrated continuations are: 0 all the same, 1 half of them so, 2 diverse; as their quantiles tell."""
    first, last = following[0], following[probes - 1]
    if first == last:
        return 0
    middle = following[probes >> 1]
    return 1 if middle in (first, last) else 2


@kernel
def _context_shape(trie: ContextTrie, handle: int) -> int:
    """The same of a context in D_c, as its most recent continuation tells."""
    if handle < 0 or trie.older[trie.first[handle]] == 0:
        return 0
    return 1 if 2 * trie.occurred[trie.first[handle]] >= trie.followed[handle] else 2


@kernel
def _match(databases: Databases, matches: Matches, row: int, level: int, length: int) -> tuple[int, int, int]:
    """A context's range (in D_c: its handle, and 0) and how often something followed it, 0 for no match."""
    if length > matches.longest[row, level]:
        return 0, 0, 0
    if level:
        low, high = _range(databases, matches, row, level, length)
        if low == high:
            matches.longest[row, level] = length - 1
        return low, high, high - low
    trie = databases.context
    handle = matches.handle[row, length]
    if handle >= 0 and trie.occurred[handle] == 1:
        handle = ~int(trie.position[handle])
    if handle >= 0:
        return handle, 0, int(trie.followed[handle])
    return handle, 0, int(~handle + 1 < trie.sizes[TEXT])


@kernel
def _add(mixture: Mixture, n: int, token: int, share: float, level: int) -> int:
    """Add `share` to the probability of `token`; returns how many tokens the mixture holds."""
    slot = (token * 40503) & (len(mixture.slot) - 1)
    while True:
        index = mixture.slot[slot] - 1
        if index < 0:
            if n == len(mixture.token):
                return n
            mixture.slot[slot] = n + 1
            mixture.token[n] = token
            mixture.probability[n] = share
            mixture.share[n] = share
            mixture.level[n] = level
            return n + 1
        if mixture.token[index] == token:
            mixture.probability[index] += share
            if share > mixture.share[index]:
                mixture.share[index] = share
                mixture.level[index] = level
            return n
        slot = (slot + 1) & (len(mixture.slot) - 1)


@kernel
def _add_context(mixture: Mixture, n: int, trie: ContextTrie, handle: int, share: float) -> int:
    """Add what followed a context in D_c, most recent first."""
    if handle < 0:
        return _add(mixture, n, int(trie.text[~handle + 1]), share, 0)
    share /= trie.followed[handle]
    child, seen = int(trie.first[handle]), 0
    while child and seen < _RECENT:
        n = _add(mixture, n, int(trie.token[child]), share * trie.occurred[child], 0)
        child = int(trie.older[child])
        seen += 1
    return n


@kernel
def _add_suffixes(mixture: Mixture, n: int, probes: int, share: float, level: int) -> int:
    """Add what followed a context in a suffix array: `mixture.following[:probes]`, in which equals are neighbours."""
    share /= probes
    begin = 0
    for end in range(1, probes + 1):
        if end == probes or mixture.following[end] != mixture.following[begin]:
            n = _add(mixture, n, mixture.following[begin], share * (end - begin), level)
            begin = end
    return n


@kernel
def _mix(
    databases: Databases, matches: Matches, row: int, weight: npt.NDArray[np.float64], least: float, mixture: Mixture
) -> int:
    """Fill `mixture` with what may follow `row`, until less than `least` of it is left; returns how many tokens."""
    n, left = 0, 1.0
    mixture.seen[:] = 0
    for length in range(CONTEXT_LENGTH, 0, -1):
        for level in range(_LEVELS):
            low, high, count = _match(databases, matches, row, level, length)
            if count <= mixture.seen[level]:
                continue
            mixture.seen[level] = count
            if level:
                probes = min(count, _PROBES)
                _look(databases.suffixes[level - 1], low, high, length, mixture.following, probes)
                w = weight[_class_of(level, length, count, _suffix_shape(mixture.following, probes))]
                n = _add_suffixes(mixture, n, probes, left * w, level)
            else:
                w = weight[_class_of(0, length, count, _context_shape(databases.context, low))]
                n = _add_context(mixture, n, databases.context, low, left * w)
            left *= 1.0 - w
            if left < least:
                return n
    return n


@kernel
def _offer(growth: Growth, nodes: int, waiting: int, probability: float, token: int, parent: int, level: int) -> int:
    """Keep a candidate if it is among the likeliest that there is room for; returns how many are kept."""
    place = nodes + waiting
    if place == len(growth.token):
        if probability <= growth.probability[place - 1]:
            return waiting
        place -= 1
        waiting -= 1
    while place > nodes and growth.probability[place - 1] < probability:
        growth.probability[place] = growth.probability[place - 1]
        growth.token[place] = growth.token[place - 1]
        growth.parent[place] = growth.parent[place - 1]
        growth.level[place] = growth.level[place - 1]
        place -= 1
    growth.probability[place] = probability
    growth.token[place] = token
    growth.parent[place] = parent
    growth.level[place] = level
    return waiting + 1


@kernel
def _enter(databases: Databases, matches: Matches, row: int, parent: int, token: int) -> None:
    """Make `row` the child of `parent` by `token`: its matches are the parent's, one token longer."""
    matches.parent[row] = parent
    matches.token[row] = token
    longest = 0
    for length in range(1, min(matches.longest[parent, 0] + 1, CONTEXT_LENGTH) + 1):
        matches.handle[row, length] = step_down(databases.context, matches.handle[parent, length - 1], token)
        if matches.handle[row, length] == NONE:
            break
        longest = length
    matches.longest[row, 0] = longest
    for level in range(1, _LEVELS):
        matches.longest[row, level] = min(matches.longest[parent, level] + 1, SUFFIX_LENGTH)
    matches.low[row] = _UNKNOWN


@kernel
def grow(
    databases: Databases,
    matches: Matches,
    weight: npt.NDArray[np.float64],
    vocab_size: int,
    max_depth: int,
    prices: npt.NDArray[np.float64],
    mixture: Mixture,
    growth: Growth,
) -> int:
    """Grow a tree best-first, as long as its next node can be worth its place; returns how many nodes are worth theirs.

    Args:
        prices: float64[budget + 1], see `BudgetRule.prices`; all zero to fill the budget.
        growth: with room for `budget` nodes.
    """
    nodes, waiting, probability, depth = 0, 0, 1.0, 0
    gain, best, best_nodes = 0.0, -prices[0], 0
    while True:
        least = max(_LEAST, least_worthwhile(prices, nodes, gain, best))
        if depth < max_depth:  # row `nodes` is the node made last, or the text
            cutoff = max(_LEAST, least / 4)  # likely nodes before it may yet make a less likely one worth its place
            if nodes + waiting == len(growth.token):
                cutoff = max(cutoff, growth.probability[nodes + waiting - 1])
            for i in range(_mix(databases, matches, nodes, weight, cutoff / probability, mixture)):
                reached = probability * mixture.probability[i]
                if reached >= cutoff and 0 <= mixture.token[i] < vocab_size:
                    waiting = _offer(growth, nodes, waiting, reached, mixture.token[i], nodes - 1, mixture.level[i])
            mixture.slot[:] = 0
        if waiting == 0 or growth.probability[nodes] < least:
            return best_nodes
        parent = growth.parent[nodes]
        depth = growth.depth[parent] + 1 if parent >= 0 else 1
        growth.depth[nodes] = depth
        probability = growth.probability[nodes]
        _enter(databases, matches, nodes + 1, parent + 1, growth.token[nodes])
        nodes += 1
        waiting -= 1
        gain += probability
        if gain - prices[nodes] > best:
            best, best_nodes = gain - prices[nodes], nodes
        if nodes == len(growth.token):
            return best_nodes


@kernel
def _relative_frequency(
    databases: Databases, matches: Matches, level: int, handle: int, length: int, token: int
) -> float:
    """How often `token` followed a match of the text (row 0), whose ranges one token on are in row 1."""
    if level:
        followed = matches.high[1, level, length + 1] - matches.low[1, level, length + 1]
        return float(followed / (matches.high[0, level, length] - matches.low[0, level, length]))
    child = step_down(databases.context, handle, token)
    if child < 0:
        return 0.0 if child == NONE else 1.0
    return float(databases.context.occurred[child] / databases.context.followed[handle])


@kernel
def _learn_weights(
    databases: Databases, matches: Matches, weights: Weights, mixture: Mixture, evidence: Evidence, token: int
) -> None:
    """One step of expectation-maximisation: which matches of the text foresaw that `token` follows?"""
    n, left = 0, 1.0
    mixture.seen[:] = 0
    for length in range(CONTEXT_LENGTH, 0, -1):
        for level in range(_LEVELS):
            low, high, count = _match(databases, matches, 0, level, length)
            if count <= mixture.seen[level]:
                continue
            mixture.seen[level] = count
            if level:
                probes = min(count, _PROBES)
                _look(databases.suffixes[level - 1], low, high, length, mixture.following, probes)
                shape = _suffix_shape(mixture.following, probes)
            else:
                shape = _context_shape(databases.context, low)
            index = _class_of(level, length, count, shape)
            weight = weights.weight[index]
            evidence.match_class[n] = index
            evidence.explained[n] = left * weight * _relative_frequency(databases, matches, level, low, length, token)
            left *= 1.0 - weight
            n += 1
    total = beyond = left * _UNSEEN
    for i in range(n):
        total += evidence.explained[i]
    for i in range(n - 1, -1, -1):
        index = evidence.match_class[i]
        beyond += evidence.explained[i]
        weights.taken[index] += evidence.explained[i] / total
        weights.reached[index] += beyond / total
        weights.weight[index] = weights.taken[index] / weights.reached[index]


@kernel
def advance(
    databases: Databases,
    matches: Matches,
    weights: Weights,
    mixture: Mixture,
    evidence: Evidence,
    token_ids: npt.NDArray[np.int32],
    learn: bool,
) -> None:
    """Move row 0 on by `token_ids`, for which D_c must have room; with `learn`, fit the weights to each of them.

    Row 1 is used for the ranges one token on.
    """
    for i in range(len(token_ids)):
        token = int(token_ids[i])
        for level in range(1, _LEVELS):
            for length in range(1, min(matches.longest[0, level], SUFFIX_LENGTH) + 2):
                low, high = matches.low[0, level, length - 1], matches.high[0, level, length - 1]
                low, high = _narrowed(databases, level, low, high, length, token)
                matches.low[1, level, length] = low
                matches.high[1, level, length] = high
        if learn:
            _learn_weights(databases, matches, weights, mixture, evidence, token)
        append(databases.context, token)
        for level in range(1, _LEVELS):
            longest = 0
            for length in range(1, min(matches.longest[0, level], SUFFIX_LENGTH) + 2):
                matches.low[0, level, length] = matches.low[1, level, length]
                matches.high[0, level, length] = matches.high[1, level, length]
                if length <= SUFFIX_LENGTH and matches.low[1, level, length] < matches.high[1, level, length]:
                    longest = length
            matches.longest[0, level] = longest
        matches.longest[0, 0] = databases.context.sizes[MATCH]
        for length in range(1, CONTEXT_LENGTH + 1):
            matches.handle[0, length] = databases.context.matches[length]


@kernel
def advance_and_grow(
    databases: Databases,
    matches: Matches,
    weights: Weights,
    mixture: Mixture,
    evidence: Evidence,
    token_ids: npt.NDArray[np.int32],
    vocab_size: int,
    max_depth: int,
    prices: npt.NDArray[np.float64],
    growth: Growth,
) -> int:
    """Both in one call: after a forward pass, with cold caches, handing the arrays over takes as long as the work."""
    advance(databases, matches, weights, mixture, evidence, token_ids, True)
    return grow(databases, matches, weights.weight, vocab_size, max_depth, prices, mixture, growth)


class HierarchyDrafter:
    """Hierarchy Drafting with one best-first tree over any subset of the databases; with none, D_c alone.

    Args:
        vocab_size: the target's; ids at or above it are refused, and never drafted. The databases' may be smaller,
            where a model's embedding has more rows than its tokenizer has tokens.
        model_database: D_m, what the target has generated before.
        statistics_database: D_s, general text.
        learn: whether a finished request's output joins D_m, and so may be drafted for later requests.

    Raises:
        ValueError: a database of a larger vocabulary, or two that differ.

    >>> drafter = HierarchyDrafter(vocab_size=100)
    >>> session = drafter.session([5, 6, 7, 5, 6])
    >>> session.propose(budget=2).tokens.tolist()
    [7, 5]
    """

    uses_costs = True

    def __init__(
        self,
        vocab_size: int,
        model_database: ModelDatabase | None = None,
        statistics_database: StatisticsDatabase | None = None,
        *,
        learn: bool = False,
    ) -> None:
        for database in (model_database, statistics_database):
            if database is not None and database.vocab_size > vocab_size:
                raise ValueError(
                    f"the database holds a vocabulary of {database.vocab_size} ids and the model one of {vocab_size}: "
                    "build it with this model's tokenizer"
                )
        if model_database is None and learn:
            model_database = ModelDatabase(
                vocab_size if statistics_database is None else statistics_database.vocab_size
            )
        present = [database for database in (model_database, statistics_database) if database is not None]
        if len({database.vocab_size for database in present}) > 1:
            raise ValueError("the databases differ in their vocabulary: build both with this model's tokenizer")
        self.vocab_size = vocab_size
        self.model_database = model_database
        self.statistics_database = statistics_database
        self.learn = learn
        self._nothing = ModelDatabase(present[0].vocab_size if present else vocab_size).snapshot()[0]
        self._separators = np.full(_LEVELS, vocab_size, np.int64)
        if model_database is not None:
            self._separators[1:3] = model_database.separator
        if statistics_database is not None:
            self._separators[3] = statistics_database.separator
        self._lock = threading.Lock()
        self._weights = initial_weights()
        self._tokens, self._time = 0.0, 0.0  # emitted, and the time of their steps in ordinary steps

    def session(self, prompt_ids: TokenIds, costs: npt.NDArray[np.floating] | None = None) -> "HierarchySession":
        """Start a request; see `Drafter.session`."""
        return HierarchySession(self, prompt_ids, costs)

    def _arrays(self) -> tuple[SuffixArray, SuffixArray, SuffixArray]:
        learned, stored, statistics = self._nothing, self._nothing, self._nothing
        if self.model_database is not None:
            stored, learned = self.model_database.snapshot()
        if (general := self.statistics_database) is not None:
            statistics = SuffixArray(general.tokens, general.suffixes, general.starts)
        return learned, stored, statistics

    def _start(self) -> tuple[Weights, float]:
        with self._lock:
            rate = self._tokens / self._time if self._time else 1.0
            return Weights(*(values.copy() for values in self._weights)), rate

    def _finish(
        self, taken: npt.NDArray[np.float64], reached: npt.NDArray[np.float64], rule: BudgetRule | None
    ) -> None:
        """Join what one request learnt; a request that ran beside it has not seen it, and adds its own."""
        with self._lock:
            self._weights.taken[:] += taken
            self._weights.reached[:] += reached
            np.divide(self._weights.taken, self._weights.reached, out=self._weights.weight)
            if rule is not None:
                self._tokens = _FORGET * self._tokens + rule.tokens
                self._time = _FORGET * self._time + rule.time


class HierarchySession:
    """One request of a `HierarchyDrafter`."""

    def __init__(
        self, drafter: HierarchyDrafter, prompt_ids: TokenIds, costs: npt.NDArray[np.floating] | None = None
    ) -> None:
        self._drafter = drafter
        prompt = check_ids(prompt_ids, drafter.vocab_size)
        self._context = ContextDatabase(prompt[:-SUFFIX_LENGTH])
        self._weights, rate = drafter._start()
        self._taken, self._reached = self._weights.taken.copy(), self._weights.reached.copy()
        self._rule = None if costs is None else BudgetRule(costs, rate)
        self._matches = _allocate(2)
        self._mixture = Mixture(
            np.empty(_TOKENS, np.int32),
            np.empty(_TOKENS, np.float64),
            np.empty(_TOKENS, np.float64),
            np.empty(_TOKENS, np.uint8),
            np.zeros(4 * _TOKENS, np.int32),
            np.empty(_PROBES, np.int64),
            np.empty(_LEVELS, np.int64),
        )
        self._evidence = Evidence(np.empty(_LEVELS * CONTEXT_LENGTH, np.int64), np.empty(_LEVELS * CONTEXT_LENGTH))
        self._drafted = 0
        self._output: list[npt.NDArray[np.int32]] = []
        self._seen = 0  # of the output, how many pieces are in D_c: the others wait for the next tree
        self._closed = False
        self._databases = Databases(self._context.trie, drafter._arrays(), drafter._separators)
        self._reserve(SUFFIX_LENGTH)
        self._advance(prompt[-SUFFIX_LENGTH:], learn=False)

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft at most `budget` nodes, likeliest first; with costs, no more than are worth their place."""
        self._drafted = 0
        prices = np.zeros(max(budget, 0) + 1) if self._rule is None else self._rule.prices(max(budget, 0))
        room = len(prices) - 1
        if room == 0 or max_depth < 1:
            return DraftTree.empty()
        if len(self._matches.token) <= room:
            self._matches = _allocate(room + 1, self._matches)
        growth = Growth(
            token=np.empty(room, np.int32),
            parent=np.empty(room, np.int32),
            depth=np.empty(room, np.int32),
            level=np.empty(room, np.uint8),
            probability=np.empty(room),
        )
        emitted = self._take_emitted()
        n = advance_and_grow(
            self._databases,
            self._matches,
            self._weights,
            self._mixture,
            self._evidence,
            emitted,
            self._drafter.vocab_size,
            max_depth,
            prices,
            growth,
        )
        self._drafted = n
        return DraftTree(
            growth.token[:n], growth.parent[:n], _SOURCES[growth.level[:n]], growth.probability[:n], growth.depth[:n]
        )

    def extend(
        self,
        token_ids: TokenIds,
        ngrams: npt.NDArray[np.integer] | None = None,
        candidates: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Take in the tokens that a step emitted. `ngrams` and `candidates` are no sources of this drafter: unused."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        if self._rule is not None:
            self._rule.record(self._drafted, len(ids))
        self._output.append(ids)

    def close(self) -> None:
        """End the request: what it learnt of the weights, and with `learn` its output, serve later requests."""
        if self._closed:
            return
        self._closed = True
        drafter = self._drafter
        self._advance(self._take_emitted(), learn=True)
        drafter._finish(self._weights.taken - self._taken, self._weights.reached - self._reached, self._rule)
        if drafter.learn and drafter.model_database is not None and self._output:
            output = np.concatenate(self._output)
            unknown = np.flatnonzero(output >= drafter.model_database.vocab_size)
            for part in np.split(output, unknown):
                drafter.model_database.learn(part[part < drafter.model_database.vocab_size])

    def _take_emitted(self) -> npt.NDArray[np.int32]:
        """The tokens emitted since the last tree, with room for them in D_c."""
        new = self._output[self._seen :]
        self._seen = len(self._output)
        emitted = new[0] if len(new) == 1 else np.concatenate([_NO_IDS, *new])
        self._reserve(len(emitted))
        return emitted

    def _reserve(self, tokens: int) -> None:
        self._context.reserve(tokens)
        if self._databases.context is not self._context.trie:
            self._databases = self._databases._replace(context=self._context.trie)

    def _advance(self, ids: npt.NDArray[np.int32], learn: bool) -> None:
        advance(self._databases, self._matches, self._weights, self._mixture, self._evidence, ids, learn)


def initial_weights() -> Weights:
    """The weights before anything is learnt: higher for longer matches, more occurrences and fewer continuations."""
    level, length, count, shape = np.ogrid[:_LEVELS, : CONTEXT_LENGTH + 1, :_COUNTS, :_SHAPES]
    trust = np.array([0.0, 0.1, -0.2, -0.5])[level] + np.array([0.6, -0.2, -0.9])[shape]
    weight = (1 / (1 + np.exp(-(trust - 1.9 + 0.9 * np.log2(np.maximum(length, 1)) + 0.2 * count)))).ravel()
    reached = np.full(weight.shape, _PRIOR)
    return Weights(weight, weight * reached, reached)


def _allocate(rows: int, old: Matches | None = None) -> Matches:
    """Room for a tree of `rows` - 1 nodes; row 0 is taken from `old`."""
    matches = Matches(
        token=np.zeros(rows, np.int32),
        parent=np.zeros(rows, np.int32),
        longest=np.zeros((rows, _LEVELS), np.int32),
        handle=np.zeros((rows, CONTEXT_LENGTH + 1), np.int64),
        low=np.zeros((rows, _LEVELS, SUFFIX_LENGTH + 2), np.int64),
        high=np.zeros((rows, _LEVELS, SUFFIX_LENGTH + 2), np.int64),
    )
    if old is not None:
        matches.longest[0], matches.handle[0] = old.longest[0], old.handle[0]
        matches.low[0], matches.high[0] = old.low[0], old.high[0]
    return matches
