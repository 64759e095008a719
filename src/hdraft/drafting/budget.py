"""How much to draft: a node is worth its place while its probability exceeds what its place costs at the going rate.

To emit the most tokens a second in the long run, a step should maximise (the tokens it is expected to emit) -
rho * (its time), with rho the running rate in tokens a second; maximising the ratio of each step alone would draft too
little where it is easy. With costs [1.0, 1.1, 1.2, 2.0] of a step over 0 to 3 draft tokens, rho = 1 and nodes of
probability 0.8, 0.5 and 0.3:

    n                      0     1     2     3
    sum p - rho * cost   -1.0  -0.3   0.1  -0.4        -> draft 2
"""

import numpy as np
import numpy.typing as npt

_PRIOR_STEPS = 4.0


class BudgetRule:
    """Chooses how many nodes of a tree, likeliest first, to verify.

    Args:
        costs: float[m], the time of a step over 0, 1, 2, … draft tokens, in any unit.
        rate: tokens emitted in the time of an ordinary step, as earlier requests saw it.
    """

    def __init__(self, costs: npt.ArrayLike, rate: float = 1.0) -> None:
        costs = np.asarray(costs, dtype=np.float64)
        if costs.ndim != 1 or not len(costs) or not np.all(np.isfinite(costs)) or costs[0] <= 0:
            raise ValueError("costs must be the positive, finite times of a step over 0, 1, 2, … draft tokens")
        self.costs = np.maximum.accumulate(costs) / costs[0]
        self.tokens = rate * _PRIOR_STEPS
        self.time = _PRIOR_STEPS
        self._marginal = _convex_slopes(self.costs)

    @property
    def rate(self) -> float:
        """Rho: tokens emitted in the time of one ordinary step."""
        return self.tokens / self.time

    def least_probabilities(self, budget: int) -> npt.NDArray[np.float64]:
        """float[min(budget, m - 1)]: below the i-th, no tree of more than i nodes can be the best choice."""
        return self.rate * self._marginal[:budget]

    def choose(self, probabilities: npt.NDArray[np.floating]) -> int:
        """How many of the nodes to verify, given their probabilities in descending order."""
        gain = np.concatenate(((0.0,), np.cumsum(probabilities, dtype=np.float64)))
        return int(np.argmax(gain - self.rate * self.costs[: len(gain)]))

    def record(self, drafted: int, emitted: int) -> None:
        """Take in one step: `drafted` tokens verified, `emitted` tokens gained."""
        self.tokens += emitted
        self.time += float(self.costs[min(drafted, len(self.costs) - 1)])


def _convex_slopes(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The slopes of the greatest convex curve below `costs`, one for each added token."""
    corners = [0]
    for n in range(1, len(costs)):
        while len(corners) > 1:
            before, last = corners[-2:]
            if (costs[last] - costs[before]) * (n - last) < (costs[n] - costs[last]) * (last - before):
                break
            corners.pop()
        corners.append(n)
    curve = np.interp(np.arange(len(costs)), corners, costs[corners])
    return np.diff(curve)
