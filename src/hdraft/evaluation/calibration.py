"""Calibration: of the draft tokens given a probability of about p, is a share of about p accepted?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 20
"""Bins of equal width from 0 to 1."""


@dataclass(frozen=True)
class Calibration:
    """Each drafted node's estimated probability, and whether verification reached and accepted it.

    Attributes:
        probabilities: float32[n].
        accepted: bool[n].

    Of two tokens estimated at 0.9 and one at 0.3, one of the former accepted:

    >>> calibration = Calibration(np.array([0.9, 0.9, 0.3], np.float32), np.array([True, False, False]))
    >>> round(calibration.error(), 3)           # (2 |0.9 - 0.5| + 1 |0.3 - 0|) / 3
    0.367
    """

    probabilities: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]

    def table(self, bins: int = BINS) -> list[dict[str, Any]]:
        """A row for each bin: `low`, `high` and `count`; `mean_estimate` and `accepted_share` where the count is not 0.

        A bin holds `low` and not `high`; the last holds 1 too.
        """
        count, estimate, share = self._binned(bins)
        rows: list[dict[str, Any]] = []
        for i in range(bins):
            row: dict[str, Any] = {"low": i / bins, "high": (i + 1) / bins, "count": int(count[i])}
            if count[i]:
                row |= {"mean_estimate": float(estimate[i]), "accepted_share": float(share[i])}
            rows.append(row)
        return rows

    def error(self, bins: int = BINS) -> float:
        """The expected calibration error: |mean estimate - accepted share| of the bins, weighted by their counts."""
        count, estimate, share = self._binned(bins)
        return float(count @ np.abs(estimate - share) / max(count.sum(), 1))

    def _binned(self, bins: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The count, mean estimate and accepted share of each bin, [bins] each; 0 where there is none."""
        estimates = self.probabilities.astype(np.float64)
        index = np.clip((estimates * bins).astype(np.intp), 0, bins - 1)
        count = np.bincount(index, minlength=bins)
        some = np.maximum(count, 1)
        estimate = np.bincount(index, estimates, bins) / some
        return count, estimate, np.bincount(index, self.accepted, bins) / some


def calibration_figures(calibrations: Mapping[str, Calibration], bins: int = BINS) -> dict[str, Any]:
    """As JSON: of each category, how many `tokens` were drafted, the `error`, and the reliability table, `bins`."""
    return {
        category: {
            "tokens": len(calibration.probabilities),
            "error": calibration.error(bins),
            "bins": calibration.table(bins),
        }
        for category, calibration in calibrations.items()
    }
