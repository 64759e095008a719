from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published import (
    RECORDED_EOS,
    RECORDED_VOCAB,
    assert_same_on_recorded,
    followed,
    most_frequent,
    needs_recorded,
    recorded_corpus,
)

from hdraft.drafting import UNLIMITED, DraftTree, Source
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.methods.baselines import PromptLookupDrafter, RestDrafter

VOCAB, EOS = 5, 0
TOKEN = st.integers(1, VOCAB - 1)
Ids = Sequence[int]


def look_up(text: list[int], max_ngram: int, draft: int) -> list[int]:
    """Prompt lookup as Spec-Bench runs it, one n-gram length after another."""
    n = len(text)
    for length in range(min(max_ngram, n), 0, -1):
        for begin in range(n - length + 1):
            end = begin + length
            if text[begin:end] == text[n - length :] and end + draft <= n and end < n - length:
                return text[end : end + draft]
    return []


@settings(deadline=None)
@given(st.lists(TOKEN, max_size=60), st.integers(1, 4), st.integers(1, 6), st.integers(0, 8))
def test_prompt_lookup_drafts_as_the_plain_implementation_does(
    text: list[int], max_ngram: int, draft: int, budget: int
) -> None:
    session = PromptLookupDrafter(VOCAB, max_ngram=max_ngram, draft=draft).session(text)
    tree = session.propose(budget)
    assert tree.tokens.tolist() == look_up(text, max_ngram, draft)[:budget]
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
    assert set(tree.sources.tolist()) <= {Source.CONTEXT}


def test_prompt_lookup_takes_the_longest_match_then_the_first() -> None:
    drafter = PromptLookupDrafter(20, draft=2)
    assert drafter.session([9, 2, 3, 4, 1, 2, 5, 6, 1, 2]).propose(9).tokens.tolist() == [5, 6]
    assert drafter.session([2, 3, 4, 1, 2, 5, 6, 7, 2]).propose(9).tokens.tolist() == [3, 4]


def test_prompt_lookup_passes_over_an_occurrence_that_too_few_tokens_follow() -> None:
    session = PromptLookupDrafter(20, draft=3).session([1, 2, 3, 1])
    assert session.propose(9).tokens.tolist() == [2, 3, 1]
    session = PromptLookupDrafter(20, draft=4).session([1, 2, 3, 1])
    assert not len(session.propose(9))


def rest(corpus: list[Ids], text: list[int], choices: int, max_depth: int, budget: int) -> DraftTree:
    """REST with lists: the continuations kept are those left when the longest are dropped until few tokens remain."""
    paths: list[tuple[int, ...]] = []
    for span in range(min(16, len(text)), 0, -1):
        continuations = followed(corpus, text[-span:])
        if span >= min(2, len(text)) and continuations:
            paths = most_frequent(continuations, choices)
            break
    while sum(len(set(path)) for path in paths) > choices:
        most = max(len(set(path)) for path in paths)
        paths.remove([path for path in paths if len(set(path)) == most][-1])
    paths = [path for path in paths if len(path) <= max_depth]
    tree = DraftTree.from_sequences(paths, [Source.STATISTICS] * len(paths), budget)
    assert len(tree) == min(len(paths), budget), "a prefix was dropped before what it begins"
    return tree


@settings(deadline=None)
@given(
    corpus=st.lists(st.lists(TOKEN, min_size=1, max_size=30), min_size=1, max_size=8),
    shared=st.lists(TOKEN, min_size=18, max_size=22),
    endings=st.lists(st.lists(TOKEN, max_size=8), max_size=5),
    text=st.lists(TOKEN, min_size=1, max_size=20),
    cut=st.integers(1, 22),
    choices=st.integers(1, 70),
    max_depth=st.sampled_from([1, 4, UNLIMITED]),
    budget=st.integers(1, 70),
)
def test_rest_drafts_as_the_plain_implementation_does(
    corpus: list[Ids],
    shared: list[int],
    endings: list[list[int]],
    text: list[int],
    cut: int,
    choices: int,
    max_depth: int,
    budget: int,
) -> None:
    documents = [*corpus, *(shared + ending for ending in endings)]
    drafter = RestDrafter(VOCAB, StatisticsDatabase.from_documents(documents, VOCAB, EOS), choices=choices)
    for prompt in (text, shared[:cut]):
        tree = drafter.session(prompt).propose(budget, max_depth)
        plain = rest(documents, prompt, choices, max_depth, budget)
        for name in DraftTree.__slots__:
            assert getattr(tree, name).tolist() == getattr(plain, name).tolist(), name


@needs_recorded
def test_baselines_draft_as_the_plain_implementations_do_on_recorded_text() -> None:
    corpus = recorded_corpus(8_000)
    statistics = StatisticsDatabase.from_documents(corpus, RECORDED_VOCAB, RECORDED_EOS)
    assert_same_on_recorded(
        PromptLookupDrafter(RECORDED_VOCAB),
        lambda text: DraftTree.from_sequences([look_up(list(text), 3, 10)], [Source.CONTEXT]),
        requests=60,
    )
    assert_same_on_recorded(
        RestDrafter(RECORDED_VOCAB, statistics), lambda text: rest(corpus, list(text), 64, UNLIMITED, 64)
    )


def test_rest_takes_the_longest_context() -> None:
    corpus = [[1, 2, 3, 4], [9, 2, 3, 5], [9, 2, 3, 5], [8, 2, 3, 6]]
    drafter = RestDrafter(20, StatisticsDatabase.from_documents(corpus, 20, EOS))
    assert drafter.session([7, 1, 2, 3]).propose(9).tokens.tolist() == [4]
    assert drafter.session([7, 7, 2, 3]).propose(9).tokens.tolist() == [5, 4, 6]
    assert not len(drafter.session([7, 7, 7, 3]).propose(9))


def test_settings_out_of_range_are_refused() -> None:
    database = StatisticsDatabase.from_documents([[1, 2]], VOCAB, EOS)
    for drafter, settings_ in (
        (PromptLookupDrafter, {"max_ngram": 0}),
        (PromptLookupDrafter, {"draft": 0}),
        (lambda vocab, **kwargs: RestDrafter(vocab, database, **kwargs), {"choices": 0}),
        (lambda vocab, **kwargs: RestDrafter(vocab, database, **kwargs), {"max_span": 1}),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            drafter(VOCAB, **settings_)
    with pytest.raises(ValueError, match="vocabulary"):
        RestDrafter(VOCAB - 1, database)


def test_a_model_may_know_more_ids_than_its_databases() -> None:
    database = StatisticsDatabase.from_documents([[1, 2, 3, 4]] * 2, VOCAB, EOS)
    session = RestDrafter(VOCAB + 3, database).session([VOCAB + 2, 1, 2])
    assert session.propose(8).tokens.tolist() == [3, 4]
    session.extend([VOCAB + 1, VOCAB + 2])
    assert len(session.propose(8)) == 0
