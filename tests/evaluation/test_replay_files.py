"""`replay_files`: what `hdraft replay` does, from files to figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.evaluation.replay import replay_files

TEXT = [5, 6, 7, 8, 9, 4, 3] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace, and databases for it: D_m, D_s, one of another vocabulary and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("replay")
    requests = [
        {
            "id": str(i),
            "category": category,
            "prompt_ids": [1, 2],
            "output_ids": [10 + i % 3, 11, 12, 13, 14, 15, 16, 0],
        }
        for i, category in enumerate(("qa", "rag") * 5)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    ModelDatabase.from_documents([TEXT], 20, 0, "one").save_pretrained(folder / "D_m")
    StatisticsDatabase.from_tokens([10, 11, 12, 0], 20, 0, "one").save_pretrained(folder / "D_s")
    StatisticsDatabase.from_tokens(TEXT, 15, 0, "one").save_pretrained(folder / "small")
    StatisticsDatabase.from_tokens(TEXT, 20, 0, "two").save_pretrained(folder / "other")
    return folder


@pytest.fixture
def databases(folder: Path) -> dict[str, Path]:
    return {"model_database": folder / "D_m", "statistics_database": folder / "D_s"}


def test_the_defaults_learn_and_fill_the_budget(folder: Path, databases: dict[str, Path]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    figures = replay_files([folder / "trace.jsonl"], **databases)
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures) == ["settings", "machine", "categories", "microseconds"]
    assert figures["settings"] == {
        "traces": [str(folder / "trace.jsonl")],
        "method": "hd",
        "budget": 64,
        "model_database": str(folder / "D_m"),
        "statistics_database": str(folder / "D_s"),
        "learn": True,
        "adaptive": False,
        "cost": None,
    }
    assert list(figures["categories"]) == ["all", "qa", "rag"]
    assert list(figures["categories"]["qa"]) == ["mat", "steps", "tokens", "drafted_per_step", "accepted_share"]
    forgetful = replay_files([folder / "trace.jsonl"], **databases, learn=False)
    assert not forgetful["settings"]["learn"]
    assert figures["categories"]["all"]["mat"] > forgetful["categories"]["all"]["mat"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_budget_rule_decides_only_if_adaptive(folder: Path, tmp_path: Path, databases: dict[str, Path]) -> None:
    steep = tmp_path / "steep.json"
    steep.write_text(json.dumps([1, *range(50, 114)]))
    trace = [folder / "trace.jsonl"]
    plain, fixed = replay_files(trace, **databases), replay_files(trace, **databases, cost=steep)
    rule = replay_files(trace, **databases, cost=steep, adaptive=True)
    fewer = [figures["categories"]["all"]["drafted_per_step"] for figures in (plain, fixed, rule)]
    assert fewer[0] == fewer[1] > fewer[2] == 0
    assert rule["categories"]["all"]["predicted_speedup"] == 1
    assert fixed["categories"]["qa"]["predicted_speedup"] < 1
    assert "predicted_speedup" not in plain["categories"]["all"]
    assert rule["settings"]["adaptive"] and rule["settings"]["cost"] == str(steep)


def test_adaptive_is_for_the_idealised_accelerator_by_default(folder: Path) -> None:
    figures = replay_files([folder / "trace.jsonl"], adaptive=True)
    assert figures["settings"]["cost"] == "gpu"
    score = figures["categories"]["all"]
    assert score["predicted_speedup"] == score["mat"]  # 64 draft tokens are free


@pytest.mark.parametrize(
    ("given", "order"),
    [((), "W"), (("model_database",), "WS"), (("statistics_database",), "WL"), (None, "WSL")],
)
def test_the_published_order_is_what_there_is_to_ask(
    folder: Path, databases: dict[str, Path], given: tuple[str, ...] | None, order: str
) -> None:
    named = {name: path for name, path in databases.items() if given is None or name in given}
    figures = replay_files([folder / "trace.jsonl"], "published", **named, ngram_size=4)
    settings = figures["settings"]
    asked = {"order": order, "ngram_size": 4, "guess": 7, "previous_tokens": 2}
    assert {name: settings[name] for name in asked} == asked
    assert not settings["learn"] and not settings["adaptive"]
    if order == "WSL":  # and it is asked
        assert figures["categories"]["all"]["accepted_share"]["statistics"] > 0


def test_several_traces_are_one(folder: Path) -> None:
    once, twice = (replay_files([folder / "trace.jsonl"] * n, "pld")["categories"]["all"] for n in (1, 2))
    assert twice["tokens"] == 2 * once["tokens"] == 160


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("magic", {}, "no method 'magic': there are hd, retrieval, published, pld, rest"),
        ("pld", {"order": "W"}, "--order is for published, not for pld: leave it out"),
        ("hd", {"ngram_size": 3}, "--ngram-size is for published, not for hd"),
        ("hd", {"guess": 3}, "--guess is for published"),
        ("rest", {"statistics_database": "D_s", "previous_tokens": 3}, "--previous-tokens is for published"),
        ("rest", {"statistics_database": "D_s", "model_database": "D_m"}, "is for hd and retrieval and published"),
        ("pld", {"statistics_database": "D_s"}, "is for hd and retrieval and published and rest, not for"),
        ("published", {"learn": True}, "--learn is for hd and retrieval, not for published"),
        ("pld", {"adaptive": True}, "--adaptive is for hd, not for pld"),
        ("rest", {}, "REST drafts from D_s: give --statistics-database"),
        ("published", {"order": "WS"}, "--order WS asks S: give --model-database"),
        ("published", {"order": "W", "statistics_database": "D_s"}, "--order W does not ask L: leave out --statistics"),
        ("published", {"order": "XYZ"}, "order must be some of the letters W, S and L"),
        ("published", {"order": "xyz", "model_database": "D_m"}, "order must be some of the letters W, S and L"),
        ("published", {"previous_tokens": 3}, "--previous-tokens is for asking L"),
        ("published", {"ngram_size": 1}, "ngram_size must be at least 2"),
        ("hd", {"budget": -1}, "the budget is -1: it must be at least 0"),
        ("hd", {"cost": "tpu"}, "no cost curve tpu"),
        ("hd", {"cost": "cpu-measured", "budget": 65}, "cpu-measured ends at 64 draft tokens"),
        ("hd", {"model_database": "nothing"}, "nothing"),
        ("hd", {"model_database": "D_s"}, "D_s"),
        ("hd", {"statistics_database": "small"}, "request 0: token id 16 is outside the drafter's vocabulary of 15"),
        ("rest", {"statistics_database": "small"}, "token id 16 is outside"),
        ("hd", {"model_database": "D_m", "statistics_database": "small"}, "vocabulary of 20 ids and .* one of 15"),
        ("hd", {"model_database": "D_m", "statistics_database": "other"}, "are of different tokenizers"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, method: str, options: dict[str, Any], says: str) -> None:
    for name in ("model_database", "statistics_database"):
        if name in options:
            options = {**options, name: folder / options[name]}
    with pytest.raises(ValueError, match=says) as caught:
        replay_files([folder / "trace.jsonl"], method, **options)
    assert "\n" not in str(caught.value)


def test_what_holds_for_every_method_may_be_said(folder: Path) -> None:
    replay_files([folder / "trace.jsonl"], "pld", learn=False, adaptive=False)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"no requests in .*empty.jsonl"):
        replay_files([tmp_path / "empty.jsonl"])


def test_a_budget_of_nothing_is_ordinary_decoding(folder: Path) -> None:
    score = replay_files([folder / "trace.jsonl"], budget=0, cost="cpu")["categories"]["all"]
    assert score["mat"] == score["predicted_speedup"] == 1 and score["drafted_per_step"] == 0
    assert np.isfinite(list(score["accepted_share"].values())).all()
