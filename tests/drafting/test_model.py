"""D_m: learning, forgetting, saving, sharing between threads."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.model import ModelDatabase
from hdraft.storage import DatabaseError

outputs = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=20), max_size=12)


def learned(database):
    return [ids.tolist() for ids in database.documents()]


def ngrams(array, separator, length=3):
    """How often each n-gram occurs, read through the index, so that the index is tested too."""
    counts = Counter()
    for position in array.suffixes.tolist():
        gram = array.tokens[position : position + length].tolist()
        if len(gram) == length and separator not in gram:
            counts[tuple(gram)] += 1
    return counts


def test_learning_adds_the_end_and_leaves_earlier_snapshots_alone():
    database = ModelDatabase(vocab_size=8, eos_token_id=0)
    database.learn([5, 6])
    _, before = database.snapshot()
    database.learn([5, 7, 0])
    _, after = database.snapshot()
    assert before.tokens.tolist() == [5, 6, 0]
    assert after.tokens.tolist() == [5, 6, 0, 5, 7, 0]
    assert after.suffixes.tolist() == [2, 5, 0, 3, 1, 4]
    assert after.starts.tolist() == [0, 2, 2, 2, 2, 2, 4, 5, 6, 6]
    assert not any(array.flags.writeable for array in after)


def test_an_empty_output_teaches_nothing():
    database = ModelDatabase(8, 0)
    database.learn([])
    database.learn([0])
    assert learned(database) == []


@pytest.mark.parametrize("ids", [[8], [-1], [1.5], [[1]]])
def test_wrong_ids_are_refused_and_teach_nothing(ids):
    database = ModelDatabase(8, 0)
    with pytest.raises(ValueError, match="token id"):
        database.learn(ids)
    assert learned(database) == []


@given(outputs, st.integers(2, 60))
def test_the_oldest_go_first_and_the_capacity_holds(documents, capacity):
    database = ModelDatabase(8, 0, capacity=capacity)
    for ids in documents:
        database.learn(ids)
        _, array = database.snapshot()
        assert len(array.tokens) <= capacity
        assert len(array.suffixes) == len(array.tokens) == array.starts[-1]
    kept = learned(database)
    expected = [ids[-(capacity - 1) :] for ids in documents]
    assert kept == expected[len(expected) - len(kept) :]
    if documents:
        assert kept
    anew = ModelDatabase.from_documents(kept, 8, 0)
    assert anew.suffixes.tolist() == database.snapshot()[1].suffixes.tolist()


@given(outputs, st.randoms(use_true_random=False))
def test_learning_in_any_order_keeps_the_counts(documents, random):
    counts = []
    for _ in range(2):
        database = ModelDatabase(8, 0)
        for ids in documents:
            database.learn(ids)
        counts.append(ngrams(database.snapshot()[1], 0))
        random.shuffle(documents)
    expected = Counter(tuple(ids[i : i + 3]) for ids in documents for i in range(len(ids) - 2))
    assert counts == [expected, expected]


@settings(max_examples=25)
@given(outputs, outputs)
def test_save_merges_what_was_learned_and_reload_loses_nothing(tmp_path_factory, stored, new):
    folder = tmp_path_factory.mktemp("database")
    database = ModelDatabase.from_documents(stored, 8, 0)
    for ids in new:
        database.learn(ids)
    database.save_pretrained(folder)
    opened = ModelDatabase.from_pretrained(folder, vocab_size=8, verify=True)
    assert learned(opened) == learned(database) == stored + new
    assert ngrams(opened, 0) == sum((ngrams(array, 0) for array in database.snapshot()), Counter())
    opened.save_pretrained(folder)
    assert learned(ModelDatabase.from_pretrained(folder)) == stored + new


def test_save_keeps_the_newest_that_fit():
    database = ModelDatabase.from_documents([[1, 1, 1], [2, 2, 2]], 8, 0)
    database.capacity = 4
    database.learn([3, 3, 3])
    assert database._to_save().tokens.tolist() == [2, 2, 2, 0, 3, 3, 3, 0]
    database.capacity = 12
    assert database._to_save().tokens.tolist() == [1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0]


def test_bounded_over_many_requests():
    """A million n-grams through a small database: memory is bounded, and the newest are there."""
    rng = np.random.default_rng(0)
    database = ModelDatabase(1000, 0, capacity=5000)
    for _ in range(2000):
        last = rng.integers(1, 1000, 500)
        database.learn(last)
    _, array = database.snapshot()
    assert 2500 < len(array.tokens) <= 5000
    assert sum(part.nbytes for part in array) <= 5000 * 6 + 4 * 1002
    assert learned(database)[-1] == last.tolist()


def test_threads_learn_while_others_read():
    database = ModelDatabase(100, 0, capacity=3000)
    stop = threading.Event()
    failures = []

    def read():
        while not stop.is_set():
            _, array = database.snapshot()
            n = len(array.tokens)
            if not (len(array.suffixes) == n == array.starts[-1] and (n == 0 or array.suffixes.max() == n - 1)):
                failures.append(n)

    def teach(seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            database.learn(rng.integers(1, 100, 50))

    readers = [threading.Thread(target=read) for _ in range(2)]
    teachers = [threading.Thread(target=teach, args=(seed,)) for seed in range(6)]
    for thread in readers + teachers:
        thread.start()
    for thread in teachers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert all(len(ids) == 50 for ids in learned(database))


def test_a_stored_database_with_corrupt_tokens_is_not_saved_over_a_good_one(tmp_path):
    database = ModelDatabase.from_documents([[1, 2, 3]], 8, 0)
    database.save_pretrained(tmp_path)
    database.tokens = np.array([1, 2000, 3, 0], np.uint16)
    database.learn([4, 5])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        database.save_pretrained(tmp_path)
    assert learned(ModelDatabase.from_pretrained(tmp_path, verify=True)) == [[1, 2, 3]]


def test_kinds_are_not_mixed_up(tmp_path):
    from hdraft.drafting.statistics import StatisticsDatabase

    StatisticsDatabase.from_tokens([1, 0], 8, 0).save_pretrained(tmp_path)
    with pytest.raises(DatabaseError, match="is a statistics database where a model database is needed"):
        ModelDatabase.from_pretrained(tmp_path)
    with pytest.raises(DatabaseError, match="choose another folder"):
        ModelDatabase(8, 0).save_pretrained(tmp_path)
