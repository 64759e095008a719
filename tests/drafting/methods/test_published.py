import gzip
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting import UNLIMITED, Drafter, DraftTree, Source
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.methods import PublishedDrafter
from hdraft.drafting.methods.ngrams import most_frequent_ngrams
from hdraft.drafting.methods.retrieval import OCCURRENCES, allocate_retrieval, find, retrieve, suffix_array

VOCAB, EOS = 6, 0
Ids = Sequence[int]


def followed(documents: Sequence[Ids], context: Ids, depth: int = 10) -> list[Ids]:
    """What followed each occurrence of `context`, in lexicographic order as far as the suffixes are sorted (16)."""
    found = []
    for document in documents:
        for i in range(len(document) - len(context) + 1):
            if list(document[i : i + len(context)]) == list(context):
                found.append(list(document[i + len(context) :]))
    return [rest[:depth] for rest in sorted(found)[:OCCURRENCES]]


def most_frequent(continuations: Sequence[Ids], choices: int) -> list[tuple[int, ...]]:
    """The most frequent prefixes: take the most frequent candidate, the earliest of equals, and open its children."""
    counts = Counter(tuple(rest[:n]) for rest in continuations for n in range(1, len(rest) + 1))
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for prefix in sorted(counts):
        children[prefix[:-1]].append(prefix)
    taken: list[tuple[int, ...]] = []
    candidates = list(children[()])
    while candidates and len(taken) < choices:
        best = max(candidates, key=counts.__getitem__)  # max keeps the first of equals
        candidates.remove(best)
        candidates += children[best]
        taken.append(best)
    return taken


class PlainPublished:
    """The published hierarchy with dictionaries and lists."""

    def __init__(self, outputs: list[Ids], corpus: list[Ids], *, ngram_size: int, guess: int, order: str) -> None:
        self.ngram_size, self.guess, self.order, self.corpus = ngram_size, guess, order, corpus
        self.context: dict[int, list[Ids]] = defaultdict(list)
        self.model: dict[int, list[Ids]] = defaultdict(list)
        frequency: Counter[tuple[int, ...]] = Counter()
        for output in outputs:
            # A dictionary rather than a set: n-grams of the same frequency stay in the order of their first occurrence.
            ngrams = (tuple(output[i : i + ngram_size]) for i in range(len(output) - ngram_size + 1))
            frequency.update(list(dict.fromkeys(ngrams)))
        for ngram, _ in frequency.most_common(100_000):
            if len(self.model[ngram[0]]) < guess:
                self.model[ngram[0]].append(list(ngram[1:]))
        self.text: list[int] = []

    def file(self, ngram: Ids) -> None:
        entries, sequence = self.context[ngram[0]], list(ngram[1:])
        if sequence in entries:
            entries.remove(sequence)
        entries.insert(0, sequence)
        del entries[self.guess :]

    def extend(self, ids: Ids) -> None:
        for token in ids:
            self.text.append(token)
            if len(self.text) >= self.ngram_size:
                self.file(self.text[-self.ngram_size :])

    def from_corpus(self) -> list[Ids]:
        chosen: list[Ids] = []
        found = most_frequent(followed(self.corpus, self.text[-2:]), 40)
        for prefix in sorted(found, key=len, reverse=True):
            sequence = list(prefix[: self.ngram_size - 1])
            if not any(other[: len(sequence)] == sequence for other in chosen):
                chosen.append(sequence)
        return chosen

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        sequences: list[Ids] = []
        sources: list[int] = []
        if not self.text:
            return DraftTree.empty()
        for letter in self.order:
            if letter == "W":
                new, source = self.context[self.text[-1]], Source.CONTEXT
            elif letter == "S":
                new, source = self.model[self.text[-1]], Source.MODEL
            else:
                new, source = self.from_corpus()[:7], Source.STATISTICS
            sequences += new
            sources += [source] * len(new)
        return DraftTree.from_sequences([s[:max_depth] for s in sequences[:7]], sources, budget)


def assert_same(tree: DraftTree, other: DraftTree) -> None:
    for name in DraftTree.__slots__:
        assert getattr(tree, name).tolist() == getattr(other, name).tolist(), name


TOKEN = st.integers(1, VOCAB - 1)
TEXT = st.lists(TOKEN, min_size=1, max_size=40)
DOCUMENTS = st.lists(st.lists(TOKEN, min_size=1, max_size=30), max_size=8)


@settings(deadline=None)
@given(
    outputs=DOCUMENTS,
    corpus=DOCUMENTS,
    prompt=st.lists(TOKEN, max_size=30),
    steps=st.lists(st.lists(TOKEN, min_size=1, max_size=5), min_size=1, max_size=8),
    order=st.sampled_from(["W", "S", "L", "WS", "SW", "WSL", "LWS", "SLW"]),
    ngram_size=st.integers(2, 6),
    guess=st.integers(1, 8),
    budget=st.integers(0, 40),
    max_depth=st.sampled_from([0, 1, 3, UNLIMITED]),
)
def test_drafts_as_the_plain_implementation_does(
    outputs: list[Ids],
    corpus: list[Ids],
    prompt: Ids,
    steps: list[Ids],
    order: str,
    ngram_size: int,
    guess: int,
    budget: int,
    max_depth: int,
) -> None:
    plain = PlainPublished(outputs, corpus, ngram_size=ngram_size, guess=guess, order=order)
    drafter = PublishedDrafter(
        VOCAB,
        ModelDatabase.from_documents(outputs, VOCAB, EOS),
        StatisticsDatabase.from_documents(corpus, VOCAB, EOS),
        ngram_size=ngram_size,
        guess=guess,
        order=order,
    )
    session = drafter.session(prompt)
    plain.extend(prompt)
    for step in steps:
        assert_same(session.propose(budget, max_depth), plain.propose(budget, max_depth))
        session.extend(step)
        plain.extend(step)


# Recorded output of a real model, where there is any; `evaluation/test_replay.py` has the figures on the whole of it.
SHARED = Path(os.environ.get("HDRAFT_SHARED", Path(__file__).parents[3] / "shared")) / "replay"
RECORDED_VOCAB, RECORDED_EOS = 32000, 2
needs_recorded = pytest.mark.skipif(not SHARED.exists(), reason="no recorded traces here (HDRAFT_SHARED)")


def recorded(name: str, count: int) -> list[dict[str, Ids]]:
    with gzip.open(SHARED / name) as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def recorded_corpus(tokens: int) -> list[Ids]:
    ids = np.load(SHARED / "chat-corpus-0.npy", mmap_mode="r")[:tokens]
    return [part[part != RECORDED_EOS].tolist() for part in np.split(ids, np.flatnonzero(ids == RECORDED_EOS) + 1)]


def assert_same_on_recorded(drafter: Drafter, plain: Callable[[Ids], DraftTree], requests: int = 4) -> None:
    """`plain` drafts for a text, within a budget of 64."""
    drafted = 0
    for request in recorded("vicuna-7b-specbench-dev.jsonl.gz", requests):
        text, output = list(request["prompt_ids"]), request["output_ids"][:90]
        session = drafter.session(text)
        for begin in range(0, len(output), 3):
            tree = session.propose(64)
            assert_same(tree, plain(text))
            drafted += len(tree)
            session.extend(output[begin : begin + 3])
            text += output[begin : begin + 3]
    assert drafted > 200


@needs_recorded
@pytest.mark.parametrize("order", ["W", "S", "L", "WS", "WSL"])
def test_drafts_as_the_plain_implementation_does_on_recorded_text(order: str) -> None:
    outputs = [line["output_ids"][:-1] for line in recorded("vicuna-7b-generations.jsonl.gz", 100)]
    corpus = recorded_corpus(50_000)
    databases = (
        ModelDatabase.from_documents(outputs, RECORDED_VOCAB, RECORDED_EOS),
        StatisticsDatabase.from_documents(corpus, RECORDED_VOCAB, RECORDED_EOS),
    )

    def plain(text: Ids) -> DraftTree:
        reference.context, reference.text = defaultdict(list), []
        reference.extend(text)
        return reference.propose(64, UNLIMITED)

    reference = PlainPublished(outputs, corpus, ngram_size=5, guess=7, order=order)
    assert_same_on_recorded(PublishedDrafter(RECORDED_VOCAB, *databases, order=order), plain)


@settings(deadline=None)
@given(
    corpus=DOCUMENTS,
    copies=st.lists(st.lists(TOKEN, max_size=6), max_size=6),
    shared=st.lists(TOKEN, min_size=20, max_size=24),
    span=st.integers(1, 16),
    choices=st.integers(1, 70),
)
def test_retrieves_as_the_plain_implementation_does(
    corpus: list[Ids], copies: list[list[int]], shared: list[int], span: int, choices: int
) -> None:
    """`copies` differ further into the text than suffixes are sorted."""
    documents = [*corpus, *(shared + ending for ending in copies), shared]
    array, separator = suffix_array(StatisticsDatabase.from_documents(documents, VOCAB, EOS), VOCAB)
    found = allocate_retrieval(array, separator, VOCAB, choices)
    for context in (shared[:span], documents[0][:span]):
        low, high = find(array, np.array(context, np.int32))
        n = retrieve(found, low, high, len(context))
        paths: list[tuple[int, ...]] = []
        for node in range(n):
            parent = found.parents[node]
            paths.append((*(paths[parent] if parent >= 0 else ()), int(found.tokens[node])))
        assert found.depths[:n].tolist() == [len(path) for path in paths]
        continuations = followed(documents, context)
        assert paths == most_frequent(continuations, choices)
        # Independently of how ties are broken: no frequent continuation is missed.
        counts = Counter(tuple(rest[:k]) for rest in continuations for k in range(1, len(rest) + 1))
        assert found.counts[:n].tolist() == sorted(counts.values(), reverse=True)[:choices]


def test_retrieval_looks_at_so_many_occurrences_only() -> None:
    corpus = [1, 2] * OCCURRENCES + [1, 3] * 9
    array, separator = suffix_array(StatisticsDatabase.from_tokens(corpus, VOCAB, EOS), VOCAB)
    found = allocate_retrieval(array, separator, VOCAB, 100)
    low, high = find(array, np.array([1], np.int32))
    assert high - low == OCCURRENCES + 9
    n = retrieve(found, low, high, 1)
    assert 3 not in found.tokens[:n].tolist()[:1]
    assert found.counts[0] == OCCURRENCES


def test_context_lists_are_least_recently_used() -> None:
    session = PublishedDrafter(10, ngram_size=2, guess=2).session([1, 2, 1, 3, 1])
    assert session.propose(9).tokens.tolist() == [3, 2]
    session.extend([2, 1])  # 2 was used again
    assert session.propose(9).tokens.tolist() == [2, 3]
    session.extend([4, 1])  # the list is full: 3 makes room
    assert session.propose(9).tokens.tolist() == [4, 2]


def test_accepted_ngrams_enter_at_once() -> None:
    session = PublishedDrafter(10, ngram_size=3).session([1, 2])
    assert not len(session.propose(9))
    session.extend([3, 1])
    assert session.propose(9).tokens.tolist() == [2, 3]


def test_lookahead_ngrams_enter_before_the_accepted_ones() -> None:
    session = PublishedDrafter(10, ngram_size=3).session([7, 1, 2, 3])
    session.extend([4, 1], ngrams=np.array([[1, 5, 6], [8, 9, 9], [1, 2, 9]]))
    assert session.propose(9).tokens.tolist() == [2, 9, 5, 6, 3]
    assert session.propose(9).parents.tolist() == [-1, 0, -1, 2, 0]


@pytest.mark.parametrize("ngrams", [[[1, 2]], [1, 2, 3], [[1, 2, 10]], [[1, -2, 3]]])
def test_bad_lookahead_ngrams_are_refused(ngrams: list[list[int]]) -> None:
    session = PublishedDrafter(10, ngram_size=3).session([1, 2, 3])
    with pytest.raises(ValueError, match=r"ngrams must be|vocabulary"):
        session.extend([1], ngrams=np.array(ngrams))


def test_model_ngrams_are_counted_by_document() -> None:
    outputs = [[1, 2, 3, 1, 2, 3, 1, 2], [1, 4], [5, 1, 4]]
    assert most_frequent_ngrams(map(np.array, outputs), 2).tolist() == [[1, 4], [1, 2], [2, 3], [3, 1], [5, 1]]
    drafter = PublishedDrafter(10, ModelDatabase.from_documents(outputs, 10, EOS), ngram_size=2, guess=1, order="S")
    tree = drafter.session([1]).propose(9)
    assert tree.tokens.tolist() == [4] and tree.sources.tolist() == [Source.MODEL]


def test_statistics_answer_the_last_two_tokens_longest_first() -> None:
    corpus = [[1, 2, 3, 4], [1, 2, 5], [9, 2, 8]]
    drafter = PublishedDrafter(10, None, StatisticsDatabase.from_documents(corpus, 10, EOS))
    tree = drafter.session([7, 1, 2]).propose(9)
    assert tree.tokens.tolist() == [3, 4, 5]
    assert tree.parents.tolist() == [-1, 0, -1]
    assert set(tree.sources.tolist()) == {Source.STATISTICS}


def test_seven_sequences_database_after_database() -> None:
    prompt = [token for i in range(2, 7) for token in (1, i)] + [1]
    outputs = [[1, i] for i in range(10, 16)]
    database = ModelDatabase.from_documents(outputs, 20, EOS)
    drafter = PublishedDrafter(20, database, ngram_size=2)
    assert drafter.session(prompt).propose(9).tokens.tolist() == [6, 5, 4, 3, 2, 10, 11]
    drafter = PublishedDrafter(20, database, ngram_size=2, order="SW", max_sequences=8)
    assert drafter.session(prompt).propose(9).tokens.tolist() == [10, 11, 12, 13, 14, 15, 6, 5]


@pytest.mark.parametrize("order", ["", "X", "WW", "WSLW", "wsl", "W S"])
def test_bad_orders_are_refused(order: str) -> None:
    with pytest.raises(ValueError, match="order"):
        PublishedDrafter(10, order=order)


@pytest.mark.parametrize("setting", ["guess", "previous_tokens", "max_sequences", "ngram_size"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        PublishedDrafter(10, **{setting: 0})


def test_databases_of_a_larger_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        PublishedDrafter(10, None, StatisticsDatabase.from_documents([[1, 2]], 11, EOS))
    with pytest.raises(ValueError, match="vocabulary"):
        PublishedDrafter(3, ModelDatabase.from_documents([[1, 2, 3, 4, 5]], 11, EOS))
