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
from hdraft.drafting.methods import RestDrafter

VOCAB, EOS = 5, 0
TOKEN = st.integers(1, VOCAB - 1)
Ids = Sequence[int]


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
def test_rest_drafts_as_the_plain_implementation_does_on_recorded_text() -> None:
    corpus = recorded_corpus(8_000)
    statistics = StatisticsDatabase.from_documents(corpus, RECORDED_VOCAB, RECORDED_EOS)
    assert_same_on_recorded(
        RestDrafter(RECORDED_VOCAB, statistics), lambda text: rest(corpus, list(text), 64, UNLIMITED, 64)
    )


def test_rest_takes_the_longest_context() -> None:
    corpus = [[1, 2, 3, 4], [9, 2, 3, 5], [9, 2, 3, 5], [8, 2, 3, 6]]
    drafter = RestDrafter(20, StatisticsDatabase.from_documents(corpus, 20, EOS))
    assert drafter.session([7, 1, 2, 3]).propose(9).tokens.tolist() == [4]
    assert drafter.session([7, 7, 2, 3]).propose(9).tokens.tolist() == [5, 4, 6]
    assert not len(drafter.session([7, 7, 7, 3]).propose(9))


@pytest.mark.parametrize("setting", [{"choices": 0}, {"max_span": 1}])
def test_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RestDrafter(VOCAB, StatisticsDatabase.from_documents([[1, 2]], VOCAB, EOS), **setting)


def test_a_database_of_a_larger_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        RestDrafter(VOCAB - 1, StatisticsDatabase.from_documents([[1, 2]], VOCAB, EOS))


def test_a_model_may_know_more_ids_than_its_databases() -> None:
    database = StatisticsDatabase.from_documents([[1, 2, 3, 4]] * 2, VOCAB, EOS)
    session = RestDrafter(VOCAB + 3, database).session([VOCAB + 2, 1, 2])
    assert session.propose(8).tokens.tolist() == [3, 4]
    session.extend([VOCAB + 1, VOCAB + 2])
    assert len(session.propose(8)) == 0
