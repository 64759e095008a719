import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases.context import MAX_LENGTH
from hdraft.drafting.databases.frequent import SUFFIX_LENGTH
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import Candidates
from hdraft.drafting.hierarchy import drafter as hierarchy
from hdraft.drafting.hierarchy import growth
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience
from hdraft.drafting.hierarchy.mixing import class_of, initial_weights
from hdraft.drafting.tree import DraftTree, Source

EOS, VOCAB = 0, 6
texts = st.lists(st.integers(1, 4), min_size=1, max_size=24)
corpora = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), max_size=4)


def followers(text: list[int], context: list[int]) -> list[int]:
    k = len(context)
    return [text[i + k] for i in range(len(text) - k) if text[i : i + k] == context]


def shape(following: list[int], newest: int | None) -> int:
    """How concentrated continuations are, as the kernel judges it."""
    if len(set(following)) == 1:
        return 0
    most = max(Counter(following).values()) if newest is None else following.count(newest)
    return 1 if 2 * most >= len(following) else 2


def next_tokens(text: list[int], context: list[int], tiers: list[list[int]]) -> Counter[int]:
    """The plain reference: the interpolated distribution of what follows `context`, whose request's text is `text`."""
    weights = initial_weights().weight
    chances: Counter[int] = Counter()
    left, seen = 1.0, [0] * 4
    for length in range(MAX_LENGTH, 0, -1):
        for tier, source in enumerate([text, *tiers]):
            if length > len(context) or (tier and (length > SUFFIX_LENGTH or EOS in context[-length:])):
                continue
            following = followers(source, context[-length:])
            if len(following) <= seen[tier]:
                continue
            seen[tier] = len(following)
            concentration = shape(following, None if tier else following[-1])
            weight = weights[class_of(tier, length, len(following), concentration)]
            for token in following:
                chances[token] += left * weight / len(following)
            left *= 1 - weight
    return chances


@settings(max_examples=60)
@given(texts, corpora, corpora, corpora)
def test_probabilities_are_the_interpolated_ones(
    text: list[int], learned: list[list[int]], stored: list[list[int]], general: list[list[int]]
) -> None:
    model_database = ModelDatabase.from_documents(stored, VOCAB, EOS)
    for document in learned:
        model_database.learn(document)
    drafter = HierarchyDrafter(
        VOCAB,
        model_database,
        StatisticsDatabase.from_documents(general, VOCAB, EOS),
        experience=Experience(initial_weights()),
    )
    tree = drafter.session(text).propose(budget=VOCAB + VOCAB**2 + VOCAB**3, max_depth=3)  # room for every path
    tiers = [[token for document in corpus for token in (*document, EOS)] for corpus in (learned, stored, general)]
    contexts: list[list[int]] = []
    reached: list[float] = []
    for token, parent, probability in zip(
        tree.tokens.tolist(), tree.parents.tolist(), tree.probabilities.tolist(), strict=True
    ):
        context = text if parent < 0 else contexts[parent]
        contexts.append([*context, token])
        above = 1.0 if parent < 0 else growth._DEEPER * reached[parent]
        reached.append(above * next_tokens(text, context, tiers)[token])
        # At each of three depths, what is left for the shortest matches may be too little to look at them.
        assert probability == pytest.approx(reached[-1], abs=9 * growth._LEAST)


@settings(max_examples=60)
@given(texts, corpora, st.integers(0, 12), st.integers(0, 4))
def test_trees_are_tries_within_budget_and_depth_likeliest_first(
    text: list[int], stored: list[list[int]], budget: int, max_depth: int
) -> None:
    drafter = HierarchyDrafter(VOCAB, ModelDatabase.from_documents(stored, VOCAB, EOS))
    tree = drafter.session(text).propose(budget, max_depth)
    assert len(tree) <= budget
    assert tree.depths.max(initial=0) <= max_depth
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()))
    pairs = list(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert np.all(np.diff(tree.probabilities) <= 1e-6)
    assert DraftTree(tree.tokens, tree.parents).depths.tolist() == tree.depths.tolist()


def test_each_token_is_credited_to_the_database_it_came_from() -> None:
    model_database = ModelDatabase.from_documents([[10, 11, 12]], 40, EOS)
    general = StatisticsDatabase.from_documents([[20, 21, 22]], 40, EOS)
    drafter = HierarchyDrafter(40, model_database, general)
    for prompt, token, source in (
        ([30, 31, 32, 30], 31, Source.CONTEXT),
        ([10], 11, Source.MODEL),
        ([20], 21, Source.STATISTICS),
    ):
        tree = drafter.session(prompt).propose(budget=1)
        assert (tree.tokens.tolist(), tree.sources.tolist()) == ([token], [source])


def test_a_token_is_credited_to_the_database_that_contributes_most() -> None:
    """Both foresee the same token; the one whose match is longer comes first, and contributes more where it is sure."""
    sure = [[11, 12, 13, 14]] * 8
    unsure = [[11, 12, 13, token] for token in range(14, 22)]
    for documents, prompt, from_context in (
        (sure, [13, 14, 30, 11, 12, 13], False),
        (unsure, [13, 14, 30, 13, 14, 30, 11, 12, 13], True),
        ([[30, 13, 14]], [11, 12, 13, 14, 15, 11, 12, 13], True),
        ([[30, 13, 14]] * 60, [11, 12, 13, 14, 12, 13, 15, 12, 13, 16, 12, 13, 17, 12, 13, 14, 18, 12, 13], False),
    ):
        for stored, general, source in (
            (ModelDatabase.from_documents(documents, 40, EOS), None, Source.MODEL),
            (None, StatisticsDatabase.from_documents(documents, 40, EOS), Source.STATISTICS),
        ):
            tree = HierarchyDrafter(40, stored, general).session(prompt).propose(budget=1)
            assert (tree.tokens.tolist(), tree.sources.tolist()) == ([14], [Source.CONTEXT if from_context else source])


def test_a_long_copy_is_drafted_to_its_end() -> None:
    text = list(range(1, 40))
    drafter = HierarchyDrafter(50, experience=Experience(initial_weights()))
    tree = drafter.session([*text, *text[:10]]).propose(budget=64)
    assert tree.best_chain(64).tokens.tolist()[:29] == text[10:39]


@pytest.mark.parametrize("begun", [1, 3, 10])
def test_a_long_copy_takes_few_steps(begun: int) -> None:
    text = list(range(1, 40))
    session = HierarchyDrafter(50).session(text)
    session.extend(text[:begun])
    copied, steps = begun, 0
    while copied < len(text):
        chain = session.propose(budget=64).best_chain(64).tokens.tolist()
        right = 0
        while right < len(chain) and chain[right : right + 1] == text[copied + right : copied + right + 1]:
            right += 1
        emitted = text[copied : copied + right + 1]
        session.extend(emitted)
        copied += len(emitted)
        steps += 1
    assert steps <= 2


def test_an_end_of_sequence_is_drafted_and_nothing_after_it() -> None:
    drafter = HierarchyDrafter(VOCAB, ModelDatabase.from_documents([[1, 2], [1, 2], [3, 4]], VOCAB, EOS))
    chain = drafter.session([1]).propose(budget=8).best_chain(8)
    assert chain.tokens.tolist() == [2, EOS]


def test_what_ends_documents_without_an_end_of_sequence_id_is_never_drafted() -> None:
    drafter = HierarchyDrafter(VOCAB, ModelDatabase.from_documents([[1, 2], [1, 2]], VOCAB, None))
    assert drafter.session([1]).propose(budget=8).tokens.tolist() == [2]


def test_a_budget_of_nothing_drafts_nothing() -> None:
    session = HierarchyDrafter(10).session([1, 2, 1])
    assert len(session.propose(0)) == 0
    assert len(session.propose(5, max_depth=0)) == 0


def test_drafts_that_cost_more_than_they_bring_are_left_out() -> None:
    prompt = [1, 2, 1, 3, 1, 4, 1]
    dear = HierarchyDrafter(10).session(prompt, costs=np.arange(1.0, 10.0))
    cheap = HierarchyDrafter(10).session(prompt, costs=np.ones(9))
    assert len(dear.propose(8)) == 0
    assert len(cheap.propose(8)) == 8


def test_the_same_inputs_give_the_same_trees() -> None:
    random = np.random.default_rng(0)
    text = random.integers(1, 5, 300)
    runs = []
    for _ in range(2):
        session = HierarchyDrafter(VOCAB).session(text[:100], costs=np.linspace(1, 1.5, 17))
        trees = []
        for begin in range(100, 300, 3):
            trees.append(session.propose(16).tokens.tolist())
            session.extend(text[begin : begin + 3])
        runs.append(trees)
    assert runs[0] == runs[1]


def test_weights_of_matches_that_foresee_the_text_rise() -> None:
    before = HierarchyDrafter(50).session([1, 2, 3, 1]).propose(1).probabilities[0]
    drafter = HierarchyDrafter(50)
    session = drafter.session([1, 2, 3])
    session.extend([1, 2, 3] * 100)
    session.close()
    after = drafter.session([1, 2, 3, 1]).propose(1).probabilities[0]
    assert after > before


def test_what_one_request_learns_serves_the_next_only_when_asked_to() -> None:
    for learn in (False, True):
        drafter = HierarchyDrafter(50, learn=learn)
        session = drafter.session([1])
        session.extend([7, 8, 9])
        session.close()
        session.close()
        assert (len(drafter.session([7]).propose(4)) > 0) == learn


def test_scoped_drafters_share_what_is_learnt_of_the_weights_and_no_text() -> None:
    general = HierarchyDrafter(50, learn=True)
    ours, theirs = general.scoped(ModelDatabase(50)), general.scoped(ModelDatabase(50))
    before = theirs.session([1, 2, 3, 1]).propose(1).probabilities[0]
    session = ours.session([7, 8, 9])
    session.extend([7, 8, 9] * 100)
    session.close()
    assert theirs.session([1, 2, 3, 1]).propose(1).probabilities[0] > before
    assert [len(drafter.session([7]).propose(4)) > 0 for drafter in (ours, theirs, general)] == [True, False, False]


def test_a_text_is_drafted_the_same_whether_it_came_at_once_or_in_pieces() -> None:
    text = np.random.default_rng(1).integers(1, 5, 200).tolist()
    stored = ModelDatabase.from_documents([text[50:120]], VOCAB, EOS)
    whole = HierarchyDrafter(VOCAB, stored).session(text)
    pieces = HierarchyDrafter(VOCAB, stored).session([])
    for begin in range(0, 200, 7):
        pieces._advance_and_grow(np.array(text[begin : begin + 7], np.int32), np.zeros(1), learn=False)
    ours, theirs = pieces.propose(24), whole.propose(24)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert np.allclose(ours.probabilities, theirs.probabilities)


def wandering(seed: int, n: int, vocab_size: int = 30) -> list[int]:
    """A text of many contexts, each of which recurs."""
    random = np.random.default_rng(seed)
    parts = random.integers(1, vocab_size, (12, 9))
    return [token for i in random.integers(12, size=-(-n // 9)) for token in parts[i].tolist()][:n]


def rooms(room: int, monkeypatch: pytest.MonkeyPatch, vocab_size: int = 30) -> list[hierarchy.HierarchySession]:
    """Two sessions of the same request: one with plenty of room for contexts of D_m and D_s, one with `room`."""
    model_database = ModelDatabase.from_documents(
        [wandering(seed, 200, vocab_size) for seed in range(5)], vocab_size, EOS
    )
    model_database.learn(wandering(5, 150, vocab_size))
    documents = [wandering(seed, 300, vocab_size) for seed in range(6, 10)]
    general = StatisticsDatabase.from_documents(documents, vocab_size, EOS)
    drafter = HierarchyDrafter(vocab_size, model_database, general)
    sessions = []
    for contexts in (hierarchy._CONTEXTS, room):
        monkeypatch.setattr(hierarchy, "_CONTEXTS", contexts)
        sessions.append(drafter.session(wandering(10, 50, vocab_size)))
    return sessions


def test_contexts_forgotten_between_steps_change_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every occurrence is looked at: of more, a context once opened for a likelier node has more probes."""
    plenty, little = rooms(400, monkeypatch, vocab_size=1000)
    text = wandering(11, 300, 1000)
    drafted = cleared = kept = 0
    for begin in range(0, len(text), 2):
        trees = [session.propose(6) for session in (plenty, little)]
        assert little._databases.trie.sizes[0] < len(little._databases.trie.node)  # room did not run out
        cleared += little._databases.trie.sizes[0] < kept
        kept = little._databases.trie.sizes[0]
        assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
        assert trees[0].parents.tolist() == trees[1].parents.tolist()
        assert trees[0].probabilities.tolist() == trees[1].probabilities.tolist()
        drafted += len(trees[1])
        for session in (plenty, little):
            session.extend(text[begin : begin + 2])
    assert cleared > 2
    assert drafted > 300


@pytest.mark.parametrize("room", [4, 32, 128])
def test_without_room_for_contexts_trees_are_well_formed(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, little = rooms(room, monkeypatch)
    text = wandering(12, 300)
    full = drafted = 0
    for begin in range(0, len(text), 10):
        tree = little.propose(64, max_depth=9)
        tree.check(30, 64, 9)
        pairs = list(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        assert np.all(np.diff(tree.probabilities) <= 1e-6)
        assert np.all((tree.probabilities > 0) & (tree.probabilities <= 1))
        full += int(little._databases.trie.sizes[0] == len(little._databases.trie.node))
        drafted += len(tree)
        little.extend(text[begin : begin + 10])
    little.close()
    assert full > 5
    assert drafted > 100  # D_c needs none of it


def test_ids_in_any_integer_array_are_the_same_ids() -> None:
    text = wandering(13, 120)
    kinds: list[Any] = [
        list,
        lambda ids: np.array(ids, np.int32),
        lambda ids: np.repeat(np.array(ids, np.int32), 2)[::2],
        lambda ids: np.array(ids, np.uint16),
        lambda ids: np.array(ids, np.int64)[::-1][::-1],
        lambda ids: np.frombuffer(np.array(ids, np.int32).tobytes(), np.int32),  # read-only
    ]
    drafter = HierarchyDrafter(30)
    plain, mixed = drafter.session(text[:20]), drafter.session(np.array(text[:20], np.uint8))
    for i, begin in enumerate(range(20, 120, 4)):
        plain.extend(text[begin : begin + 4])
        mixed.extend(kinds[i % len(kinds)](text[begin : begin + 4]))
        assert plain.propose(16).tokens.tolist() == mixed.propose(16).tokens.tolist()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    drafter = HierarchyDrafter(10)
    bad: list[Any] = [[10], [-1], [1.5], [[1]]]
    for ids in bad:
        with pytest.raises(ValueError, match="token id"):
            drafter.session(ids)
        with pytest.raises(ValueError, match="token id"):
            drafter.session([1]).extend(ids)


def test_a_database_of_a_larger_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="build it with this model's tokenizer"):
        HierarchyDrafter(10, ModelDatabase(11, EOS))


def test_databases_of_different_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="build both with this model's tokenizer"):
        HierarchyDrafter(12, ModelDatabase(11, EOS), StatisticsDatabase(10, EOS))


def test_ids_that_only_the_model_has_are_drafted_from_the_context_and_not_learnt() -> None:
    drafter = HierarchyDrafter(70000, ModelDatabase(60000, EOS), learn=True)
    session = drafter.session([1, 69999, 1])
    assert session.propose(1).tokens.tolist() == [69999]
    session.extend([4, 5, 69999, 6, 7])
    session.close()
    assert [document.tolist() for document in drafter.model_database.documents()] == [[4, 5], [6, 7]]


def test_threads_share_a_learning_drafter() -> None:
    drafter = HierarchyDrafter(VOCAB, learn=True)
    failures: list[BaseException] = []

    def request(seed: int) -> None:
        try:
            text = np.random.default_rng(seed).integers(1, 5, 200)
            for _ in range(5):
                session = drafter.session(text[:20])
                for begin in range(20, 200, 4):
                    session.propose(16)
                    session.extend(text[begin : begin + 4])
                session.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(len(document) for document in drafter.model_database.documents()) == 8 * 5 * 180


def test_a_depth_of_a_narrow_integer_type_leaves_later_depths_alone() -> None:
    text = list(range(1, 40))
    drafter = HierarchyDrafter(50, experience=Experience(initial_weights()))
    drafter.session(text).propose(4, np.int8(5))  # type: ignore[arg-type]
    assert drafter.session([*text, *text[:10]]).propose(64).depths.max() > 20


def test_a_caller_may_use_its_buffer_again() -> None:
    session = HierarchyDrafter(10).session([1, 2, 3])
    buffer = np.array([1], np.int32)
    session.extend(buffer)
    buffer[0] = 9
    assert session.propose(1).tokens.tolist() == [2]


class Dice:
    """Draws of tokens that the next ones are drawn by; known, or not."""

    def __init__(self, seed: int, known: bool) -> None:
        self.random, self.known = np.random.default_rng(seed), known
        self.rows: list[np.ndarray[Any, Any]] = []
        self.emitted = 0

    def ahead(self, n: int) -> np.ndarray[Any, Any]:
        if not self.known:
            return np.empty((0, 0), np.float32)
        return np.array([self.row(self.emitted + place) for place in range(n)])

    def row(self, place: int) -> np.ndarray[Any, Any]:
        while len(self.rows) <= place:
            self.rows.append(self.random.standard_exponential(20).astype(np.float32))
        return self.rows[place]

    def next_token(self, probabilities: np.ndarray[Any, Any]) -> int:
        token = int((probabilities / self.row(self.emitted)).argmax())
        self.emitted += 1
        return token


def test_what_tokens_are_drawn_by_tells_which_of_those_seen_comes_next() -> None:
    """After each token one of two follows, by chance."""
    right = {}
    for known in (False, True):
        drafter = HierarchyDrafter(20, learn=True)
        hits = total = 0
        for seed in range(12):
            dice = Dice(seed, known)
            session, last = drafter.session([1], draws=dice), 1
            for place in range(60):
                tree = session.propose(1)
                chances = np.zeros(20)
                chances[[(3 * last + 1) % 20, (5 * last + 2) % 20]] += 0.5
                last = dice.next_token(chances)
                if seed > 5 and place:
                    hits, total = hits + (tree.tokens.tolist() == [last]), total + 1
                session.extend([last])
            session.close()
        right[known] = hits / total
    assert right[False] < 0.55 < 0.65 < right[True], right


@pytest.mark.parametrize("drafts", [(False, False), (True, False), (False, True), (True, True)])
def test_candidates_are_recycled_whether_or_not_there_was_a_tree_between_their_steps(drafts: tuple[bool, ...]) -> None:
    session = HierarchyDrafter(100).session([1, 2])
    for emitted, follows, draft in zip((3, 4), (50, 60), drafts, strict=True):
        session.extend([emitted], candidates=Candidates(DraftTree([], []), np.array([[follows]]), np.array([[-0.1]])))
        if draft:
            session.propose(4)
    for text_ends, follows in ((2, 50), (3, 60)):
        session.extend([text_ends])
        assert follows in session.propose(4).tokens
