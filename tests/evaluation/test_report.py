"""The report: its figures against a plain computation, on our answers and on those that Spec-Bench writes."""

import builtins
import json
import random
from pathlib import Path
from typing import Any

import pytest

from hdraft.evaluation import report

CATEGORIES = ["writing", "coding", "translation", "qa", "qa", "rag"]


def choice(rng: random.Random, speed: float, ours: bool, tokens: list[list[int]]) -> dict[str, Any]:
    lengths = [rng.randrange(1, 6) for _ in range(5)]
    fields: dict[str, Any] = {
        "index": 0,
        "turns": [str(ids) for ids in tokens],
        "decoding_steps": [5] * len(tokens),
        "new_tokens": [len(ids) for ids in tokens],
        "wall_time": [len(ids) / speed * rng.uniform(0.8, 1.2) for ids in tokens],
        "accept_lengths": lengths,
    }
    if ours:
        fields["hdraft"] = {
            "prompt_tokens": [9] * len(tokens),
            "output_ids": tokens,
            "drafted": [40] * len(tokens),
            "accepted": {"context": [6] * len(tokens), "model": [3] * len(tokens), "statistics": [1] * len(tokens)},
            "seconds_drafting": [0.01] * len(tokens),
            "seconds_model": [0.1] * len(tokens),
        }
    return fields


def write_answers(path: Path, speed: float, seed: int, ours: bool = True, changed: tuple[int, ...] = ()) -> list[Any]:
    rng = random.Random(seed)
    records = []
    for identity, category in enumerate(CATEGORIES):
        tokens = [[identity, 7, 8, 9], [identity, 5, 6]][: 2 if identity < 2 else 1]
        if identity in changed:
            tokens[-1] = [*tokens[-1][:-1], 99]
        records.append(
            {
                "question_id": identity,
                "category": category,
                "answer_id": "x",
                "model_id": path.stem,
                "choices": [choice(rng, speed, ours, tokens)],
                "tstamp": 0.0,
            }
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def plain(records: list[Any], names: tuple[str, ...]) -> tuple[float, float]:
    """Tokens a second and mean accepted tokens, as Spec-Bench computes them."""
    speeds, lengths = [], []
    for record in records:
        if record["category"] in names:
            first = record["choices"][0]
            speeds.append(sum(first["new_tokens"]) / sum(first["wall_time"]))
            lengths += first["accept_lengths"]
    return sum(speeds) / len(speeds), sum(lengths) / len(lengths)


SUBTASKS = {
    "mt_bench": ("writing", "coding"),
    "translation": ("translation",),
    "qa": ("qa",),
    "rag": ("rag",),
    "all": tuple(CATEGORIES),
}


def test_figures_are_spec_benchs(tmp_path: Path) -> None:
    records = {
        name: write_answers(tmp_path / f"{name}.jsonl", speed, seed)
        for seed, (name, speed) in enumerate([("hd", 30.0), ("vanilla", 10.0), ("transformers", 9.0)])
    }
    figures = report.write(tmp_path)
    assert list(figures["methods"]) == ["vanilla", "transformers", "hd"]
    for method, rows in figures["methods"].items():
        assert list(rows) == ["all", "mt_bench", "translation", "qa", "rag"]
        for name, categories in SUBTASKS.items():
            speed, mat = plain(records[method], categories)
            assert rows[name]["tokens_per_second"] == pytest.approx(speed)
            assert rows[name]["mat"] == pytest.approx(mat)
            for reference in ("vanilla", "transformers"):
                ratio = speed / plain(records[reference], categories)[0]
                assert rows[name][f"speedup_over_{reference}"] == pytest.approx(ratio)
            turns = sum(2 if identity < 2 else 1 for identity, own in enumerate(CATEGORIES) if own in categories)
            assert rows[name]["same_text"] == rows[name]["turns"] == turns
    row = figures["methods"]["hd"]["all"]
    assert row["drafted_per_step"] == pytest.approx(8 * 40 / 30)
    assert row["accepted_share"] == {"context": 0.6, "model": 0.3, "statistics": 0.1}
    wall = sum(sum(record["choices"][0]["wall_time"]) for record in records["hd"])
    assert row["drafting_share"] == pytest.approx(8 * 0.01 / wall)
    assert sum(row["accept_lengths"].values()) == row["steps"] == 30


def test_texts_are_compared_turn_by_turn(tmp_path: Path) -> None:
    write_answers(tmp_path / "vanilla.jsonl", 10, 0)
    write_answers(tmp_path / "hd.jsonl", 20, 1, changed=(0, 3))
    rows = report.report(tmp_path)["methods"]["hd"]
    assert [(rows[name]["same_text"], rows[name]["turns"]) for name in ("all", "mt_bench", "qa", "rag")] == [
        (6, 8),
        (3, 4),
        (1, 2),
        (1, 1),
    ]


def test_names_from_files_break_no_report(tmp_path: Path) -> None:
    """Line breaks, what a table is made of, mathematics for matplotlib, and what steers a terminal."""
    names = ["a\n# b", "|x|", r"$\frac$", "\x1b[31m", "[/x]", "_"]
    for method in ("vanilla", "$_{"):
        records = write_answers(tmp_path / f"{method}.jsonl", 10, 0)
        for record, name in zip(records, names, strict=True):
            record["category"] = name
        (tmp_path / f"{method}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    row = {
        "method": "$_{",
        "reference": "a\nb",
        "question_id": 1,
        "choice": 0,
        "turn": 0,
        "position": 3,
        "logit_gap": None,
    }
    (tmp_path / "differences.json").write_text(json.dumps([row]))
    figures = report.write(tmp_path)
    assert set(names) < set(figures["methods"]["vanilla"])
    text = (tmp_path / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# Report"]
    assert all(line.isprintable() for line in text.splitlines()) and "## a # b\n" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {len(names) + 5, 13, 7}


def test_answers_that_spec_bench_wrote_are_reported_too(tmp_path: Path) -> None:
    base = write_answers(tmp_path / "vicuna-7b-v1.3-vanilla-float16-temp-0.0.jsonl", 10, 0, ours=False)
    other = write_answers(tmp_path / "vicuna-7b-v1.3-pld-float16.jsonl", 15, 1, ours=False, changed=(5,))
    for record in other:  # as its older scripts call it
        record["choices"][0]["idxs"] = record["choices"][0].pop("decoding_steps")
    (tmp_path / "vicuna-7b-v1.3-pld-float16.jsonl").write_text("".join(json.dumps(each) + "\n" for each in other))
    figures = report.write(tmp_path)
    rows = figures["methods"]["vicuna-7b-v1.3-pld-float16"]["all"]
    ratio = plain(other, SUBTASKS["all"])[0] / plain(base, SUBTASKS["all"])[0]
    assert rows["speedup_over_vanilla"] == pytest.approx(ratio)
    assert (rows["same_text"], rows["turns"]) == (7, 8)
    assert rows["drafted_per_step"] is rows["drafting_share"] is rows["speedup_over_transformers"] is None
    assert figures["settings"] is figures["differences"] is None
    assert "| vicuna-7b-v1.3-pld-float16 |" in (tmp_path / "report.md").read_text()


def test_speed_ups_are_over_the_questions_that_both_answered(tmp_path: Path) -> None:
    base = write_answers(tmp_path / "vanilla.jsonl", 10, 0)
    other = write_answers(tmp_path / "hd.jsonl", 20, 1)[:3]
    (tmp_path / "hd.jsonl").write_text("".join(json.dumps(each) + "\n" for each in other))
    row = report.report(tmp_path)["methods"]["hd"]["all"]
    assert row["questions"] == 3
    assert row["speedup_over_vanilla"] == pytest.approx(
        plain(other, SUBTASKS["all"])[0] / plain(base[:3], SUBTASKS["all"])[0]
    )


def test_the_document_has_a_table_for_each_subtask_and_the_differences(tmp_path: Path) -> None:
    for name, speed in (("vanilla", 10.0), ("hd", 20.0), ("transformers-pld", 15.0)):
        write_answers(tmp_path / f"{name}.jsonl", speed, 0)
    parted = {"method": "hd", "reference": "vanilla", "question_id": 3, "choice": 0, "turn": 1, "position": 17}
    rows = [parted | {"token": 1, "reference_token": 2, "logit_gap": 0.00123}]
    (tmp_path / report.DIFFERENCES).write_text(json.dumps(rows))
    report.write(tmp_path)
    document = (tmp_path / "report.md").read_text()
    assert [line for line in document.splitlines() if line.startswith("## ")] == [
        "## All questions",
        "## mt_bench",
        "## translation",
        "## qa",
        "## rag",
        "## Where texts part",
    ]
    assert "| hd | 3 | 1 | 2 | 17 | 0.0012 |" in document
    assert json.loads((tmp_path / "report.json").read_text())["differences"] == rows
    before = document
    report.write(tmp_path)
    assert (tmp_path / "report.md").read_text() == before, "made again, it is the same"


def test_figures_are_of_the_first_choice(tmp_path: Path) -> None:
    base = write_answers(tmp_path / "vanilla.jsonl", 10, 0)
    other = write_answers(tmp_path / "hd.jsonl", 20, 1)
    first = report.report(tmp_path)["methods"]["hd"]["all"]
    for record, faster in ((other, 5), (base, 1)):
        for each in record:
            again = json.loads(json.dumps(each["choices"][0]))
            again["wall_time"] = [seconds / faster for seconds in again["wall_time"]]
            each["choices"].append(again)
    (tmp_path / "hd.jsonl").write_text("".join(json.dumps(each) + "\n" for each in other))
    (tmp_path / "vanilla.jsonl").write_text("".join(json.dumps(each) + "\n" for each in base))
    both = report.report(tmp_path)["methods"]["hd"]["all"]
    assert both == first | {"same_text": 16, "turns": 16}


def test_what_else_lies_there_is_checked_too(tmp_path: Path) -> None:
    write_answers(tmp_path / "vanilla.jsonl", 10, 0)
    for name, content in ((report.SETTINGS, "[1]"), (report.SETTINGS, "{}"), (report.DIFFERENCES, "{}")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} is not what hdraft bench wrote"):
            report.report(tmp_path)
        (tmp_path / name).unlink()
    write_answers(tmp_path / "llama-vanilla-float16.jsonl", 10, 0)
    with pytest.raises(ValueError, match="has vanilla and llama-vanilla-float16 to compare with"):
        report.report(tmp_path)


def test_plots_are_pictures_and_their_absence_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path / "vanilla.jsonl", 10, 0)
    write_answers(tmp_path / "hd.jsonl", 20, 1)
    report.write(tmp_path)
    for name in ("speedup", "accepted_lengths", "sources"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in (tmp_path / "report.md").read_text()
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    report.write(tmp_path)
    assert ".png" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no answers in"),
        ({"hd.jsonl": ""}, "are empty"),
        ({"hd.jsonl": "{}\n"}, "is no answer"),
        ({"hd.jsonl": "x\n"}, "JSON"),
    ],
)
def test_a_folder_without_answers_is_refused(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        report.write(tmp_path)
    assert not (tmp_path / "report.md").exists()
