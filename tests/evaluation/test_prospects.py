"""Whether a database will pay: by a text like those to come, or by its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.evaluation.prospects import Foresight, foresee, measure, verdict
from hdraft.evaluation.traces import TraceError

VOCAB = 400


def random_text(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, n).tolist()


def save(folder: Path, documents: list[list[int]], cls: type[ModelDatabase | StatisticsDatabase]) -> Path:
    cls.from_documents(documents, VOCAB, 0).save_pretrained(folder)
    return folder


def trace(path: Path, outputs: list[list[int]]) -> Path:
    records = [{"id": i, "category": "a", "prompt_ids": [1], "output_ids": ids} for i, ids in enumerate(outputs)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("cls", [ModelDatabase, StatisticsDatabase])
def test_a_database_of_what_is_written_pays_and_of_other_text_does_not(
    tmp_path: Path, cls: type[ModelDatabase | StatisticsDatabase]
) -> None:
    outputs = [random_text(seed, 60) for seed in range(8)]
    against = trace(tmp_path / "trace.jsonl", outputs)
    good = measure(save(tmp_path / "good", outputs, cls), against)
    other = measure(save(tmp_path / "other", [random_text(100, 400)], cls), against)
    assert good["tokens"] == other["tokens"] == 480
    assert good["with"]["mat"] > 2 * good["without"]["mat"]
    assert all(good["with"]["speedups"][curve] > good["without"]["speedups"][curve] for curve in ("gpu", "cpu"))
    assert good["without"] == other["without"]
    assert "it pays: +" in verdict(good) and "no difference" in verdict(other)


def test_a_plain_text_is_cut_into_requests(small: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small["model"])
    text = tmp_path / "text.txt"
    text.write_text("def area(width, height):\n    return width * height\n" * 30)
    figures = measure(small["statistics_database"], text, tokenizer)
    ids = tokenizer(text.read_text())["input_ids"]
    assert figures["tokens"] == len(ids) - 128
    with pytest.raises(ValueError, match="give --tokenizer"):
        measure(small["statistics_database"], text)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "D_m", [[1, 2, 3]], ModelDatabase)
    with pytest.raises(ValueError, match="outside the database's vocabulary"):
        measure(folder, trace(tmp_path / "trace.jsonl", [[VOCAB]]))
    with pytest.raises(TraceError, match="no text"):
        measure(folder, trace(tmp_path / "none.jsonl", []))


def test_text_that_repeats_itself_foresees_itself_and_other_text_does_not() -> None:
    phrases = [random_text(seed, 12) for seed in range(20)]
    draw = np.random.default_rng(0)
    repeated = [[token for index in draw.integers(0, 20, 10) for token in phrases[index]] for _ in range(40)]
    much = foresee(StatisticsDatabase.from_documents(repeated, VOCAB, 0))
    little = foresee(StatisticsDatabase.from_documents([random_text(1, 5000)], VOCAB, 0))
    assert much.known > 0.7 and much.right > 0.7 and "repeats itself much" in str(much)
    assert little.known < 0.1 and "hardly repeats itself" in str(little)
    assert much.bits < 1.5


def test_a_place_does_not_foresee_itself() -> None:
    only = foresee(ModelDatabase.from_documents([random_text(3, 300)], VOCAB, 0))
    assert only.known < 0.05


@pytest.mark.parametrize("documents", [[], [[1]], [[1, 2]]])
def test_a_database_too_small_says_so(documents: list[list[int]]) -> None:
    assert "too small" in str(foresee(ModelDatabase.from_documents(documents, VOCAB, 0)))


def test_words_follow_the_figures() -> None:
    assert "somewhat" in str(Foresight(1000, 0.5, 0.5, 2.0))
    assert "50% have 3 tokens" in str(Foresight(1000, 0.5, 0.5, 2.0))
