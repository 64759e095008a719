"""What a step costs over n draft tokens: curves to replay with, where no model runs.

A curve is float64[m], the time of a step over 0, 1, 2, … draft tokens, in any unit. Two of those that are built in are
definitions, in ordinary steps, and were measured on nothing; the third was measured:

    gpu           an idealised memory-bound accelerator: flat to 64 draft tokens, then n / 64
    cpu           two CPU cores, idealised: flat to 8 draft tokens, then 6 % of an ordinary step for each
    cpu-measured  the embedded model, in seconds, on the machine that `cpu-measured.json` names
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]

_DEFINED: dict[str, Callable[[Curve], Curve]] = {
    "gpu": lambda n: np.maximum(1, n / 64),
    "cpu": lambda n: 1 + 0.06 * np.maximum(0, n - 8),
}

MEASURED = Path(__file__).with_name("cpu-measured.json")
"""Written by `tools/measure_costs.py`."""

CURVES = (*_DEFINED, MEASURED.stem)
"""The names of the curves that are built in."""


def cost_curve(name: str | os.PathLike[str], budget: int) -> Curve:
    """The cost curve of that name, or that file, up to `budget` draft tokens: float64[budget + 1].

    A file holds a JSON list of positive numbers, the time of a step over 0, 1, 2, … draft tokens, or an object with
    such a list as `seconds`.

    Raises:
        ValueError: there is none of that name, the file holds something else, or the curve ends below the budget.
        OSError: the file cannot be read.
    """
    if name in _DEFINED:
        return _DEFINED[str(name)](np.arange(budget + 1, dtype=np.float64))
    path = MEASURED if name == MEASURED.stem else Path(name)
    if not path.exists():
        raise ValueError(f"no cost curve {name}: give a file, or one of {', '.join(CURVES)}")
    costs = _read(path)
    if len(costs) <= budget:
        raise ValueError(f"the cost curve {name} ends at {len(costs) - 1} draft tokens: lower the budget to that")
    return costs[: budget + 1]


def _read(path: Path) -> Curve:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON") from None
    if isinstance(values, dict):
        values = values.get("seconds")
    if isinstance(values, list) and values and all(type(value) in (int, float) for value in values):
        try:
            costs = np.array(values, np.float64)
        except OverflowError:  # an integer beyond any float
            costs = np.zeros(1)
        if np.isfinite(costs).all() and (costs > 0).all():
            return costs
    raise ValueError(f"{path} does not hold a JSON list of positive numbers, alone or as `seconds` of an object")
