"""Both stages of the mixture and what is learnt of them, against counting in the plain text."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases import candidates
from hdraft.drafting.databases.context import MAX_LENGTH, TEXT
from hdraft.drafting.databases.frequent import SUFFIX_LENGTH
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy import matching, mixing
from hdraft.drafting.hierarchy.drafter import NOT_DRAWN, HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience
from hdraft.drafting.hierarchy.lookups import PROBES
from hdraft.drafting.hierarchy.matching import RECYCLED, TIERS
from hdraft.drafting.hierarchy.mixing import Weights

EOS, VOCAB = 0, 6
BEFORE, AFTER, UNLIKELY = 0, 1, 2  # what `Mixture.rest` holds
FULL = 0xFFFFFFFF  # limits that limit nothing
texts = st.lists(st.integers(0, 4), min_size=1, max_size=30)
corpora = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), max_size=4)
seeds = st.integers(0, 2**31)
Corpus = list[list[int]]


class Request:
    """A request over three databases, and the plain text of all that it sees."""

    def __init__(
        self, text: list[int], learned: Corpus, stored: Corpus, general: Corpus, vocab_size: int = VOCAB, rows: int = 8
    ) -> None:
        model_database = ModelDatabase.from_documents(stored, vocab_size, EOS)
        for document in learned:
            model_database.learn(document)
        drafter = HierarchyDrafter(
            vocab_size,
            model_database,
            StatisticsDatabase.from_documents(general, vocab_size, EOS),
            experience=Experience(mixing.initial_weights()),
        )
        self.session = drafter.session(text)
        draw = random.Random(repr(text))
        self.rows = self.verify(draw)
        self.draws = NOT_DRAWN.coming
        if draw.random() < 0.5:  # but for the last token, which the target's logits may not have
            numbers = [draw.choice([draw.expovariate(1), draw.random() ** 9, 0.0]) for _ in range(vocab_size - 1)]
            self.draws = np.array([numbers], np.float32)
        self.session._matches = matching.allocate(rows, self.session._matches)
        self.session._address = None
        self.text = list(text)
        self.texts = [self.text, *([t for doc in corpus for t in (*doc, EOS)] for corpus in (learned, stored, general))]
        self.weights, self.mixture = self.session._weights, self.session._mixture
        self.rarity = self.session._databases.rarity.tolist()

    def verify(self, draw: random.Random) -> dict[tuple[int, ...], tuple[int, dict[int, float]]]:
        """Keep candidates of some contexts, of none for half of all texts: by context, their age and probabilities."""
        rows: dict[tuple[int, ...], tuple[int, dict[int, float]]] = {}
        if draw.random() < 0.5:
            return rows
        table = candidates.allocate(256)
        self.session._replace(candidates=table)
        end = int(self.session._databases.context.sizes[TEXT])
        for _ in range(12):
            context = tuple(draw.randrange(5) for _ in range(draw.randint(1, 2)))
            tokens = draw.sample(range(5), draw.randint(1, 4))
            weights = [draw.random() / 4 + (0.6 if draw.random() < 0.1 else 0) for _ in tokens]
            chances = sorted(weights, reverse=True)
            chances = [chance / max(1, sum(chances)) for chance in chances]
            age = draw.randint(0, 200)
            key = candidates.key_of(*context) if len(context) == 2 else candidates.key_of(-1, context[0])
            candidates.put(table, key, np.array(tokens, np.int32), np.log(np.array(chances, np.float32)), end - age)
            kept = table.probability[candidates.find(table, key), : len(tokens)].tolist()
            rows[context] = age, dict(zip(tokens, kept, strict=True))
        return rows

    def row_of(self, context: list[int], length: int) -> tuple[int, dict[int, float]] | None:
        """The candidates by the last tokens of a context."""
        tail = tuple(context[-3:-1] if length == 0 else context[-length:])
        return self.rows.get(tail) if len(tail) == (length or 2) else None

    def mix(self, row: int = 0, least: float = 0.0) -> dict[int, float]:
        session = self.session
        draws = self.draws
        n = mixing.mix(session._databases, session._matches, row, self.weights, least, draws, 0, self.mixture)
        return dict(zip(self.mixture.token[:n].tolist(), self.mixture.probability[:n].tolist(), strict=True))

    def learn(self, token: int) -> None:
        session = self.session
        mixing.learn(session._databases, session._matches, self.weights, self.draws, 0, self.mixture, token)

    def advance(self, token: int, learn: bool) -> None:
        self.session._advance_and_grow(np.array([token], np.int32), np.zeros(1), learn=learn)
        self.text.append(token)

    def enter(self, row: int, parent: int, token: int, limits: int = FULL) -> None:
        matching.enter(self.session._matches, row, parent, token, limits)


@dataclass
class Interpolated:
    """The first stage in plain Python."""

    chances: dict[int, float] = field(default_factory=dict)
    largest: dict[int, float] = field(default_factory=dict)
    credited: dict[int, set[int]] = field(default_factory=dict)  # of equal shares, any
    seen_after: dict[int, list[int]] = field(default_factory=dict)
    longest: list[int] = field(default_factory=lambda: [0] * TIERS)
    occurred: list[int] = field(default_factory=lambda: [0] * TIERS)
    matches: list[tuple[int, float, dict[int, float]]] = field(default_factory=list)  # class, share, frequencies
    rest: float = 1.0
    unlikely: float = 0.0

    def take(self, frequencies: dict[int, float], share: float, tier: int, length: int, least: float) -> None:
        """Add a match's share to the tokens that followed it."""
        for token, frequency in frequencies.items():
            part = share * frequency
            if token not in self.chances:
                if part < least / mixing._BOOST:
                    self.unlikely += part
                    continue
                self.chances[token], self.largest[token] = 0.0, 0.0
                self.credited[token], self.seen_after[token] = set(), [0] * TIERS
            self.chances[token] += part
            if part > self.largest[token] * (1 + 1e-6):
                self.largest[token], self.credited[token] = part, {tier}
            elif part > self.largest[token] * (1 - 1e-6):
                self.credited[token].add(tier)
            if tier != RECYCLED:
                self.seen_after[token][tier] = self.seen_after[token][tier] or length


def followers(text: list[int], context: list[int]) -> list[int]:
    k = len(context)
    return [text[i + k] for i in range(len(text) - k) if text[i : i + k] == context]


def interpolate(request: Request, context: list[int], least: float = 0.0) -> Interpolated:
    found, seen = Interpolated(), [0] * TIERS
    for length in range(max(min(MAX_LENGTH, len(context)), 2), -1, -1):
        row = request.row_of(context, length) if length < 3 else None
        if row is not None and found.rest >= least:
            age, frequencies = row
            sure = max(frequencies.values())
            shape = 0 if sure >= 0.8 else 1 if sure >= 0.4 else 2
            match_class = mixing.class_of(RECYCLED, length, age, shape)
            share = found.rest * float(request.weights.weight[match_class])
            found.matches.append((match_class, share, frequencies))
            found.take(frequencies, share, RECYCLED, length, least)
            found.rest -= share * min(sum(frequencies.values()), 1)
        for tier, text in enumerate(request.texts if 0 < length <= len(context) else ()):
            if found.rest < least or (tier and (length > SUFFIX_LENGTH or EOS in context[-length:])):
                continue
            following = followers(text, context[-length:])
            if len(following) <= seen[tier]:
                continue
            seen[tier] = len(following)
            if not found.longest[tier]:
                found.longest[tier], found.occurred[tier] = length, len(following)
            counts = Counter(following)
            most = max(counts.values()) if tier else counts[following[-1]]  # D_c looks at the newest
            shape = 0 if len(counts) == 1 else 1 if 2 * most >= len(following) else 2
            match_class = mixing.class_of(tier, length, len(following), shape)
            share = found.rest * float(request.weights.weight[match_class])
            frequencies = {token: count / len(following) for token, count in counts.items()}
            found.matches.append((match_class, share, frequencies))
            found.take(frequencies, share, tier, length, least)
            found.rest *= 1 - float(request.weights.weight[match_class])
    return found


def step(probability: float) -> int:
    """Half octaves below a half, octaves of the complement above."""
    if probability <= 0:
        return 31
    if probability >= 0.5:
        return 47 if probability >= 1 else 32 + min(-math.frexp(1 - probability)[1], 15)
    mantissa, exponent = math.frexp(probability)
    return min(-2 * exponent + int(mantissa < 0.70710678), 31)


def by_powers_of_two(count: int) -> int:
    return min(math.ceil(math.log2(max(count, 1))), 7)


def in_five(chance: float) -> int:
    return sum(chance < limit for limit in (0.9, 0.6, 0.3, 0.1))


def code(row: tuple[int, dict[int, float]] | None, token: int) -> int:
    """What candidates say of a token."""
    if row is None or token not in row[1]:
        return 0 if row is None else 1
    return 2 + in_five(row[1][token]) + (0 if list(row[1]).index(token) == 0 else 5)


def confidence(request: Request, chance: float, token: int) -> int:
    """By the probability alone, or by how many times it the number is that the token would be drawn by, too."""
    if not len(request.draws) or token >= request.draws.shape[1]:
        return mixing._CONFIDENCE + step(chance)
    times = max(float(request.draws[0, token]), 1e-12) / max(chance, 1e-12)
    return mixing._DRAWN + step(chance) // 2 * 24 + math.floor(min(max(2 * math.log2(times) + 12, 0), 23))


def cells(request: Request, found: Interpolated, context: list[int], token: int) -> list[int]:
    """The factors of one token."""
    unchosen, one, two = (request.row_of(context, length) for length in range(3))
    recycled = [] if one is None and two is None else [12 * code(two, token) + code(one, token)]
    lengths = MAX_LENGTH + 1
    seen_after = found.seen_after[token]
    agreement = [
        (place * lengths + seen_after[tier]) * lengths + found.longest[tier]
        for place, tier in enumerate((0, TIERS - 1))
    ]
    pattern = int("".join(str([0, 1, 1, 2, 2, 3][min(length, 5)]) for length in seen_after), 4)
    familiarity = 12
    if token in request.text:
        age = len(request.text) - max(i for i, other in enumerate(request.text) if other == token)
        familiarity = by_powers_of_two(request.text.count(token) + 1) * 13 + min(int(math.log2(age)), 12)
    group = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7][max(seen_after)]
    return [
        *agreement,
        mixing._PATTERN + pattern,
        mixing._FAMILIARITY + familiarity * 8 + request.rarity[token],
        mixing._SEEN_AFTER + familiarity * 8 + group,
        mixing._HABIT + 2 * (token % mixing._HABITS) + (seen_after[0] > 0),
        confidence(request, found.chances[token], token),
        *(mixing._RECYCLED + 3 * each + min(code(unchosen, token), 2) for each in recycled),
    ]


def rest_cells(request: Request, found: Interpolated, context: list[int]) -> list[int]:
    """The factors of what no match foresaw."""
    rows = [(length, row) for length in (2, 1) if (row := request.row_of(context, length)) is not None][:1]
    recycled = [mixing._ROW_ESCAPE + 5 * length + in_five(max(row[1].values())) for length, row in rows]
    escapes = [
        mixing._ESCAPE + (tier * (MAX_LENGTH + 1) + found.longest[tier]) * 8 + by_powers_of_two(found.occurred[tier])
        for tier in range(TIERS)
    ]
    return [mixing._REST + step(found.rest), *escapes, *recycled]


def correct(request: Request, found: Interpolated, context: list[int]) -> tuple[dict[int, float], float]:
    """The second stage: the probabilities, and that of all else."""
    factor = request.weights.factor
    chances = {
        token: chance * math.prod(factor[cells(request, found, context, token)].tolist())
        for token, chance in found.chances.items()
    }
    rest = found.rest * math.prod(factor[rest_cells(request, found, context)].tolist())
    total = sum(chances.values()) + rest + found.unlikely
    return {token: chance / total for token, chance in chances.items()}, rest / total


def copied(weights: Weights) -> Weights:
    return Weights(*(values.copy() for values in weights))


def randomise(weights: Weights, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights.weight[:] = random.uniform(0.05, 0.9, len(weights.weight))
    weights.factor[:] = np.exp(random.normal(0, 0.7, len(weights.factor)))


def extended(request: Request, seed: int, rows: int, exact: bool = False) -> list[list[int]]:
    """Make `rows` rows of a random tree; returns each row's context. `exact`: with the limits of what followed."""
    random = np.random.default_rng(seed)
    contexts = [request.text]
    for row in range(1, rows):
        parent = int(random.integers(row))
        found = list(request.mix(parent))
        token = int(random.integers(5)) if not exact else int(random.choice(found)) if found else -1
        if token < 0:
            break
        request.enter(row, parent, token, mixing.limits(request.mixture, found.index(token)) if exact else FULL)
        contexts.append([*contexts[parent], token])
    return contexts


@settings(max_examples=150)
@given(texts, corpora, corpora, corpora, seeds, st.sampled_from([0.0, 0.01, 0.1]))
def test_both_stages_are_those_of_the_plain_reference(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, seed: int, least: float
) -> None:
    request = Request(text, learned, stored, general)
    randomise(request.weights, seed)
    for row, context in enumerate(extended(request, seed, 5)):
        mixed = request.mix(row, least)
        found = interpolate(request, context, least)
        chances, rest = correct(request, found, context)
        assert mixed == pytest.approx(chances, rel=1e-5)
        assert request.mixture.rest[BEFORE] == pytest.approx(found.rest)
        assert request.mixture.rest[AFTER] == pytest.approx(rest, rel=1e-5)
        for i, token in enumerate(mixed):
            assert request.mixture.tier[i] in found.credited[token]


@given(texts, corpora, corpora, corpora, seeds)
def test_probabilities_and_that_of_all_else_sum_to_1(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, seed: int
) -> None:
    request = Request(text, learned, stored, general)
    randomise(request.weights, seed)
    for row in range(len(extended(request, seed, 5))):
        assert sum(request.mix(row).values()) + request.mixture.rest[AFTER] == pytest.approx(1)
        assert sum(request.mix(row, 0.05).values()) + request.mixture.rest[AFTER] <= 1 + 1e-9


@given(texts, corpora, corpora, corpora, seeds, st.floats(1e-4, 0.3))
def test_fresh_factors_leave_out_no_token_that_is_likely_enough(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, seed: int, least: float
) -> None:
    request = Request(text, learned, stored, general)
    factor = request.weights.factor.copy()
    randomise(request.weights, seed)
    request.weights.factor[:] = factor
    found = request.mix(0, least)
    for token, chance in request.mix(0).items():
        assert found.get(token, 0.0) == pytest.approx(chance, abs=2 * least)


@given(st.floats(0.0, 4.0))
def test_what_is_sought_is_seen_twice_among_the_occurrences_looked_at_if_any_number_of_them_shows_it(
    least: float,
) -> None:
    probes = mixing._enough(least)
    assert mixing._FEWEST <= probes <= PROBES
    assert probes * least > 1.25 or probes == PROBES
    assert probes * least <= 2.5 or probes == mixing._FEWEST


@given(st.floats(-mixing._RATE - mixing._OWN_RATE, mixing._RATE + mixing._OWN_RATE))
def test_the_exponential_of_a_step_is_close(step: float) -> None:
    assert mixing._exp(step) == pytest.approx(math.exp(step), rel=6e-5)


@given(texts, corpora, corpora, corpora, st.integers(0, 4))
def test_the_counts_that_weights_are_fitted_by_are_those_of_expectation_maximisation(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, token: int
) -> None:
    request = Request(text, learned, stored, general)
    before = copied(request.weights)
    found = interpolate(request, text, mixing._LEARNT)
    unseen = found.rest * mixing._UNSEEN
    taken, reached = before.taken.copy(), before.reached.copy()
    total = unseen + sum(share * frequencies.get(token, 0.0) for _, share, frequencies in found.matches)
    for i, (match_class, share, frequencies) in enumerate(found.matches):
        beyond = unseen + sum(share * frequencies.get(token, 0.0) for _, share, frequencies in found.matches[i:])
        taken[match_class] += share * frequencies.get(token, 0.0) / total
        reached[match_class] += beyond / total
    request.learn(token)
    assert request.weights.taken == pytest.approx(taken, abs=1e-5)
    assert request.weights.reached == pytest.approx(reached, abs=1e-5)
    assert request.weights.weight == pytest.approx(taken / reached, abs=1e-5)
    assert np.all(request.weights.taken < request.weights.reached)


@settings(max_examples=80)
@given(texts, corpora, corpora, corpora, st.integers(0, 4), seeds)
def test_factors_move_along_the_gradient_of_the_logarithm_of_the_likelihood(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, token: int, seed: int
) -> None:
    """Each token moves the factors that it uses in turn, by `_RATE` times its part of the gradient at first.

    A request's own factor moves by `_OWN_RATE` times it, whatever it has learnt.
    """
    request = Request(text, learned, stored, general)
    randomise(request.weights, seed)
    request.weights.lasting[:] = request.weights.factor
    request.weights.squares[:] = 5.0
    factor, lasting = request.weights.factor, request.weights.lasting
    weight = request.weights.weight.copy()
    least = mixing._LEARNT

    def log_likelihood() -> float:
        chances = request.mix(0, least)
        return math.log(chances.get(token, float(request.mixture.rest[AFTER])))

    found = interpolate(request, text, least)
    chances, rest = correct(request, found, text)
    errors: dict[int, list[float]] = {cell: [] for cell in rest_cells(request, found, text)}
    for cell in rest_cells(request, found, text):
        errors[cell].append((0.0 if token in chances else 1.0) - rest)
    for candidate in request.mix(0, least):
        for cell in cells(request, found, text, candidate):
            errors.setdefault(cell, []).append((candidate == token) - chances[candidate])
    for cell, parts in errors.items():
        size, value = 1e-4, factor[cell]
        factor[cell] = value * math.exp(size)
        above = log_likelihood()
        factor[cell] = value * math.exp(-size)
        below = log_likelihood()
        factor[cell] = value
        assert (above - below) / (2 * size) == pytest.approx(sum(parts), abs=1e-4)
    assert request.weights.weight.tolist() == weight.tolist()

    before = factor.copy()
    request.learn(token)
    moved, moved_for_good = np.log(factor / before), np.log(lasting / before)
    for cell, parts in errors.items():
        squares, expected, own = 5.0, 0.0, 0.0
        for part in parts:
            if cell in rest_cells(request, found, text) or abs(part) > mixing._SETTLED:
                squares += part * part
                expected += mixing._RATE * part / math.sqrt(squares)
                own += mixing._OWN_RATE * part
        assert moved_for_good[cell] == pytest.approx(expected, abs=1e-4)
        assert moved[cell] == pytest.approx(expected + own, abs=1e-4)
        assert request.weights.squares[cell] == pytest.approx(squares, abs=1e-4)
        if len(parts) == 1 and abs(parts[0]) > 0.01:
            assert np.sign(moved[cell]) == np.sign(parts[0])
    others = np.setdiff1d(np.arange(len(factor)), list(errors))
    assert factor[others].tolist() == lasting[others].tolist() == before[others].tolist()


def agreeing(random: np.random.Generator, n: int) -> tuple[list[int], list[list[int]], list[tuple[int, int, bool]]]:
    """A text in which what followed a token last time follows it again just where general text foresees it too.

    Returns it with general text, and what it consists of: token, what followed it first, whether general text agrees.
    """
    tokens, general, parts = [], [], []
    for token in range(1, n + 1):
        follows = n + 1 + int(random.integers(n))
        agrees = bool(random.random() < 0.5)
        parts.append((token, follows, agrees))
        general.append([token, follows if agrees else 2 * n + 1 + int(random.integers(n))])
    for token, follows, _ in parts:
        tokens += [token, follows]
    for i in random.permutation(n):
        token, follows, agrees = parts[i]
        tokens += [token, follows if agrees else 3 * n + 1 + int(random.integers(n))]
    return tokens, general, parts


def test_what_two_databases_agree_on_becomes_likelier_where_only_that_was_right() -> None:
    n = 120
    random = np.random.default_rng(0)
    text, general, parts = agreeing(random, n)
    half = 3 * n
    request = Request(text[: 2 * n], [], [], general, vocab_size=4 * n + 2)
    fresh = copied(request.weights)
    for token in text[2 * n : half]:
        request.advance(token, learn=True)
    asked = set(text[2 * n : half : 2])
    held_out = [part for part in parts if part[0] not in asked]
    assert {agrees for _, _, agrees in held_out} == {True, False}
    for token, follows, agrees in held_out:
        request.enter(1, 0, token)
        learnt = request.mix(1)[follows]
        factor = request.weights.factor.copy()
        request.weights.factor[:] = 1
        interpolated = request.mix(1)[follows]
        for now, values in zip(request.weights, fresh, strict=True):
            now[:], values[:] = values.copy(), now.copy()
        before = request.mix(1)[follows]
        for now, values in zip(request.weights, fresh, strict=True):
            now[:], values[:] = values.copy(), now.copy()
        request.weights.factor[:] = factor
        if agrees:
            assert learnt > 0.5
            assert learnt > before
            assert learnt > interpolated
        else:
            assert learnt < 0.3
            assert learnt < interpolated


def test_a_text_held_out_is_likelier_after_learning() -> None:
    """Likelier by the weights alone, and by the factors on top of them."""
    random = np.random.default_rng(1)
    successors = random.integers(1, 40, (40, 3))

    def chain(n: int) -> list[int]:
        text = [1]
        while len(text) < n:
            text.append(int(random.choice(successors[text[-1]], p=[0.7, 0.2, 0.1])))
        return text

    general, stored = [chain(60) for _ in range(30)], [chain(40) for _ in range(5)]
    text, held_out = chain(600), chain(200)

    def mean_log_likelihood(weights: Weights) -> float:
        request = Request(text, [], stored, general, vocab_size=40)
        for now, values in zip(request.weights, weights, strict=True):
            now[:] = values
        total = 0.0
        for token in held_out:
            chances = request.mix()
            total += math.log(chances.get(token, float(request.mixture.rest[AFTER]) / 40))
            request.advance(token, learn=False)
        return total / len(held_out)

    request = Request(text[:1], [], stored, general, vocab_size=40)
    fresh = copied(request.weights)
    for token in text[1:]:
        request.advance(token, learn=True)
    only_weights = copied(request.weights)
    only_weights.factor[:] = 1
    scores = [mean_log_likelihood(weights) for weights in (fresh, only_weights, request.weights)]
    assert scores[0] + 0.02 < scores[1]
    assert scores[1] + 0.02 < scores[2]


def learnt(before: Weights, seed: int) -> Weights:
    random = np.random.default_rng(seed)
    text = random.integers(1, 5, 150).tolist()
    request = Request(text[:1], [], [text[50:100]], [])
    for now, values in zip(request.weights, before, strict=True):
        now[:] = values
    for token in text[1:]:
        request.advance(token, learn=True)
    return request.weights


def test_what_requests_learn_beside_each_other_is_joined_in_any_order() -> None:
    """Counts add up, and factors are averaged by how much each request learnt of them."""
    before = learnt(mixing.initial_weights(), 0)
    requests = [learnt(before, seed) for seed in (1, 2, 3)]
    own = [after.squares - before.squares for after in requests]
    total = np.maximum(sum(own), 1e-300)
    logarithm = sum(part / total * np.log(after.lasting) for part, after in zip(own, requests, strict=True))
    logarithm = np.where(total > 1e-300, logarithm, np.log(before.lasting))
    for order in permutations(requests):
        weights = copied(before)
        for after in order:
            mixing.join(weights, before, after)
        for name in ("taken", "reached", "squares"):
            start = getattr(before, name)
            assert getattr(weights, name) == pytest.approx(
                start + sum(getattr(after, name) - start for after in requests)
            )
        assert weights.weight == pytest.approx(weights.taken / weights.reached)
        assert np.log(weights.lasting) == pytest.approx(logarithm, abs=1e-6)
    assert np.count_nonzero(requests[0].lasting != requests[1].lasting) > 50


def test_one_request_joined_to_what_it_began_from_is_what_it_learnt() -> None:
    before = learnt(mixing.initial_weights(), 1)
    after = learnt(before, 2)
    weights = copied(before)
    mixing.join(weights, before, after)
    for name in ("weight", "taken", "reached", "lasting", "squares"):
        assert getattr(weights, name) == pytest.approx(getattr(after, name))


def test_what_a_request_learns_for_itself_ends_with_it() -> None:
    before = mixing.start(learnt(mixing.initial_weights(), 1))
    after = learnt(before, 2)
    assert np.any(after.factor != after.lasting)
    weights = copied(before)
    mixing.join(weights, before, after)
    following = mixing.start(weights)
    assert following.factor == pytest.approx(after.lasting)
    assert following.lasting == pytest.approx(after.lasting)


def test_factors_stay_within_bounds() -> None:
    request = Request([1, 2, 3, 1, 2, 4, 1, 2], [[1, 2, 3]], [[1, 2, 4]], [[2, 4]])
    bound = mixing._LARGEST
    for factor in (bound, 1 / bound):
        request.weights.factor[:] = factor
        for token in [3, 4, 0] * 30:
            request.learn(token)
        factors = request.weights.factor
        assert np.any(factors != factor)
        assert np.all((factors <= bound * (1 + 1e-9)) & (factors >= (1 - 1e-9) / bound))


def test_weights_stay_finite_however_many_requests_learn_the_same() -> None:
    weights = mixing.initial_weights()
    one = learnt(weights, 1)
    before = copied(weights)
    for _ in range(1000):
        mixing.join(weights, before, one)
    assert np.log(weights.lasting) == pytest.approx(np.log(one.lasting), abs=1e-6)  # they all say so
    for values in learnt(weights, 3):
        assert np.all(np.isfinite(values))
        assert np.all(values > 0)


def longest_match(request: Request, context: list[int], tier: int) -> int:
    for length in range(min(len(context), SUFFIX_LENGTH if tier else MAX_LENGTH), 0, -1):
        if tier and EOS in context[-length:]:
            continue
        if followers(request.texts[tier], context[-length:]):
            return length
    return 0


@settings(max_examples=150)
@given(texts, corpora, corpora, corpora, seeds, st.sampled_from([0.0, 0.05, 0.2]))
def test_limits_are_never_below_the_longest_match(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, seed: int, least: float
) -> None:
    """But for a token that was left out as unlikely at one tier, and taken in at another."""
    request = Request(text, learned, stored, general)
    for row, context in enumerate(extended(request, seed, 5, exact=True)):
        for i, token in enumerate(request.mix(row, least)):
            packed = mixing.limits(request.mixture, i)
            if request.mixture.rest[UNLIKELY] > 0:
                continue
            for tier in range(TIERS):
                true = longest_match(request, [*context, token], tier)
                assert true <= (packed >> (8 * tier)) & 255 <= MAX_LENGTH + 1


@settings(max_examples=150)
@given(texts, corpora, corpora, corpora, seeds)
def test_a_tree_with_limits_is_mixed_as_one_without(
    text: list[int], learned: Corpus, stored: Corpus, general: Corpus, seed: int
) -> None:
    request = Request(text, learned, stored, general)
    randomise(request.weights, seed)
    for row, context in enumerate(extended(request, seed, 8, exact=True)):
        assert request.mix(row) == pytest.approx(correct(request, interpolate(request, context), context)[0], rel=1e-5)
