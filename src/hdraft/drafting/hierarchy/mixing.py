"""How likely each token follows a context: every match's relative frequencies, mixed; the weights are learnt online.

Two stages. The first interpolates along the hierarchy (Jelinek-Mercer): from the longest match to the shortest, and at
each length from the highest temporal locality to the lowest, each match takes a share of the probability left over:

    p(token) = w1 f1(token) + (1 - w1) w2 f2(token) + (1 - w1)(1 - w2) w3 f3(token) + …

A shorter match with as many occurrences as a longer one in the same database says nothing new and is passed over. The
weights depend on (database, length, number of occurrences, how concentrated the continuations are), and are fitted by
expectation-maximisation. Candidates (`recycling`) are mixed in like the matches of a database, before those of the same
length: their frequencies are the target's own probabilities, and their age stands for the number of occurrences. So
are the places of references (`reference`), each a match with one continuation: of the tokens that agree, of three at
least. The probability that all matches leave over is for tokens that none of them foresaw.

Interpolation lets the first match decide and hardly counts how many databases agree. So the second stage multiplies
each token's probability by factors, and what no match foresaw by factors of its own, and makes them sum up to 1:

    agreement    for D_c and D_s, the longest match that the token was seen after, beside the longest there is
    pattern      how long the longest match is that it was seen after, for all databases together
    familiarity  how often and how recently the request's text has the token, beside how rare it is in general text,
                 and beside the longest match that it was seen after
    habit        the token itself, and whether the request's text has it after this context
    candidates   what the target's candidates by the context's last tokens say of the token, where there are any
    confidence   the interpolated probability itself, in some forty ranges; where it is known by which random number
                 the token would be drawn, by what that is to the probability, too

This is a log-linear model, fitted by gradient ascent on the log-likelihood of every emitted token, with each factor's
learning rate lowered as it learns (AdaGrad; Duchi, Hazan and Singer, JMLR 2011): the way that lossless compressors mix
their models (Mahoney, "Adaptive weighing of context models for lossless data compression", 2005). Every factor is a
product of two: what all requests learn, and what this one learns of itself, which ends with it.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.candidates import MISSING, WIDTH, CandidateTable
from hdraft.drafting.databases.context import MAX_LENGTH as CONTEXT_LENGTH
from hdraft.drafting.databases.context import TEXT, ContextTrie, find
from hdraft.drafting.hierarchy.lookups import PROBES, continuations
from hdraft.drafting.hierarchy.matching import RECYCLED, REFERENCE, TIERS, Databases, Matches, match
from hdraft.drafting.hierarchy.recycling import (
    CODES,
    LENGTHS,
    SURENESS,
    age_of,
    code_of,
    find_rows,
    shape_of,
    sureness,
)
from hdraft.drafting.hierarchy.reference import AGREED, BEGUN, PLACES, foreseen_at, stands_for
from hdraft.drafting.kernel import kernel

VERSION = 3
"""Of what the weights mean: those that were learnt with another are of no use."""

_COUNTS = 8  # occurrences: 1, 2, 3-4, 5-8, … more than 64
_SHAPES = 3  # continuations: all the same, one dominant, diverse
_FEWEST = 16  # probes of a context in D_m and D_s
_RECENT = 24  # children looked at of a context in D_c
_TOKENS = 256  # the most tokens considered to follow one context
_BOOST = 48.0  # no factors make a token likely enough whose share is so much smaller than what is sought
_UNSEEN = 1 / 65536  # the probability of a token that no match foresaw, to within an order of magnitude
_PRIOR = 8.0  # observations that an initial weight counts for
_RATE = 0.3  # at which a factor's logarithm begins to learn …
_OWN_RATE = 0.04  # … and always, that part of it which is the request's own
_LEARNT = 0.05  # matches that less than this is left for learn nothing
_SETTLED = 1e-3  # a smaller error of a probability moves no factor
_LARGEST = 1000.0  # a factor stays below, and above its inverse

_LENGTHS = CONTEXT_LENGTH + 1
_BEFORE, _AFTER, _UNLIKELY = 0, 1, 2  # what `rest` holds
_CELLS = 8  # factors of a token, the last of them where there are candidates
_AGES = 13
_FAMILIAR = _COUNTS * _AGES
_HABITS = 2**13  # tokens share a factor of habit with those of the same remainder
_BUCKETS = 48
_STATISTICS = TIERS - 1
_PATTERN = 2 * _LENGTHS * _LENGTHS  # where each group of factors begins
_FAMILIARITY = _PATTERN + 4**TIERS
_SEEN_AFTER = _FAMILIARITY + _FAMILIAR * 8
_HABIT = _SEEN_AFTER + _FAMILIAR * 8
_CONFIDENCE = _HABIT + 2 * _HABITS
_ESCAPE = _CONFIDENCE + _BUCKETS
_REST = _ESCAPE + TIERS * _LENGTHS * _COUNTS
_RECYCLED = _REST + _BUCKETS
_ROW_ESCAPE = _RECYCLED + 3 * CODES * CODES
_DRAWN = _ROW_ESCAPE + LENGTHS * SURENESS
_SIZES, _RATIOS = _BUCKETS // 2, 24
_FACTORS = _DRAWN + _SIZES * _RATIOS
FACTORS_OF_TOKENS = slice(_HABIT, _CONFIDENCE)
"""The factors that are about single tokens; all others are as good for any vocabulary."""
FACTORS_OF_DATABASES = np.r_[:_FAMILIARITY, _ESCAPE:_REST]
"""The factors that are about how far matches in the databases can be believed."""


class Weights(NamedTuple):
    """The learnt parameters: weights float64[classes], each `taken` / `reached`, and factors float64[_FACTORS].

    `reached` is how much of the emitted tokens' probability got as far as matches of this class, `taken` how much of it
    they explained. `squares` is the sum of a factor's squared gradients. `lasting` is what requests learn of a factor
    together, `factor` that times what this one learns for itself.
    """

    weight: npt.NDArray[np.float64]
    taken: npt.NDArray[np.float64]
    reached: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]
    lasting: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]


class Mixture(NamedTuple):
    """Scratch: the tokens that may follow one context, and how likely each is."""

    token: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]  # the largest contribution to it …
    tier: npt.NDArray[np.uint8]  # … and the database that made it
    seen_after: npt.NDArray[np.int32]  # [tokens, TIERS] the longest match that each was seen after
    cell: npt.NDArray[np.int32]  # [tokens, _CELLS] the factors of each
    slot: npt.NDArray[np.int32]  # hash of token -> index + 1
    longest: npt.NDArray[np.int64]  # [TIERS] length of the longest match
    shortest: npt.NDArray[np.int64]  # [TIERS] the length down to which matches were looked at
    occurred: npt.NDArray[np.int64]  # [TIERS] occurrences of the longest match …
    seen: npt.NDArray[np.int64]  # … and of the shortest
    match_class: npt.NDArray[np.int64]  # of each match that was looked at …
    explained: npt.NDArray[np.float64]  # … and what it contributes to the token that was emitted
    rows: npt.NDArray[np.int64]  # [LENGTHS] the context's candidates, see `find_rows`
    rest: npt.NDArray[np.float64]  # [3] what no match foresaw, before and after the factors; unlikely tokens together


@kernel
def mix(
    databases: Databases,
    matches: Matches,
    row: int,
    weights: Weights,
    least: float,
    draws: npt.NDArray[np.float32],
    place: int,
    mixture: Mixture,
) -> int:
    """Fill `mixture` with what may follow `row`, but for what is less likely than `least`; returns how many tokens.

    Args:
        draws: float32[m, vocabulary], see `Draws`; `place` is the row of what follows, which need not be there.
    """
    n, _ = _interpolate(databases, matches, row, weights.weight, least, mixture, -1)
    _correct(databases, weights.factor, draws, place, mixture, n)
    return n


@kernel
def learn(
    databases: Databases,
    matches: Matches,
    weights: Weights,
    draws: npt.NDArray[np.float32],
    place: int,
    mixture: Mixture,
    token: int,
) -> None:
    """Fit weights and factors to one more token of the text, which row 0 ends before; for draws see `mix`."""
    n, looked_at = _interpolate(databases, matches, 0, weights.weight, _LEARNT, mixture, token)
    # Expectation-maximisation: how much of the token's probability got as far as each match, and how much it explained.
    total = beyond = mixture.rest[_BEFORE] * _UNSEEN
    for i in range(looked_at):
        total += mixture.explained[i]
    for i in range(looked_at - 1, -1, -1):
        index = mixture.match_class[i]
        beyond += mixture.explained[i]
        weights.taken[index] += mixture.explained[i] / total
        weights.reached[index] += beyond / total
        weights.weight[index] = weights.taken[index] / weights.reached[index]
    _correct(databases, weights.factor, draws, place, mixture, n)
    rest_error = 1.0 - mixture.rest[_AFTER]
    for i in range(n):
        if mixture.token[i] == token:
            rest_error = -mixture.rest[_AFTER]
    _move(weights, _REST + _bucket(mixture.rest[_BEFORE]), rest_error)
    for tier in range(TIERS):
        _move(weights, _escape(mixture, tier), rest_error)
    cells = _cells(mixture)
    if cells == _CELLS:
        _move(weights, _row_escape(databases, mixture), rest_error)
    for i in range(n):
        error = (1.0 if mixture.token[i] == token else 0.0) - mixture.probability[i]
        if abs(error) > _SETTLED:
            for k in range(cells):
                _move(weights, mixture.cell[i, k], error)


@kernel
def limits(mixture: Mixture, i: int) -> int:
    """The longest matches that the context can have once token `i` follows it: tier l's in byte l."""
    packed = 0
    for tier in range(TIERS):
        length = mixture.seen_after[i, tier]
        if length == 0:  # it was seen after none of those looked at
            length = mixture.shortest[tier] - 1
        packed |= (int(length) + 1) << (8 * tier)
    return packed


def initial_weights() -> Weights:
    """The weights before anything is learnt: higher for longer matches, more occurrences and fewer continuations."""
    tier, length, count, shape = np.ogrid[: TIERS + 2, :_LENGTHS, :_COUNTS, :_SHAPES]
    trust = np.array([0.0, 0.1, -0.2, -0.5, 0.5, 0.0])[tier] + np.array([0.6, -0.2, -0.9])[shape]
    counted = 0.2 * np.where(tier == RECYCLED, -count, count)  # of candidates it is their age
    odds = trust - 1.9 + 0.9 * np.log2(np.maximum(length, 0.2)) + counted
    agreeing = np.where(
        count == AGREED, 1.2 * np.log2(np.maximum(length, 1)) - 0.5, np.where(count == BEGUN, 0.5, -1.0)
    )
    odds = np.where(tier == REFERENCE, agreeing - 0.7 * shape, odds)
    weight = (1 / (1 + np.exp(-odds))).ravel()
    reached = np.full(weight.shape, _PRIOR)
    factor = np.ones(_FACTORS)
    factor[_DRAWN:] = _initial_draws().ravel()
    return Weights(weight, weight * reached, reached, factor, factor.copy(), np.ones(_FACTORS))


def _initial_draws() -> npt.NDArray[np.float64]:
    """float64[_SIZES, _RATIOS]: how much likelier a token of probability p is when q is known.

    It is drawn where q / p is the least of all tokens'. That least is exponentially distributed whichever token has it,
    so q is p times such a number where this one is drawn, and else nearly independent of p: by Bayes' rule its chance
    is exp(-q / p + q) / p times p. As p is an estimate, not all of that is believed.
    """
    size, ratio = np.ogrid[:_SIZES, :_RATIOS]
    p = np.where(size < 16, 2.0 ** -(size + 0.75), 1 - 2.0 ** -(size - 14.5))
    q = p * 2.0 ** ((ratio - 11.5) / 2)
    factor = np.exp(np.clip(q - q / p, -8.0, 0.0)) / p
    return np.clip(factor**0.5, 1 / 64, 64.0)


def start(weights: Weights) -> Weights:
    """A copy for a request to start from: all that lasts, and nothing of its own."""
    started = Weights(*(values.copy() for values in weights))
    started.factor[:] = weights.lasting
    return started


def join(weights: Weights, before: Weights, after: Weights) -> None:
    """Take into `weights` what one request has learnt, `before` to `after`.

    What others learnt meanwhile stays: observations add up, and factors are averaged by how much each request learnt of
    them, since requests that run beside each other learn the same things.
    """
    own = after.squares - before.squares
    meanwhile = np.maximum(weights.squares - before.squares, 0.0)  # others may have been put in their place
    part = own / np.maximum(own + meanwhile, 1e-9)
    weights.lasting[:] *= (after.lasting / weights.lasting) ** part
    weights.squares[:] += own
    weights.taken[:] += after.taken - before.taken
    weights.reached[:] += after.reached - before.reached
    np.divide(weights.taken, weights.reached, out=weights.weight)


def sound(weights: Weights) -> bool:
    """Whether what was read from a file can have been learnt: the kernels presume it."""
    return bool(
        np.all((weights.taken > 0) & (weights.taken < weights.reached) & (weights.reached < np.inf))
        and np.all((weights.lasting > 0.99 / _LARGEST) & (weights.lasting < 1.01 * _LARGEST))
        and np.all((weights.squares > 0) & (weights.squares < np.inf))
    )


def allocate() -> Mixture:
    """Room for one context's tokens."""
    return Mixture(
        token=np.empty(_TOKENS, np.int32),
        probability=np.empty(_TOKENS),
        share=np.empty(_TOKENS),
        tier=np.empty(_TOKENS, np.uint8),
        seen_after=np.empty((_TOKENS, TIERS), np.int32),
        cell=np.empty((_TOKENS, _CELLS), np.int32),
        slot=np.empty(4 * _TOKENS, np.int32),
        longest=np.empty(TIERS, np.int64),
        shortest=np.empty(TIERS, np.int64),
        occurred=np.empty(TIERS, np.int64),
        seen=np.empty(TIERS, np.int64),
        match_class=np.empty(TIERS * CONTEXT_LENGTH + LENGTHS + PLACES, np.int64),
        explained=np.empty(TIERS * CONTEXT_LENGTH + LENGTHS + PLACES),
        rows=np.full(LENGTHS, MISSING),
        rest=np.empty(3),
    )


@kernel
def class_of(tier: int, length: int, count: int, shape: int) -> int:
    """The class of a match."""
    return ((tier * _LENGTHS + length) * _COUNTS + _bits(count)) * _SHAPES + shape


@kernel
def _interpolate(
    databases: Databases,
    matches: Matches,
    row: int,
    weight: npt.NDArray[np.float64],
    least: float,
    mixture: Mixture,
    emitted: int,
) -> tuple[int, int]:
    """The first stage, until less than `least` is left; returns how many tokens and how many matches there are.

    `emitted` is the token that follows, or -1.
    """
    n, looked_at, left = 0, 0, 1.0
    probes = _enough(least)
    candidates = databases.candidates
    places = matches.places
    find_rows(databases, matches, row, mixture.rows)
    mixture.slot[:] = 0
    mixture.rest[_UNLIKELY] = 0.0
    mixture.longest[:] = 0
    mixture.occurred[:] = 0
    mixture.seen[:] = 0
    longest = 0
    for tier in range(TIERS):
        mixture.shortest[tier] = matches.longest[row, tier] + 1
        longest = max(longest, matches.longest[row, tier])
    for i in range(PLACES):
        longest = max(longest, stands_for(places, row, i))
    for length in range(max(longest, LENGTHS - 1), -1, -1):
        if left < least:
            break
        for i in range(PLACES):
            token = foreseen_at(databases.reference, places, row, i)
            if token < 0 or stands_for(places, row, i) != length:
                continue
            index = class_of(REFERENCE, places.agreed[row, i], 1 << places.why[row, i], min(i, _SHAPES - 1))
            share = left * weight[index]
            n = _add(mixture, n, token, share, least / _BOOST, REFERENCE, length)
            mixture.match_class[looked_at] = index
            mixture.explained[looked_at] = share if token == emitted else 0.0
            looked_at += 1
            left -= share
        slot = mixture.rows[length] if length < LENGTHS else MISSING
        if slot != MISSING:
            index = class_of(RECYCLED, length, age_of(databases, slot), shape_of(candidates, slot))
            share = left * weight[index]
            n, foreseen, frequency = _add_row(candidates, slot, mixture, n, share, least / _BOOST, length, emitted)
            mixture.match_class[looked_at] = index
            mixture.explained[looked_at] = share * frequency
            looked_at += 1
            left -= share * foreseen
        for tier in range(TIERS if length else 0):
            if length > matches.longest[row, tier] or left < least:
                continue
            mixture.shortest[tier] = length
            handle, count = match(databases, matches, row, tier, length)
            if count <= mixture.seen[tier]:
                continue
            mixture.seen[tier] = count
            if mixture.longest[tier] == 0:
                mixture.longest[tier] = length
                mixture.occurred[tier] = count
            frequency = 0.0
            if handle < 0:
                if tier:
                    token = int(databases.suffixes[tier - 1].tokens[~handle + 1])
                else:
                    token = int(databases.context.text[~handle + 1])
                index = class_of(tier, length, 1, 0)
                n = _add(mixture, n, token, left * weight[index], least / _BOOST, tier, length)
                frequency = 1.0 if token == emitted else 0.0
            elif tier:
                first, end, shape = continuations(databases.trie, databases.suffixes[tier - 1], handle, probes)
                index = class_of(tier, length, count, shape)
                share = left * weight[index]
                for entry in range(first, end):
                    token = int(databases.trie.token[entry])
                    n = _add(mixture, n, token, share * databases.trie.share[entry], least / _BOOST, tier, length)
                    if token == emitted:
                        frequency = float(databases.trie.share[entry])
            else:
                trie = databases.context
                index = class_of(0, length, count, _context_shape(trie, handle))
                share = left * weight[index] / count
                child = int(trie.first[handle])
                for _ in range(_RECENT):
                    if child == 0:
                        break
                    token = int(trie.token[child])
                    n = _add(mixture, n, token, share * trie.occurred[child], least / _BOOST, 0, length)
                    if token == emitted:
                        frequency = trie.occurred[child] / count
                    child = int(trie.older[child])
            mixture.match_class[looked_at] = index
            mixture.explained[looked_at] = left * weight[index] * frequency
            looked_at += 1
            left *= 1.0 - weight[index]
    mixture.rest[_BEFORE] = left
    return n, looked_at


@kernel
def _correct(
    databases: Databases,
    factor: npt.NDArray[np.float64],
    draws: npt.NDArray[np.float32],
    place: int,
    mixture: Mixture,
    n: int,
) -> None:
    """The second stage."""
    rest = mixture.rest[_BEFORE] * factor[_REST + _bucket(mixture.rest[_BEFORE])]
    for tier in range(TIERS):
        rest *= factor[_escape(mixture, tier)]
    cells = _cells(mixture)
    if cells == _CELLS:
        rest *= factor[_row_escape(databases, mixture)]
    total = rest + mixture.rest[_UNLIKELY]
    for i in range(n):
        cell = mixture.cell[i]
        seen_after = mixture.seen_after[i]
        longest = pattern = 0
        for tier in range(TIERS):
            longest = max(longest, seen_after[tier])
            pattern = 4 * pattern + min((seen_after[tier] + 1) // 2, 3)  # 0, 1-2, 3-4, 5 or more
        cell[0] = seen_after[0] * _LENGTHS + mixture.longest[0]
        cell[1] = (_LENGTHS + seen_after[_STATISTICS]) * _LENGTHS + mixture.longest[_STATISTICS]
        cell[2] = _PATTERN + pattern
        token = mixture.token[i]
        familiarity = _familiarity(databases.context, token) * 8
        rarity = np.int64(databases.rarity[token]) if 0 <= token < len(databases.rarity) else 7
        cell[3] = _FAMILIARITY + familiarity + rarity
        cell[4] = _SEEN_AFTER + familiarity + _group(longest)
        cell[5] = _HABIT + 2 * (token & (_HABITS - 1)) + (1 if seen_after[0] else 0)
        probability = mixture.probability[i]
        if place < len(draws) and 0 <= token < draws.shape[1]:
            cell[6] = _drawn(probability, float(draws[place, token]))
        else:
            cell[6] = _CONFIDENCE + _bucket(probability)
        if cells == _CELLS:
            table, rows = databases.candidates, mixture.rows
            code = CODES * code_of(table, rows[2], token) + code_of(table, rows[1], token)
            cell[7] = _RECYCLED + 3 * code + min(code_of(table, rows[0], token), 2)
        for k in range(cells):
            probability *= factor[cell[k]]
        mixture.probability[i] = probability
        total += probability
    for i in range(n):
        mixture.probability[i] /= total
    mixture.rest[_AFTER] = rest / total


@kernel
def _move(weights: Weights, cell: int, error: float) -> None:
    """Gradient ascent for one factor."""
    weights.squares[cell] += error * error
    change = _RATE * error / math.sqrt(weights.squares[cell])
    weights.lasting[cell] = min(max(weights.lasting[cell] * _exp(change), 1 / _LARGEST), _LARGEST)
    change += _OWN_RATE * error
    weights.factor[cell] = min(max(weights.factor[cell] * _exp(change), 1 / _LARGEST), _LARGEST)


@kernel
def _add(mixture: Mixture, n: int, token: int, share: float, least: float, tier: int, length: int) -> int:
    """Add `share` to the probability of `token`; returns how many tokens the mixture holds.

    A new token is taken in if that is `least` or more, else it joins what is unlikely.
    """
    slot = (token * 40503) & (len(mixture.slot) - 1)
    while True:
        index = mixture.slot[slot] - 1
        if index < 0:
            if share < least or n == len(mixture.token):
                mixture.rest[_UNLIKELY] += share
                return n
            mixture.slot[slot] = n + 1
            mixture.token[n] = token
            mixture.probability[n] = share
            mixture.share[n] = share
            mixture.tier[n] = tier
            mixture.seen_after[n] = 0
            if tier < TIERS:
                mixture.seen_after[n, tier] = length
            return n + 1
        if mixture.token[index] == token:
            mixture.probability[index] += share
            if share > mixture.share[index]:
                mixture.share[index] = share
                mixture.tier[index] = tier
            if tier < TIERS and mixture.seen_after[index, tier] == 0:
                mixture.seen_after[index, tier] = length
            return n
        slot = (slot + 1) & (len(mixture.slot) - 1)


@kernel
def _add_row(
    table: CandidateTable,
    slot: int,
    mixture: Mixture,
    n: int,
    share: float,
    least: float,
    length: int,
    emitted: int,
) -> tuple[int, float, float]:
    """Add a row's candidates.

    Returns how many tokens the mixture holds, the probability that the row gives to all of them, and to `emitted`.
    """
    foreseen, frequency = 0.0, 0.0
    for rank in range(WIDTH):
        token, part = int(table.token[slot, rank]), float(table.probability[slot, rank])
        if token < 0:
            break
        n = _add(mixture, n, token, share * part, least, RECYCLED, length)
        foreseen += part
        if token == emitted:
            frequency = part
    return n, min(foreseen, 1.0), frequency


@kernel
def _cells(mixture: Mixture) -> int:
    """How many factors a token has: the last is of the candidates by its context's last tokens, if there are any."""
    return _CELLS if mixture.rows[2] != MISSING or mixture.rows[1] != MISSING else _CELLS - 1


@kernel
def _row_escape(databases: Databases, mixture: Mixture) -> int:
    """The factor by which the candidates say that something else follows."""
    length = 2 if mixture.rows[2] != MISSING else 1
    return int(_ROW_ESCAPE + length * SURENESS + sureness(databases.candidates.probability[mixture.rows[length], 0]))


@kernel
def _bits(count: int) -> int:
    """Occurrences by powers of two."""
    bits = 0
    count -= 1
    while count > 0 and bits < _COUNTS - 1:
        count >>= 1
        bits += 1
    return bits


@kernel
def _bucket(probability: float) -> int:
    """Half octaves of a probability below a half, octaves of its complement above."""
    if probability <= 0.0:
        return 31
    if probability < 0.5:
        mantissa, exponent = math.frexp(probability)
        return int(min(-2 * exponent + (1 if mantissa < 0.70710678 else 0), 31))
    _, exponent = math.frexp(1.0 - probability)
    return int(32 + min(-exponent, 15)) if probability < 1.0 else 47


@kernel
def _drawn(probability: float, q: float) -> int:
    """The factor of a token that is drawn if q / probability is less than any other's: by half octaves of that."""
    size = _bucket(probability) >> 1
    ratio = 2.0 * math.log2(max(q, 1e-12) / max(probability, 1e-12)) + _RATIOS // 2
    return int(_DRAWN + size * _RATIOS + min(max(ratio, 0.0), _RATIOS - 1.0))


@kernel
def _group(length: int) -> int:
    """Lengths of matches in eight groups: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12."""
    if length < 4:
        return length
    return 4 if length < 6 else (5 if length < 8 else (6 if length < 12 else 7))


@kernel
def _escape(mixture: Mixture, tier: int) -> int:
    """The factor by which a database's longest match says that something else follows."""
    return int(_ESCAPE + (tier * _LENGTHS + mixture.longest[tier]) * _COUNTS + _bits(mixture.occurred[tier]))


@kernel
def _context_shape(trie: ContextTrie, handle: int) -> int:
    """How concentrated the continuations of a context in D_c are, as its most recent one tells."""
    if handle < 0 or trie.older[trie.first[handle]] == 0:
        return 0
    return 1 if 2 * trie.occurred[trie.first[handle]] >= trie.followed[handle] else 2


@kernel
def _familiarity(trie: ContextTrie, token: int) -> int:
    """How often and how recently the text has a token; 12 for never."""
    node = find(trie, 0, token)
    if node == 0:
        return _AGES - 1
    age = trie.sizes[TEXT] - trie.position[node]
    bits = 0
    while age > 1 and bits < _AGES - 1:
        age >>= 1
        bits += 1
    return _bits(trie.occurred[node] + 1) * _AGES + bits


@kernel
def _enough(least: float) -> int:
    """How many occurrences to look at, to see a continuation that makes up `least` of them two or three times."""
    probes = PROBES
    while probes > _FEWEST and probes * least > 2.5:
        probes >>= 1
    return probes


@kernel
def _exp(x: float) -> float:
    """The exponential of `_RATE + _OWN_RATE` at most, to within 6e-5 of it, at a fifth of the time."""
    return 1.0 + x * (1.0 + x * (1 / 2 + x * (1 / 6 + x / 24)))
