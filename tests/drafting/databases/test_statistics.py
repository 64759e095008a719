"""D_s: building in memory, saving, opening, refusing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.storage import DatabaseError

TOKENS = [5, 6, 5, 7, 0, 5, 6, 0]


def arrays(database):
    return [database.tokens.tolist(), database.array.suffixes.tolist(), database.array.starts.tolist()]


def test_from_tokens_is_sorted_and_read_only():
    database = StatisticsDatabase.from_tokens(TOKENS, vocab_size=8, eos_token_id=0)
    assert arrays(database) == [TOKENS, [4, 7, 5, 0, 2, 6, 1, 3], [0, 2, 2, 2, 2, 2, 5, 7, 8, 8]]
    assert database.separator == 0
    assert [ids.tolist() for ids in database.documents()] == [[5, 6, 5, 7], [5, 6]]
    with pytest.raises(ValueError, match="read-only"):
        database.tokens[0] = 1


def test_a_missing_last_end_is_added():
    assert arrays(StatisticsDatabase.from_tokens(TOKENS[:-1], 8, 0)) == arrays(
        StatisticsDatabase.from_tokens(TOKENS, 8, 0)
    )


def test_without_an_end_of_sequence_id_the_separator_is_the_vocabulary_size():
    database = StatisticsDatabase.from_documents([[5, 0], [], [7]], vocab_size=8)
    assert database.separator == 8
    assert database.tokens.tolist() == [5, 0, 8, 7, 8]
    assert len(database.array.starts) == 10


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(vocab_size, dtype):
    database = StatisticsDatabase.from_tokens([vocab_size - 1], vocab_size)
    assert database.tokens.dtype == dtype
    assert database.tokens.tolist() == [vocab_size - 1, vocab_size]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 8], "token id 8 is outside the vocabulary of 8 ids"),
        ([-1, 2], "token id -1 is outside"),
        ([2**70], "integers"),
        ([1.0, 2.0], "integers"),
        ([[1, 2]], "integers"),
    ],
)
def test_wrong_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        StatisticsDatabase.from_tokens(tokens, vocab_size=8, eos_token_id=0)


@pytest.mark.parametrize(("vocab_size", "eos"), [(0, None), (8, 8), (8, -1), (2**31, None)])
def test_wrong_vocabularies_are_refused(vocab_size, eos):
    with pytest.raises(ValueError, match=r"vocab_size|eos_token_id"):
        StatisticsDatabase(vocab_size, eos)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9), max_size=40), st.sampled_from([None, 0, 9]), st.sampled_from([10, 70_000]))
def test_save_and_load_change_nothing(tmp_path_factory, tokens, eos, vocab_size):
    folder = tmp_path_factory.mktemp("database")
    database = StatisticsDatabase.from_tokens(tokens, vocab_size, eos, tokenizer="a fingerprint")
    database.save_pretrained(folder)
    opened = StatisticsDatabase.from_pretrained(folder, verify=True)
    assert arrays(opened) == arrays(database)
    assert [array.dtype for array in opened._to_save()] == [array.dtype for array in database._to_save()]
    assert (opened.vocab_size, opened.eos_token_id, opened.tokenizer) == (vocab_size, eos, "a fingerprint")
    assert not any(array.flags.writeable for array in opened._to_save())
    assert all(type(array) is np.ndarray for array in opened._to_save())


def test_a_database_for_another_model_is_refused(tmp_path):
    StatisticsDatabase.from_tokens(TOKENS, 8, 0, tokenizer="one").save_pretrained(tmp_path / "with")
    StatisticsDatabase.from_tokens(TOKENS, 8, 0).save_pretrained(tmp_path / "without")
    with pytest.raises(DatabaseError, match="another tokenizer: build it again"):
        StatisticsDatabase.from_pretrained(tmp_path / "with", tokenizer="two")
    for name in ("with", "without"):
        with pytest.raises(DatabaseError, match="a vocabulary of 8 ids, not 9"):
            StatisticsDatabase.from_pretrained(tmp_path / name, vocab_size=9)
    with pytest.raises(DatabaseError, match="not 9"):
        StatisticsDatabase.from_pretrained(tmp_path / "without", tokenizer="one", vocab_size=9)
    # The tokenizer is the same: the model merely has ids to spare.
    StatisticsDatabase.from_pretrained(tmp_path / "with", tokenizer="one", vocab_size=9)
