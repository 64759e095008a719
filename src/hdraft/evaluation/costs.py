"""Cost curves: the time of a step over n draft tokens, for replays, where no model runs.

A curve is float64[m], the time of a step over 0, 1, 2, … draft tokens, in any unit. Two of those that are built in are
definitions, in ordinary steps, and were measured on nothing; the third was measured:

    gpu           an idealised memory-bound accelerator: flat to 64 draft tokens, then n / 64
    cpu           two CPU cores, idealised: flat to 8 draft tokens, then 6 % of an ordinary step for each
    cpu-measured  the embedded model, in seconds, on the machine that `cpu-measured.json` names
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hdraft.text import parse_json

Curve = npt.NDArray[np.float64]

_DEFINED: dict[str, Callable[[Curve], Curve]] = {
    "gpu": lambda n: np.maximum(1, n / 64),
    "cpu": lambda n: 1 + 0.06 * np.maximum(0, n - 8),
}

MEASURED = Path(__file__).with_name("cpu-measured.json")
"""Written by `tools/measure_costs.py`."""

_LEAST, _MOST = 1e-30, 1e30  # what any number of steps costs is a number, too

CURVES = (*_DEFINED, MEASURED.stem)
"""The names of the curves that are built in."""


BUDGET = 64
"""The most draft tokens of a step, where it is not said."""


def cost_curve(name: str | os.PathLike[str], budget: int | None) -> Curve:
    """The cost curve of that name, or that file, up to `budget` draft tokens: float64[budget + 1].

    Without a budget it goes up to `BUDGET`, or to the end of a file that ends before.

    A file holds a JSON list of positive numbers, the time of a step over 0, 1, 2, … draft tokens, or an object with
    such a list as `seconds`.

    Raises:
        ValueError: there is none of that name, the file holds something else, or the curve ends below the budget.
        OSError: the file cannot be read.
    """
    rows = 1 + (BUDGET if budget is None else budget)
    if name in _DEFINED:
        return _DEFINED[str(name)](np.arange(rows, dtype=np.float64))
    path = MEASURED if name == MEASURED.stem else Path(name)
    if not path.exists():
        raise ValueError(f"no cost curve {name}: give a file, or one of {', '.join(CURVES)}")
    costs = _read(path)
    if budget is not None and len(costs) < rows:
        raise ValueError(f"the cost curve {name} ends at {len(costs) - 1} draft tokens: lower the budget to that")
    return costs[:rows]


def _read(path: Path) -> Curve:
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(values, dict):
        values = values.get("seconds")
    numbers = isinstance(values, list) and values and set(map(type, values)) <= {int, float}
    if numbers and all(_LEAST <= value <= _MOST for value in values):
        return np.array(values, np.float64)
    raise ValueError(
        f"{path} does not hold a JSON list of positive numbers ({_LEAST:g} to {_MOST:g}), alone or as `seconds` of an"
        " object"
    )
