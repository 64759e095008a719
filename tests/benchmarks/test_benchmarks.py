"""The benchmarks of the evaluation, on a trace of a few requests, and the tool that measures a cost curve."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import BENCHMARKS, load, run
from tiny_model import save_tiny_model

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.costs import CURVES, cost_curve
from hdraft.evaluation.traces import Request, read_traces

budget, calibration, first_requests = load("budget"), load("calibration"), load("first_requests")
more_text = load("more_text")


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


def test_more_text_as_a_command(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [[1, 2, 3, 4], *([10 + i, 20 + i, 30 + i] for i in range(7))]
    StatisticsDatabase.from_documents(documents[1:] + documents[:1], 50, 0).save_pretrained(tmp_path / "D_s")
    ModelDatabase.from_documents(documents, 50, 0).save_pretrained(tmp_path / "D_m")
    figures = tmp_path / "more.json"
    databases = ("--model-database", tmp_path / "D_m", "--statistics-database", tmp_path / "D_s")
    run(more_text, monkeypatch, path, "--vocab-size", 50, *databases, "--json", figures)
    other = path.rename(tmp_path / "other.jsonl")
    run(more_text, monkeypatch, other, "--vocab-size", 50, *databases, "--json", figures)
    traces = json.loads(figures.read_text())["traces"]
    assert list(traces) == ["trace", "other"]
    rows = traces["other"]
    assert [(row["database"], row["tokens"]) for row in rows] == [
        *(("D_s", tokens) for tokens in (4, 8, 16, 33)),
        *(("D_m", tokens) for tokens in (5, 9, 17, 33)),
    ]
    assert all(set(row["mat"]) == {"27", "64"} and all(1 < mat < 8 for mat in row["mat"].values()) for row in rows)


def test_a_modelled_batch_as_a_command(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # for what it shares with propose.py; not for good, as one has vLLM's name
    modelled = load("load")
    ModelDatabase.from_documents([[1, 2, 3, 4] * 8], 50, 0).save_pretrained(tmp_path / "D_m")
    given = (path, "--vocab-size", 50, "--model-database", tmp_path / "D_m", "--rows", 1, 4, "--doubling", 1000, 4)
    run(modelled, monkeypatch, *given, "--json", tmp_path / "load.json")
    figures = json.loads((tmp_path / "load.json").read_text())["figures"]
    assert [(each["doubling"], each["rows"]) for each in figures[::4]] == [(1000, 1), (1000, 4), (4, 1), (4, 4)]
    assert [each["method"] for each in figures[:4]] == ["D_c alone", "learning", "databases", "databases, learning"]
    for each in figures:
        assert each["mat"] >= 1 and 0 <= each["drafted_a_row"] <= 8
    cheap, dear = figures[2], figures[14]  # with databases: one at once where tokens cost nothing, four where they do
    assert cheap["mat"] > 1.5 and cheap["throughput_over_none"] > 1.3 > dear["throughput_over_none"]
    run(modelled, monkeypatch, *given, "--json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "load.json").read_bytes(), "it goes by no real clock"


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


@pytest.fixture
def lossless(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, of two families of which one is a mixture of experts."""
    lossless = load("lossless")
    monkeypatch.setitem(lossless.os.environ, "HDRAFT_DEVICE", "cpu")
    monkeypatch.setattr(lossless.sys, "path", [str(lossless.TESTS), *sys.path])
    architectures = lossless.import_module("architectures")
    families = {name: architectures.FAMILIES[name] for name in ("llama", "mixtral")}
    monkeypatch.setattr(architectures, "FAMILIES", families)
    monkeypatch.setattr(architectures, "UNLISTED", {})
    return lossless


def test_lossless_compares_with_generate(
    lossless: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = ("--steps", "dynamic", "static", "--json", tmp_path / "lossless.json")
    for group in ("dense", "experts"):
        run(lossless, monkeypatch, *json_file, "--families", group)
    records = json.loads((tmp_path / "lossless.json").read_text())
    assert [list(record["families"]) for record in records.values()] == [["llama"], ["mixtral"]]
    for record in records.values():
        assert record["summary"] == "4 of 4 outputs of 1 families are those of model.generate"
        assert record["machine"]["attention"] and not record["failed"] and not record["left_out"]
    assert all(row["identical"] and row["passes"] < 40 for row in records["dense"]["families"]["llama"])
    for row in records["dense"]["families"]["llama"]:
        assert sum(row["ran"].values()) == row["passes"] and row["ran"]["dynamic"] >= 1
        assert row["step"] == "dynamic" or row["ran"] == {"dynamic": 1, "static": row["passes"] - 1}
    monkeypatch.setattr(lossless, "generate", lambda model, ids, *rest, **options: ids.repeat(1, 3))
    with pytest.raises(SystemExit) as ended:
        run(lossless, monkeypatch, *json_file, "--families", "dense")
    assert ended.value.code == 1 and "; static, sampled True, differs; static was dynamic" in capsys.readouterr().out
    records = json.loads((tmp_path / "lossless.json").read_text())
    assert "0 of 4 outputs" in records["dense"]["summary"] and "4 of 4 outputs" in records["experts"]["summary"]


def test_lossless_goes_on_behind_a_family_that_fails_or_cannot_be_compared(
    lossless: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: Any, *rest: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    architectures = lossless.import_module("architectures")
    monkeypatch.setattr(architectures, "why_not", lambda name: "no yardstick" if name == "mixtral" else None)
    monkeypatch.setattr(lossless, "generate", fails)
    with pytest.raises(SystemExit) as ended:
        run(lossless, monkeypatch, "--json", tmp_path / "lossless.json")
    record = json.loads((tmp_path / "lossless.json").read_text())["all"]
    assert ended.value.code == 1
    assert record["failed"] == {"llama": "RuntimeError: CUDA error: an illegal memory access"}
    assert record["left_out"] == {"mixtral": "no yardstick"} and record["families"] == {}
    monkeypatch.setattr(architectures, "why_not", lambda name: None)
    monkeypatch.setattr(lossless, "device_lost", lambda device: True)
    with pytest.raises(SystemExit):
        run(lossless, monkeypatch, "--json", tmp_path / "lossless.json")
    record = json.loads((tmp_path / "lossless.json").read_text())["all"]
    assert record["left_out"] == {"mixtral": "the GPU was of no more use to this process after llama"}


@pytest.mark.parametrize("content", [None, "{}", "[]"])
def test_lossless_refuses_what_it_cannot_do(
    lossless: ModuleType,
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, families = tmp_path / "lossless.json", "dense"
    if content is None:
        file = tmp_path / "none" / "lossless.json"
    elif content == "{}":
        families = "parrots"
    else:
        file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        run(lossless, monkeypatch, "--json", file, "--families", families)
    says = {None: "No such file", "{}": "no family parrots: there are all, experts, dense, or", "[]": "no records"}
    assert ended.value.code == 2 and says[content] in capsys.readouterr().err


def test_an_implementation_of_attention_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = load("precision")
    model = precision.models()["heads of 128"]
    monkeypatch.setattr(precision, "models", lambda: {"heads of 128": model})
    monkeypatch.setattr(precision, "agreement", lambda *asked: [])
    file = tmp_path / "precision.json"
    run(precision, monkeypatch, "--step", "static", "--json", file)
    records = json.loads(file.read_text())
    assert records["agreement"]["rows"] == [] and records["attention"]["machine"]["attention"]
    rows = records["attention"]["rows"]
    assert [(row["dtype"], row["step"], row["attention"]) for row in rows[:5]] == [
        *(("float16", "dynamic", name) for name in precision.BACKENDS),
        ("float16", "static", "its own"),
    ]
    ran = [row for row in rows if "cannot" not in row]
    assert len(ran) >= 4 and all(row["right"] and row["error"] < 0.05 for row in ran)

    def off(model: Any, step: str, backend: Any) -> Any:
        logits = precision_logits(model, step, backend)
        return logits + (0.05 * logits.std() if step == "static" else 0.0)

    precision_logits = precision.tree_logits
    monkeypatch.setattr(precision, "tree_logits", off)
    with pytest.raises(SystemExit, match="attention is off by more than rounding"):
        run(precision, monkeypatch, "--step", "static", "--json", file)
    wrong = [row for row in json.loads(file.read_text())["attention"]["rows"] if not row.get("right", True)]
    assert {row["attention"] for row in wrong} == {"its own"}
