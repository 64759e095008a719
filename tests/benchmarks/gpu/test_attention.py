"""Timing attention alone: every way is held against plain attention, and what is known is written."""

import json
from time import perf_counter

import pytest
import torch
from scripts import BENCHMARKS, load, run

attention = load("attention", BENCHMARKS / "gpu")


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
def test_every_way_is_right_or_says_why_it_cannot_be_had(heads, kv_heads):
    case = attention.Case(heads, kv_heads, 16, 5, 40, "cpu", torch.float32)
    records = list(attention.measure(case, perf_counter() + 60))
    assert len(records) == len(list(case.ways()))
    assert all(record["right"] if "right" in record else "backend" in record["failed"] for record in records)
    assert sum("right" in record for record in records) >= len(records) - 1  # memory-efficient is for GPUs


def test_a_wrong_result_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention, "SHAPES", ((2, 1, 16),))
    monkeypatch.setattr(attention, "LENGTHS", (40,))
    monkeypatch.setattr(attention, "tree_attention", lambda queries, *a, **k: torch.ones(queries.shape[1], 32))
    with pytest.raises(SystemExit, match="further"):
        run(attention, monkeypatch, "--device", "cpu", "--json", tmp_path / "attention.json")
    assert "WRONG" in capsys.readouterr().out
    cases = json.loads((tmp_path / "attention.json").read_text())["cases"]
    assert {case["rows"] for case in cases} == set(attention.ROWS)
