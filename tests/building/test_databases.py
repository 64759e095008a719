"""Files to databases on disk."""

import json

import numpy as np
import pytest

from hdraft.building import BuildError, build_model, build_statistics
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.storage import DatabaseError


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"ids": [5, 6, 5, 7]}\n{"output_ids": [5, 6]}\n')
    return tmp_path / "corpus.jsonl"


@pytest.mark.parametrize(("build", "kind"), [(build_statistics, StatisticsDatabase), (build_model, ModelDatabase)])
def test_built_is_what_opens(tmp_path, corpus, build, kind):
    calls = []
    built = build([corpus], tmp_path / "out", vocab_size=8, eos_token_id=0, progress=lambda *call: calls.append(call))
    opened = kind.from_pretrained(tmp_path / "out", vocab_size=8, verify=True)
    for database in (built, opened):
        assert type(database) is kind
        assert database.tokens.tolist() == [5, 6, 5, 7, 0, 5, 6, 0]
        assert database.array.suffixes.tolist() == [4, 7, 5, 0, 2, 6, 1, 3]
    assert [call[0] for call in calls] == ["reading", "sorting", "sorting"]
    assert calls[-1] == ("sorting", 8, 8)


def test_a_failure_leaves_the_old_database(tmp_path, corpus):
    build_statistics(corpus, tmp_path / "out", vocab_size=8, eos_token_id=0)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"ids": [1]}\n{"ids": [1')
    with pytest.raises(BuildError, match=r"broken.jsonl:2: not valid JSON"):
        build_statistics([corpus, broken], tmp_path / "out", vocab_size=8, eos_token_id=0)
    assert len(StatisticsDatabase.from_pretrained(tmp_path / "out", verify=True).tokens) == 8


def test_the_output_is_checked_before_the_work(tmp_path, corpus):
    with pytest.raises(DatabaseError, match="not empty and not a database"):
        build_statistics(tmp_path / "missing.jsonl", tmp_path, vocab_size=8)
    build_model(corpus, tmp_path / "out", vocab_size=8)
    with pytest.raises(DatabaseError, match="holds no statistics database but another"):
        build_statistics(tmp_path / "missing.jsonl", tmp_path / "out", vocab_size=8)


def test_a_vocabulary_is_needed(tmp_path, corpus):
    with pytest.raises(BuildError, match="give a tokenizer, or the vocabulary's size"):
        build_statistics(corpus, tmp_path / "out")


def test_ids_come_out_as_they_went_in(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 100_000, rng.integers(1, 50)).tolist() for _ in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in documents))
    build_statistics(tmp_path / "a.jsonl", tmp_path / "out", vocab_size=100_000, eos_token_id=0)
    opened = StatisticsDatabase.from_pretrained(tmp_path / "out")
    assert [ids.tolist() for ids in opened.documents()] == documents
