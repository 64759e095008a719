"""How the draft tree grows: a best-first search over all databases at once.

The next node is always the one with the highest estimated probability, whichever database it came from: what may follow
a node is a mixture of what followed its context's matches in every database (`mixing`), and a path's probability is the
product of its nodes'. Written as paths from the end of the text:

    tree          frontier
    -             a 0.8, b 0.1
    a             a c 0.6, b 0.1
    a, a c        a c d 0.4, b 0.1

and so on, until no node of the frontier can be worth its place (`budget`).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.candidates import key_of, put, put_again
from hdraft.drafting.databases.context import TEXT, append, has_room
from hdraft.drafting.hierarchy import lookups, matching, mixing, reference
from hdraft.drafting.hierarchy.budget import least_worthwhile
from hdraft.drafting.hierarchy.matching import TIERS, Databases, Matches
from hdraft.drafting.hierarchy.mixing import Mixture, Weights
from hdraft.drafting.kernel import kernel
from hdraft.drafting.kernel_store import load
from hdraft.drafting.tree import Source, end_of_best_path

_OF_TIERS = (Source.CONTEXT, Source.MODEL, Source.MODEL, Source.STATISTICS, Source.RECYCLED, Source.REFERENCE)
_SOURCES = np.array(_OF_TIERS, np.uint8)
_LEAST = 1e-3  # no node is drafted below this probability
_DEEPER = 0.985  # for each depth after the first: a tree's likeliest paths are those that are overestimated
_TOKEN, _PARENT, _DEPTH, _TIER, _LIMITS = range(5)  # the columns of `Search.node`
ADDRESS, TOKENS, DEPTH, BUDGET, SIZE = range(5)
"""The columns of a call: see `advance_and_grow`."""


class Search(NamedTuple):
    """The state of a best-first search: the tree's nodes, likeliest first, and behind them its frontier, likewise.

    The frontier is the nodes that the tree may grow by. Each node has a slot in `node` for as long as it is kept.
    """

    probability: npt.NDArray[np.float64]  # [slots] in that order
    slot: npt.NDArray[np.int64]  # [slots] in that order
    node: npt.NDArray[np.int32]  # [slots, 5] token, parent, depth, tier, `mixing.limits`


class TreeArrays(NamedTuple):
    """The arrays of a `DraftTree`, filled anew at each call."""

    nodes: npt.NDArray[np.int32]  # [3, nodes] tokens, parents, depths
    sources: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]


class SessionArrays(NamedTuple):
    """All that a session's kernels work on, from step to step."""

    databases: Databases
    matches: Matches
    weights: Weights
    mixture: Mixture
    search: Search
    tree: TreeArrays


class Verified(NamedTuple):
    """The rows of one step: after the text's last token, then after each of its n nodes."""

    nodes: npt.NDArray[np.int32]  # [n] their tokens
    parents: npt.NDArray[np.int32]  # [n]
    tokens: npt.NDArray[np.int32]  # [1 + n, k] the target's likeliest next tokens …
    scores: npt.NDArray[np.float32]  # [1 + n, k] … and the logarithms of their probabilities


class Drawing(NamedTuple):
    """The numbers that tokens are drawn by, see `Draws`; as many rows as are known."""

    emitted: npt.NDArray[np.float32]  # [k, vocabulary] of the tokens that a call takes in …
    coming: npt.NDArray[np.float32]  # [m, vocabulary] … and of those that follow


def allocate(slots: int) -> Search:
    """Room to search for a tree of up to `slots` nodes."""
    return Search(np.empty(slots), np.empty(slots, np.int64), np.empty((slots, 5), np.int32))


def allocate_tree(nodes: int) -> TreeArrays:
    """Room for a tree of so many nodes."""
    return TreeArrays(np.empty((3, nodes), np.int32), np.empty(nodes, np.uint8), np.empty(nodes, np.float32))


@kernel
def grow(
    databases: Databases,
    matches: Matches,
    weights: Weights,
    vocab_size: int,
    max_depth: int,
    prices: npt.NDArray[np.float64],
    draws: npt.NDArray[np.float32],
    mixture: Mixture,
    search: Search,
) -> int:
    """Grow a tree best-first, as long as its next node can be worth its place; returns how many nodes are worth theirs.

    Args:
        prices: float64[budget + 1], see `BudgetRule.prices`; all zero to fill the budget.
        draws: float32[m, vocabulary], of what follows, see `Draws`.
        search: with room for `budget` nodes or more.
    """
    room = len(prices) - 1
    if room == 0:
        return 0
    nodes, frontier, probability, depth = 0, 0, 1.0, 0
    gain, best, best_nodes = 0.0, -prices[0], 0
    while True:
        least = max(_LEAST, least_worthwhile(prices, nodes, gain, best))
        if depth < max_depth:  # row `nodes` is the node made last, or the text
            cutoff = max(_LEAST, least / 4)  # likely nodes before it may yet make a less likely one worth its place
            if nodes + frontier == room:
                cutoff = max(cutoff, search.probability[nodes + frontier - 1])
            sought = 2.5 * cutoff / probability  # of what follows the node; above 1 nothing can be
            n = mixing.mix(databases, matches, nodes, weights, sought, draws, depth, mixture) if sought <= 1.0 else 0
            for i in range(n):
                reached = probability * mixture.probability[i] * (_DEEPER if depth else 1.0)
                if reached >= cutoff and 0 <= mixture.token[i] < vocab_size:
                    slot, frontier = _push(search, room, nodes, frontier, reached)
                    if slot >= 0:
                        search.node[slot, _TOKEN] = mixture.token[i]
                        search.node[slot, _PARENT] = nodes - 1
                        search.node[slot, _DEPTH] = depth + 1
                        search.node[slot, _TIER] = mixture.tier[i]
                        search.node[slot, _LIMITS] = mixing.limits(mixture, i)
        if frontier == 0 or search.probability[nodes] < least:
            return best_nodes
        node = search.node[search.slot[nodes]]
        depth = node[_DEPTH]
        probability = search.probability[nodes]
        matching.enter(matches, nodes + 1, node[_PARENT] + 1, node[_TOKEN], node[_LIMITS])
        reference.descend(databases.reference, matches.places, nodes + 1, node[_PARENT] + 1, node[_TOKEN])
        nodes += 1
        frontier -= 1
        gain += probability
        if gain - prices[nodes] > best:
            best, best_nodes = gain - prices[nodes], nodes
        if nodes == room:
            return best_nodes


@kernel
def advance(
    databases: Databases,
    matches: Matches,
    weights: Weights,
    mixture: Mixture,
    token_ids: npt.NDArray[np.int32],
    learn: bool,
    verified: Verified,
    draws: npt.NDArray[np.float32],
) -> None:
    """Move row 0 on by `token_ids`, for which D_c must have room; with `learn`, fit the weights to each of them.

    The candidates of the step that emitted them are kept afterwards: what is learnt is how much those of earlier steps
    can be believed.
    """
    begin = int(databases.context.sizes[TEXT])
    if lookups.is_new(databases.trie):
        lookups.clear(databases.trie, databases.suffixes)
    elif lookups.crowded(databases.trie):
        matching.look_up_anew(databases, matches)
    for i in range(len(token_ids)):
        token = int(token_ids[i])
        if learn:
            mixing.learn(databases, matches, weights, draws, i, mixture, token)
        append(databases.context, token)
        matching.advance(databases, matches, token)
        matching.settle(databases, matches)
        reference.follow(databases.reference, matches.places, databases.context, token)
    if len(databases.candidates.key):
        _recycle(databases, verified, begin)


@kernel
def _recycle(databases: Databases, verified: Verified, length: int) -> None:
    """Keep the candidates of a step behind `length` tokens of text, those of the likeliest nodes last."""
    text = databases.context.text
    for row in range(len(verified.tokens) - 1, -1, -1):
        if verified.tokens[row, 0] < 0:  # not known
            continue
        before = int(text[length - 2]) if length > 1 else -1
        last = int(text[length - 1]) if length > 0 else -1
        if row:
            parent = int(verified.parents[row - 1])
            before = int(verified.nodes[parent]) if parent >= 0 else last
            last = int(verified.nodes[row - 1])
        if last >= 0:
            slot = put(databases.candidates, key_of(-1, last), verified.tokens[row], verified.scores[row], length)
            if before >= 0:
                put_again(databases.candidates, key_of(before, last), slot, length)


@kernel
def advance_and_grow(
    calls: npt.NDArray[np.int64],
    kind: Any,
    token_ids: npt.NDArray[np.int32],
    learn: bool,
    verified: Verified,
    drawing: Drawing,
    vocab_size: int,
    prices: npt.NDArray[np.float64],
    least_match: int,
    chains: npt.NDArray[np.int32],
    begin: int,
    end: int,
) -> None:
    """`advance`, then `grow` into the session's tree, for the sessions `begin` to `end` of those that are called.

    One call for both, and for all rows of a batch: after a forward pass, with cold caches, handing the arrays over
    takes as long as the work. And one kernel to compile for everything that a session does.

    Args:
        calls: int64[sessions, 5], a row for each: `ADDRESS` of its `SessionArrays`, `TOKENS`, where its part of
            `token_ids` ends, `DEPTH` and `BUDGET` of its tree; `SIZE` becomes the tree's, or the chain's where chains
            are asked for, or -1 where the session has no room: then nothing has happened to it.
        kind: the type of `SessionArrays`.
        token_ids: what the sessions' steps emitted, one after another.
        learn, verified, vocab_size: see `advance` and `grow`.
        drawing: where tokens are drawn; for one session alone.
        prices: float64[largest budget + 1], see `grow`; of chains, too.
        least_match: see `_best_chain`.
        chains: int32[sessions, longest], to be filled with each tree's best chain; int32[sessions, 0] for none.
    """
    for call in range(begin, end):
        session = load(calls[call, ADDRESS], kind)
        first = calls[call - 1, TOKENS] if call else 0
        emitted = token_ids[first : calls[call, TOKENS]]
        tree, budget = session.tree, calls[call, BUDGET]
        if budget > len(tree.sources) or not has_room(session.databases.context, len(emitted)):
            calls[call, SIZE] = -1
            continue
        advance(
            session.databases,
            session.matches,
            session.weights,
            session.mixture,
            emitted,
            learn,
            verified,
            drawing.emitted,
        )
        n = grow(
            session.databases,
            session.matches,
            session.weights,
            vocab_size,
            calls[call, DEPTH],
            prices[: budget + 1],
            drawing.coming,
            session.mixture,
            session.search,
        )
        for i in range(n):
            node = session.search.node[session.search.slot[i]]
            tree.nodes[_TOKEN, i] = node[_TOKEN]
            tree.nodes[_PARENT, i] = node[_PARENT]
            tree.nodes[_DEPTH, i] = node[_DEPTH]
            tree.sources[i] = _SOURCES[node[_TIER]]
            tree.probabilities[i] = session.search.probability[i]
        if chains.shape[1]:
            n = _best_chain(session, n, prices, least_match, chains[call])
        calls[call, SIZE] = n


@kernel
def _best_chain(
    session: SessionArrays,
    n: int,
    prices: npt.NDArray[np.float64],
    least_match: int,
    chain: npt.NDArray[np.int32],
) -> int:
    """Fill `chain` with the path of a tree of `n` nodes that is worth most, and return its length.

    There is none where fewer of the text's last tokens than `least_match` occurred before in this order.
    """
    longest = 0
    for tier in range(TIERS):
        longest = max(longest, int(session.matches.longest[0, tier]))
    if longest < least_match:
        return 0
    parents, depths = session.tree.nodes[_PARENT], session.tree.nodes[_DEPTH]
    probabilities = session.tree.probabilities[:n]
    affordable = prices[: len(chain) + 1]
    node = end_of_best_path(parents[:n], depths, probabilities, affordable, session.search.probability)
    length = int(depths[node]) if node >= 0 else 0
    for place in range(length - 1, -1, -1):
        chain[place] = session.tree.nodes[_TOKEN, node]
        node = int(parents[node])
    return length


@kernel
def _push(search: Search, room: int, nodes: int, frontier: int, probability: float) -> tuple[int, int]:
    """Put a node into the frontier if it is among the likeliest that there is room for.

    Returns its slot, or -1, and how many nodes the frontier has.
    """
    place = nodes + frontier
    slot = place
    if place == room:
        if probability <= search.probability[place - 1]:
            return -1, frontier
        place -= 1
        frontier -= 1
        slot = int(search.slot[place])
    while place > nodes and search.probability[place - 1] < probability:
        search.probability[place] = search.probability[place - 1]
        search.slot[place] = search.slot[place - 1]
        place -= 1
    search.probability[place] = probability
    search.slot[place] = slot
    return slot, frontier + 1
