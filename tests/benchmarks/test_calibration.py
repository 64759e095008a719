from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import load

from hdraft.evaluation.traces import Request

module = load("calibration")
Calibration, calibration_figures = module.Calibration, module.calibration_figures


def calibration(*nodes: tuple[float, bool]) -> Any:
    return Calibration(np.array([p for p, _ in nodes], np.float32), np.array([hit for _, hit in nodes], np.bool_))


def test_a_worked_example() -> None:
    """Two bins: below 0.5, estimates 0.1 and 0.3, none accepted; above, 0.6 and 0.8 and 1, two accepted."""
    example = calibration((0.1, False), (0.3, False), (0.6, True), (0.8, False), (1.0, True))
    assert example.table(2) == [
        {"low": 0.0, "high": 0.5, "count": 2, "mean_estimate": pytest.approx(0.2), "accepted_share": 0.0},
        {
            "low": 0.5,
            "high": 1.0,
            "count": 3,
            "mean_estimate": pytest.approx(0.8),
            "accepted_share": pytest.approx(2 / 3),
        },
    ]
    assert example.error(2) == pytest.approx((2 * 0.2 + 3 * (0.8 - 2 / 3)) / 5)


def test_an_empty_bin_has_a_count_only() -> None:
    rows = calibration((0.99, True)).table()
    assert len(rows) == 20
    assert rows[0] == {"low": 0.0, "high": 0.05, "count": 0}
    assert [row["count"] for row in rows] == [0] * 19 + [1]


def test_bins_hold_their_lower_end() -> None:
    assert [row["count"] for row in calibration((0.5, True), (0.0, True), (1.0, True)).table(2)] == [1, 2]


def test_nothing_drafted_has_no_error() -> None:
    assert calibration().error() == 0
    assert sum(row["count"] for row in calibration().table()) == 0


def test_true_probabilities_have_a_small_error_and_false_ones_a_large_one() -> None:
    generator = np.random.default_rng(0)
    p = generator.random(100_000)
    accepted = generator.random(len(p)) < p
    assert Calibration(p.astype(np.float32), accepted).error() < 0.01
    assert Calibration((p / 2).astype(np.float32), accepted).error() == pytest.approx(0.25, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans())), st.integers(1, 30))
def test_every_node_is_in_its_bin(nodes: list[tuple[float, bool]], bins: int) -> None:
    rows = calibration(*nodes).table(bins)
    assert sum(row["count"] for row in rows) == len(nodes)
    for row in rows:
        if row["count"]:
            assert row["low"] - 1e-6 <= row["mean_estimate"] <= row["high"] + 1e-6
    assert sum(row["count"] * row.get("accepted_share", 0) for row in rows) == pytest.approx(sum(h for _, h in nodes))
    assert 0 <= calibration(*nodes).error(bins) <= 1


def test_figures_by_category() -> None:
    figures = calibration_figures({"all": calibration((0.5, True), (0.5, False)), "qa": calibration((0.5, True))}, 4)
    assert list(figures) == ["all", "qa"]
    assert figures["all"]["tokens"] == 2 and figures["all"]["error"] == 0
    assert figures["qa"]["error"] == 0.5 and len(figures["qa"]["bins"]) == 4


def test_every_drafted_token_is_in_its_category_and_in_all() -> None:
    def request(output: list[int], category: str) -> Request:
        return Request("1", category, np.array([1, 2, 3] * 4, np.int32), np.array(output, np.int32))

    figures = module.measure([request([1, 2, 3] * 4, "easy"), request([7, 5, 8], "hard"), request([], "none")])
    tokens = {category: row["tokens"] for category, row in figures["categories"].items()}
    assert list(tokens) == ["all", "easy", "hard", "none"]
    assert tokens["all"] == tokens["easy"] + tokens["hard"] > 0 and tokens["none"] == 0
    accepted = {
        category: sum(bin["count"] * bin.get("accepted_share", 0) for bin in row["bins"])
        for category, row in figures["categories"].items()
    }
    assert accepted["easy"] == pytest.approx(accepted["all"]) and accepted["all"] > 1 and accepted["hard"] == 0
