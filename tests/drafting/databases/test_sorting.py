"""The suffix sort against a plain one on Python tuples, and the operations that keep an array sorted."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdraft.drafting.databases.sorting import DEPTH, append, build, drop_oldest
from hdraft.drafting.databases.suffixes import SuffixArray

VOCAB = 6


def reference(tokens, separator):
    """Positions in the order of what begins there, to `DEPTH` tokens or the first separator; slow and plain."""

    def text(position):
        read = tokens[position : position + DEPTH]
        return read[: read.index(separator) + 1] if separator in read else read

    return sorted(range(len(tokens)), key=lambda position: text(position))


def check(array: SuffixArray, tokens, separator):
    assert array.tokens.tolist() == tokens
    assert array.suffixes.tolist() == reference(tokens, separator)
    counts = np.bincount(tokens, minlength=VOCAB + 1) if tokens else np.zeros(VOCAB + 1, int)
    assert array.starts.tolist() == [0, *np.cumsum(counts).tolist()]
    assert not any(part.flags.writeable for part in array)


separators = st.sampled_from([0, 3, 5, VOCAB])
dtypes = st.sampled_from([np.uint16, np.uint32])


@st.composite
def texts(draw, separator, max_documents=8):
    """Documents that repeat themselves and each other, each ended by the separator."""
    ids = st.integers(0, VOCAB - 1).filter(lambda token: token != separator)
    document = st.lists(ids, max_size=12).flatmap(lambda part: st.integers(1, 5).map(lambda n: part * n))
    documents = draw(st.lists(document, max_size=max_documents))
    return [token for ids in documents for token in [*ids, separator]]


@given(st.data(), separators, dtypes)
def test_build_sorts_like_the_reference(data, separator, dtype):
    tokens = data.draw(texts(separator))
    check(build(np.array(tokens, dtype), VOCAB, separator), tokens, separator)


@given(st.data(), separators, dtypes)
def test_append_and_drop_are_building_anew(data, separator, dtype):
    old, new = data.draw(texts(separator)), data.draw(texts(separator))
    array = append(build(np.array(old, dtype), VOCAB, separator), np.array(new, dtype), separator)
    check(array, old + new, separator)
    ends = [0, *(end + 1 for end, token in enumerate(old + new) if token == separator)]
    cut = data.draw(st.sampled_from(ends))
    check(drop_oldest(array, cut), (old + new)[cut:], separator)


def test_merge_sort_of_large_runs():
    """Runs longer than an insertion sort's, with keys that need every byte."""
    rng = np.random.default_rng(0)
    tokens = rng.choice([1, 255, 256, 65000], 5000).astype(np.uint16)
    tokens[rng.integers(0, 5000, 300)] = 7
    tokens[-1] = 7
    array = build(tokens, 65001, 7)
    assert array.suffixes.tolist() == reference(tokens.tolist(), 7)
    assert build(tokens.astype(np.uint32), 65001, 7).suffixes.tolist() == array.suffixes.tolist()


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="outside the vocabulary of 6 ids"):
        build(np.array([1, 7, 0], np.uint16), VOCAB, 0)


@pytest.mark.parametrize("period", [1, 2, 17])
def test_repetitive_text_is_no_worst_case(period):
    build(np.zeros(1, np.uint16), 100, 0)  # compiled
    tokens = (np.arange(400_000) % period + 1).astype(np.uint16)
    tokens[-1] = 0
    began = time.process_time()
    array = build(tokens, 100, 0)
    assert time.process_time() - began < 20
    assert sorted(array.suffixes[:1000].tolist()) == sorted(set(array.suffixes[:1000].tolist()))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["suffixes", "starts"]))
def test_corrupt_arrays_do_not_crash(seed, name):
    """Arrays of the right size that hold nonsense give nonsense, not a fault."""
    good = build(np.array([1, 2, 3, 1, 2, 0] * 50, np.uint16), VOCAB, 0)
    nonsense = np.random.default_rng(seed).integers(0, 2**32, len(getattr(good, name)), dtype=np.uint32)
    nonsense.flags.writeable = False
    bad = good._replace(**{name: nonsense})
    append(bad, np.array([1, 2, 0], np.uint16), 0)
    drop_oldest(bad, 6)
