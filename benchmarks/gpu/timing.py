"""The time of a request, step by step and part by part."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

PARTS = ("drafting", "inputs", "model", "verification", "cache")
"""The parts of a step's time, named as in `GenerationStats`. On a GPU, `cache` only asks for the move, which
falls into the next step's `model`."""


@dataclass(frozen=True)
class Timing:
    """The time of a request, step by step; the first step is the one over the prompt.

    Attributes:
        emitted: int64[steps], tokens.
        drafted: int64[steps], draft tokens verified.
        seconds: float64[steps], all of the request's time: what comes before the first step and after the last is
            theirs.
        parts: float64[steps, 5], of it each of `PARTS`; None for `model.generate`.
        kind: how the last step was run, after what could not be had; None for `model.generate`.
    """

    emitted: npt.NDArray[np.int64]
    drafted: npt.NDArray[np.int64]
    seconds: Seconds
    parts: Seconds | None = None
    kind: str | None = None
