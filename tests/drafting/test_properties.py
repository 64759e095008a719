"""What every database promises, against a plain dictionary; `test_context.py` does the same for D_c."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray, narrow, occurrences, token_at

VOCAB, LONGEST = 6, 16
Ids = list[int]
Followers = dict[tuple[int, ...], Counter[int]]


def plain(documents: list[Ids], separator: int) -> Followers:
    """What followed each context of 1 to `LONGEST` - 1 tokens within a document, its end included, and how often."""
    followers: Followers = defaultdict(Counter)
    for document in documents:
        ended = [*document, separator]
        for end in range(1, len(ended)):
            for begin in range(max(0, end - LONGEST + 1), end):
                followers[tuple(ended[begin:end])][ended[end]] += 1
    return followers


def find(array: SuffixArray, context: tuple[int, ...]) -> tuple[int, int]:
    """The ranks of a context, as a draft finds them: its first token's, narrowed by each of the others."""
    low, high = occurrences(array, context[0])
    for length in range(1, len(context)):
        low, high = narrow(array, low, high, length, context[length])
    return low, high


def answer(arrays: tuple[SuffixArray, ...], context: tuple[int, ...]) -> Counter[int]:
    """What followed a context: by the tokens after each of its ranks, and by narrowing, which must agree."""
    following: Counter[int] = Counter()
    for array in arrays:
        low, high = find(array, context)
        ranks = Counter(token_at(array, rank, len(context)) for rank in range(low, high))
        ranges = {token: narrow(array, low, high, len(context), token) for token in range(VOCAB + 1)}
        assert ranks == Counter({token: b - a for token, (a, b) in ranges.items() if b > a})
        following += ranks
    return following


def arrays_of(database: Database) -> tuple[SuffixArray, ...]:
    if isinstance(database, ModelDatabase):
        return database.snapshot()
    return (database.array,)


def learned(documents: list[Ids], eos: int | None) -> ModelDatabase:
    """Half of it stored, half learned."""
    database = ModelDatabase.from_documents(documents[::2], VOCAB, eos)
    for document in documents[1::2]:
        database.learn(document)
    return database


BUILDERS: dict[str, Callable[[list[Ids], int | None], Database]] = {
    "D_s": lambda documents, eos: StatisticsDatabase.from_documents(documents, VOCAB, eos),
    "D_m": lambda documents, eos: ModelDatabase.from_documents(documents, VOCAB, eos),
    "D_m, learned": learned,
}


def texts(eos: int | None) -> st.SearchStrategy[list[Ids]]:
    """Documents that repeat themselves."""
    ids = st.integers(0, VOCAB - 1).filter(lambda token: token != eos)
    part = st.lists(ids, min_size=1, max_size=12)
    return st.lists(st.builds(lambda ids, n: ids * n, part, st.integers(1, 3)), max_size=6)


@pytest.mark.parametrize("eos", [0, None])
@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_database_answers_any_context_as_a_dictionary_does(name: str, eos: int | None, data: st.DataObject) -> None:
    documents = data.draw(texts(eos))
    database = BUILDERS[name](documents, eos)
    arrays, followers = arrays_of(database), plain(documents, database.separator)
    other = data.draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=4).map(tuple))
    for context in {*followers, other}:
        assert answer(arrays, context) == followers.get(context, Counter())


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=10)
@given(data=st.data())
def test_saved_and_loaded_it_answers_the_same(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = data.draw(texts(0))
    folder: Path = tmp_path_factory.mktemp("database")
    database = BUILDERS[name](documents, 0)
    database.save_pretrained(folder)
    arrays = arrays_of(type(database).from_pretrained(folder))
    for context, following in plain(documents, 0).items():
        assert answer(arrays, context) == following


@settings(max_examples=40)
@given(texts(0), st.integers(1, 80))
def test_a_full_database_answers_as_a_dictionary_of_what_it_kept_does(documents: list[Ids], room: int) -> None:
    database = ModelDatabase(VOCAB, 0, capacity=room + 1)
    for document in documents:
        database.learn(document)
    kept = plain([document.tolist() for document in database.documents()], 0)
    for context, following in plain(documents, 0).items():
        assert answer(database.snapshot(), context) == kept.get(context, Counter()) <= following
