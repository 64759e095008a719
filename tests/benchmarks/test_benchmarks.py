"""The benchmarks of the evaluation, on a trace of a few requests, and the tool that measures a cost curve."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import BENCHMARKS, load, run
from tiny_model import save_tiny_model

from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.costs import CURVES, cost_curve
from hdraft.evaluation.traces import Request, read_traces

budget, calibration, first_requests = load("budget"), load("calibration"), load("first_requests")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Requests of a repeated phrase, and requests of nothing that repeats."""
    path = tmp_path / "trace.jsonl"
    requests = [
        {"id": str(i), "category": "easy", "prompt_ids": [1, 2, 3, 4], "output_ids": [1, 2, 3, 4] * 8}
        if i % 2
        else {
            "id": str(i),
            "category": "hard",
            "prompt_ids": [],
            "output_ids": [(7 * j * j + i) % 50 for j in range(20)],
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


@pytest.fixture
def trace(path: Path) -> list[Request]:
    return read_traces([path])


def test_the_rule_against_fixed_budgets(trace: list[Request]) -> None:
    made: list[HierarchyDrafter] = []

    def new_drafter() -> HierarchyDrafter:
        made.append(HierarchyDrafter(50, learn=True))
        return made[-1]

    figures: dict[str, Any] = budget.compare(trace, new_drafter, budgets=(1, 4, 8))
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures) == list(CURVES)
    assert len(set(map(id, made))) == len(made) >= 3 + 2 * len(CURVES)
    for curve, results in figures.items():
        assert list(results["categories"]) == ["all", "hard", "easy"]
        overall = str(results["categories"]["all"]["best_fixed"])
        for row in results["categories"].values():
            assert set(row["fixed"]) == {"1", "4", "8"}
            assert row["fixed"][str(row["best_fixed"])] == max(row["fixed"].values())
            assert row["to_best"] == row["rule"] / max(row["fixed"].values())
            assert row["to_best_overall"] == row["rule"] / row["fixed"][overall] >= row["to_best"]
            # what a step costs is at least what an ordinary one does, and at most what the largest tree does
            assert row["rule"] <= row["mat"] <= row["rule"] * cost_curve(curve, 8)[-1] / cost_curve(curve, 8)[0] + 1e-9
        assert list(results["random"]) == ["mat", "drafted_per_step", "predicted_speedup", "microseconds"]
    gpu = figures["gpu"]["categories"]["all"]
    assert gpu["best_fixed"] == 8 and gpu["to_best"] == pytest.approx(1, abs=0.02)  # eight draft tokens are free


def test_random_tokens_are_the_same_every_time() -> None:
    once, again = budget.random_trace(30, 2, 5, 9), budget.random_trace(30, 2, 5, 9)
    assert [request.output_ids.tolist() for request in once] == [request.output_ids.tolist() for request in again]
    assert len(once) == 2 and len(once[0].prompt_ids) == 5 and len(once[0].output_ids) == 9
    assert max(request.largest_id for request in once) < 30


def test_budget_as_a_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(budget, monkeypatch, path, "--budgets", 4, "--json", tmp_path / "budget.json")
    assert list(json.loads((tmp_path / "budget.json").read_text())["curves"]) == list(CURVES)
    out = capsys.readouterr().out
    assert "cost curve gpu" in out and "random tokens" in out
    with pytest.raises(SystemExit, match="no folder"):
        run(budget, monkeypatch, path, "--json", tmp_path / "none" / "budget.json")
    with pytest.raises(SystemExit, match=r"none.jsonl"):
        run(budget, monkeypatch, tmp_path / "none.jsonl")


def test_first_requests_as_a_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "D_s"
    StatisticsDatabase.from_documents([[1, 2, 3, 4] * 8], 50, 0).save_pretrained(folder)
    figures = tmp_path / "first.json"
    run(first_requests, monkeypatch, path, "--vocab-size", 50, "--statistics-database", folder, "--json", figures)
    assert "as shipped" in capsys.readouterr().out
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == 2 * 2 * len(first_requests.BUDGETS)
    assert all(1 < row[kind] < 8 for row in rows for kind in ("formula", "shipped"))
    assert any(row["formula"] != row["shipped"] for row in rows)
    assert {row["budget"] for row in rows if row["databases"] == "all"} == set(first_requests.BUDGETS)


def test_calibration_as_a_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(calibration, monkeypatch, path, "--json", tmp_path / "calibration.json")
    record = json.loads((tmp_path / "calibration.json").read_text())
    assert record["budget"] == 64 and record["learn"] and record["machine"]["processor"]
    assert list(record["categories"]) == ["all", "hard", "easy"]
    everything = record["categories"]["all"]
    assert everything["tokens"] == sum(row["count"] for row in everything["bins"]) > 0
    assert f"easy: expected calibration error {record['categories']['easy']['error']:.4f}" in capsys.readouterr().out


def test_a_plot(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    run(calibration, monkeypatch, path, "--plot", tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_is_refused_before_the_work(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for plot, says in (
        (tmp_path / "plot.png", r"--plot needs matplotlib: pip install 'hdraft\[plots\]'"),
        (tmp_path / "plot.txt", r"must end in .png, .svg or .pdf"),
        (tmp_path / "none" / "plot.png", "no folder"),
    ):
        with pytest.raises(SystemExit, match=says):
            run(calibration, monkeypatch, path, "--plot", plot)


def test_a_measured_curve_can_be_replayed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = save_tiny_model(tmp_path / "model"), tmp_path / "costs.json"
    run(
        load("measure_costs", BENCHMARKS.with_name("tools")),
        monkeypatch,
        "--model",
        model,
        "--runs",
        2,
        "--output",
        output,
    )
    record = json.loads(output.read_text())
    assert record["runs"] == 2 and record["model"] == str(model) and record["machine"]["threads"] >= 1
    costs = cost_curve(output, 64)
    assert costs[0] > 0 and (costs[1:] >= costs[:-1]).all()


def test_lossless_compares_with_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lossless: ModuleType = load("lossless")
    monkeypatch.setitem(lossless.os.environ, "HDRAFT_DEVICE", "cpu")
    monkeypatch.setattr(lossless.sys, "path", list(sys.path))
    lossless.sys.path.insert(0, str(lossless.TESTS))
    architectures = lossless.import_module("architectures")
    monkeypatch.setattr(architectures, "FAMILIES", {"llama": architectures.FAMILIES["llama"]})
    monkeypatch.setattr(architectures, "UNLISTED", {})
    steps = ("--steps", "dynamic", "static")
    run(lossless, monkeypatch, *steps, "--json", tmp_path / "lossless.json")
    record = json.loads((tmp_path / "lossless.json").read_text())
    assert record["summary"] == "4 of 4 outputs of 1 families are those of model.generate"
    assert all(row["identical"] and row["passes"] < 40 for row in record["families"]["llama"])
    monkeypatch.setattr(lossless, "generate", lambda model, ids, *rest, **options: ids.repeat(1, 3))
    with pytest.raises(SystemExit, match="outputs that differ"):
        run(lossless, monkeypatch, *steps, "--json", tmp_path / "lossless.json")
    assert "0 of 4 outputs" in (tmp_path / "lossless.json").read_text()
