"""D_m: learning, forgetting, saving, sharing between threads."""

import errno
import os
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases import storage
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.storage import DatabaseError

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
    assert anew.array.suffixes.tolist() == database.snapshot()[1].suffixes.tolist()


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
    assert ngrams(opened.array, 0) == sum((ngrams(array, 0) for array in database.snapshot()), Counter())
    opened.save_pretrained(folder)
    assert learned(ModelDatabase.from_pretrained(folder)) == stored + new


def test_save_keeps_the_newest_that_fit():
    database = ModelDatabase.from_documents([[1, 1, 1], [2, 2, 2]], 8, 0)
    database.capacity = 4
    database.learn([3, 3, 3])
    assert database._to_save().tokens.tolist() == [2, 2, 2, 0, 3, 3, 3, 0]
    database.capacity = 12
    assert database._to_save().tokens.tolist() == [1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0]


def test_a_million_requests_take_no_more_room_than_the_capacity_and_the_newest_are_kept():
    """Request i writes the digits of i; they come in lots of 200, the last 10,000 one by one."""
    requests, capacity = np.arange(1_000_000), 20_000
    digits = np.stack([requests // 10_000, requests // 100 % 100, requests % 100], 1).astype(np.uint16) + 1
    outputs = np.hstack([digits, digits, digits, np.zeros((len(digits), 1), np.uint16)])
    database = ModelDatabase(101, 0, capacity=capacity)
    room = capacity * (2 + 4) + 4 * 103
    lots = [*np.split(outputs[:-10_000], 99 * 50), *outputs[-10_000:]]
    compiled = ModelDatabase(101, 0, capacity=capacity)
    for lot in lots[:30]:  # enough to drop some: what is compiled, or loaded, takes memory of its own
        compiled.learn(lot.ravel())
    tracemalloc.start()
    for lot in lots:
        database.learn(lot.ravel())
        _, array = database.snapshot()
        assert len(array.tokens) == len(array.suffixes) <= capacity
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(part.nbytes for part in array) <= room
    assert peak < 4 * room  # the old array, the new one, and what sorting needs
    kept = len(array.tokens) // 10
    assert capacity * 0.9 < 10 * kept
    assert array.tokens.reshape(kept, 10).tolist() == outputs[-kept:].tolist()


def test_learning_saving_and_reopening_over_and_over_takes_no_more_room_than_the_capacity(tmp_path):
    database = ModelDatabase(100, 0, capacity=100)
    for request in range(30):
        database.learn([request + 1] * 9)
        database.learn([request + 2] * 9)
        database.save_pretrained(tmp_path)
        if request % 3 == 0:
            database = ModelDatabase.from_pretrained(tmp_path)
            database.capacity = 100
            assert len(database.tokens) <= 100
    assert learned(ModelDatabase.from_pretrained(tmp_path)) == [[i + j] * 9 for i in range(26, 31) for j in (0, 1)]


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
    database.array = database.array._replace(tokens=np.array([1, 2000, 3, 0], np.uint16))
    database.learn([4, 5])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        database.save_pretrained(tmp_path)
    assert learned(ModelDatabase.from_pretrained(tmp_path, verify=True)) == [[1, 2, 3]]


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (os, "replace"), (storage._Hashed, "write")])
def test_a_save_that_fails_leaves_the_old_database_and_what_was_learned(tmp_path, monkeypatch, where, name):
    """Each call of it fails once: the first array's, …, the manifest's."""
    ModelDatabase.from_documents([[1, 2, 3]], 8, 0).save_pretrained(tmp_path)
    database = ModelDatabase.from_pretrained(tmp_path)
    database.learn([4, 5])
    real = getattr(where, name)
    for working in range(100):
        calls = iter(range(working))

        def fails(*arguments, calls=calls, **keywords):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **keywords)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(where, name, fails)
                database.save_pretrained(tmp_path)
            break
        except DatabaseError as error:
            assert "the disk is full" in str(error)
        on_disk = learned(ModelDatabase.from_pretrained(tmp_path, verify=True))
        assert on_disk == [[1, 2, 3]] or (on_disk == [[1, 2, 3], [4, 5]] and name == "fsync")  # the folder's own
        assert learned(database) == [[1, 2, 3], [4, 5]]
    assert 3 < working < 100
    assert learned(ModelDatabase.from_pretrained(tmp_path, verify=True)) == [[1, 2, 3], [4, 5]]


def test_a_database_saved_over_the_folder_it_is_mapped_from_goes_on(tmp_path):
    ModelDatabase.from_documents([[1, 2, 3]], 8, 0).save_pretrained(tmp_path)
    database = ModelDatabase.from_pretrained(tmp_path)
    for ids in ([4, 5], [6, 7]):
        database.learn(ids)
        database.save_pretrained(tmp_path)
        assert learned(ModelDatabase.from_pretrained(tmp_path, verify=True)) == learned(database)
    assert learned(database) == [[1, 2, 3], [4, 5], [6, 7]]


def test_kinds_are_not_mixed_up(tmp_path):
    from hdraft.drafting.databases.statistics import StatisticsDatabase

    StatisticsDatabase.from_tokens([1, 0], 8, 0).save_pretrained(tmp_path)
    with pytest.raises(DatabaseError, match="is a statistics database where a model database is needed"):
        ModelDatabase.from_pretrained(tmp_path)
    with pytest.raises(DatabaseError, match="choose another folder"):
        ModelDatabase(8, 0).save_pretrained(tmp_path)


def test_anew_it_holds_what_is_stored_and_nothing_learned() -> None:
    database = ModelDatabase.from_tokens([5, 6, 7, 0], 100, eos_token_id=0)
    database.learn([8, 9, 10])
    other = database.anew()
    assert [document.tolist() for document in other.documents()] == [[5, 6, 7]]
    other.learn([11, 12, 13])
    assert [document.tolist() for document in database.documents()] == [[5, 6, 7], [8, 9, 10]]
    assert other.fits(database)
