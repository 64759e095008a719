import json
from pathlib import Path

import numpy as np
import pytest

from hdraft.drafting.hierarchy.budget import BudgetRule
from hdraft.evaluation.costs import CURVES, MEASURED, cost_curve


def test_what_is_defined_is_as_documented() -> None:
    gpu, cpu = cost_curve("gpu", 128), cost_curve("cpu", 128)
    assert gpu[[0, 1, 64, 96, 128]].tolist() == [1, 1, 1, 1.5, 2]
    assert cpu[[0, 1, 8, 9, 18, 108]].tolist() == pytest.approx([1, 1, 1, 1.06, 1.6, 7])


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("budget", [0, 8, 64])
def test_a_built_in_curve_has_a_cost_for_each_size_and_never_falls(name: str, budget: int) -> None:
    costs = cost_curve(name, budget)
    assert costs.shape == (budget + 1,)
    assert (np.diff(costs) >= 0).all()
    BudgetRule(costs)


def test_what_was_measured_says_where() -> None:
    record = json.loads(MEASURED.read_text())
    assert record["machine"]["processor"] and record["model"] and len(record["seconds"]) == 65


@pytest.mark.parametrize("content", [[2, 3.5, 4], {"seconds": [2, 3.5, 4], "machine": "mine"}])
def test_a_file_is_a_list_alone_or_in_an_object(tmp_path: Path, content: object) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(content))
    assert cost_curve(path, 2).tolist() == [2, 3.5, 4]
    assert cost_curve(str(path), 1).tolist() == [2, 3.5]
    with pytest.raises(ValueError, match=r"costs.json ends at 2 draft tokens: lower the budget to that"):
        cost_curve(path, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2", "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff\xfe[1]", "not UTF-8"),
        ("[1, NaN]", "NaN is no number"),
        ("[1, 1e999]", "too large"),
        *((text, "list of positive numbers") for text in ("[]", "{}", '{"0": 1}', "7", '["1"]', "[true]", "[null]")),
        *(
            (text, "list of positive numbers")
            for text in ("[0, 1]", "[1, -1]", "[5e-324, 1e308]", "[1" + "0" * 400 + "]")
        ),
    ],
)
def test_a_file_that_is_no_curve_is_named(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=says) as caught:
        cost_curve(path, 0)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no cost curve tpu: give a file, or one of gpu, cpu, cpu-measured"):
        cost_curve("tpu", 8)
