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

from hdraft.drafting.costs import StepCosts
from hdraft.drafting.kernel import kernel

_PRIOR_STEPS = 4.0


class BudgetRule:
    """Decides how many nodes of a tree, likeliest first, are worth verifying.

    Args:
        costs: float[m], the time of a step over 0, 1, 2, … draft tokens, in any unit, for good; or what learns them
            while running, and is asked anew for each step.
        rate: tokens emitted in the time of an ordinary step, as earlier requests saw it.

    Raises:
        ValueError: costs that are no times.
    """

    def __init__(self, costs: npt.ArrayLike | StepCosts, rate: float = 1.0) -> None:
        self._learner = costs if isinstance(costs, StepCosts) else None
        times = np.ones(1) if isinstance(costs, StepCosts) else check_costs(costs)
        self.costs = np.maximum.accumulate(times) / times[0]
        self.tokens = rate * _PRIOR_STEPS
        self.time = _PRIOR_STEPS

    @property
    def rate(self) -> float:
        """Rho: tokens emitted in the time of one ordinary step."""
        return self.tokens / self.time

    def prices(self, budget: int) -> npt.NDArray[np.float64]:
        """The costs of steps over 0, 1, … n <= `budget` draft tokens, in tokens at the going rate: float[n + 1].

        Where a size is to be learnt about, n is that size, and everything up to it costs nothing.
        """
        if self._learner is not None:
            if (size := self._learner.explore(budget)) is not None:
                return np.zeros(size + 1)
            self.costs = self._learner.costs(budget)
        prices: npt.NDArray[np.float64] = self.rate * self.costs[: budget + 1]
        return prices

    def record(self, drafted: int, emitted: int) -> None:
        """Take in one step: `drafted` tokens verified, `emitted` tokens gained."""
        self.tokens += emitted
        if self._learner is not None and drafted >= len(self.costs):
            self.costs = self._learner.costs(drafted)
        self.time += float(self.costs[min(drafted, len(self.costs) - 1)])


def check_costs(costs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Costs as float64[m].

    Raises:
        ValueError: they are not the times of a step over 0, 1, 2, … draft tokens.
    """
    times = np.asarray(costs, dtype=np.float64)
    if times.ndim != 1 or not len(times) or not np.all(np.isfinite(times)) or times[0] <= 0:
        raise ValueError("costs must be the positive, finite times of a step over 0, 1, 2, … draft tokens")
    return times


@kernel
def least_worthwhile(prices: npt.NDArray[np.float64], n: int, gain: float, best: float) -> float:
    """The probability below which no more nodes can pay, whichever size they would fill the tree to.

    The tree has `n` nodes, whose probabilities sum up to `gain`; the best value of any size so far is `best`.
    """
    least = np.inf
    for size in range(n + 1, len(prices)):
        least = min(least, (best - gain + prices[size]) / (size - n))
    return least
