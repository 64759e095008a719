"""How long a chain to draft where a rejected draft means that the text of its step is read again.

So it is with recurrent states: where a part of the chain is rejected, the tokens of the step that were accepted, and
those that were read again in it, are rows of the next pass too. With rho tokens emitted in the time of an ordinary
step, a chain of j tokens that are reached and accepted with probabilities p_1 >= p_2 >= … is worth

    sum of p_i, i <= j  -  rho * (what its rows cost)  -  rho * (what is read again costs) * (1 - p_j)

With 1 token to read, rows that cost 0.1 of an ordinary step each, rho = 2 and p = 0.9, 0.5, 0.2:

    j                                     1       2       3
    sum of p_i                          0.9     1.4     1.6
    rows                                  1       2       3
    rows read again, on average         0.1     0.9     1.8
    worth                              0.68    0.82    0.64     -> draft 2
"""

import numpy as np
import numpy.typing as npt

from hdraft.drafting.costs import Costs, StepCosts
from hdraft.drafting.hierarchy.budget import BudgetRule
from hdraft.drafting.tree import DraftTree


class ChainRule:
    """Cuts chains for one request.

    Args:
        costs: the time of a step over 0, 1, 2, … draft tokens, as a session is given them.

    Raises:
        ValueError: costs that are no times.
    """

    def __init__(self, costs: Costs) -> None:
        self._learner = costs if isinstance(costs, StepCosts) else None
        self._rule = BudgetRule(costs)

    def cut(self, chain: DraftTree, unread: int) -> DraftTree:
        """The first nodes of a chain, as many as are worth most behind `unread` tokens that are read again."""
        n = len(chain)
        costs = self._costs(unread + n)
        row = (costs[-1] - costs[0]) / max(1, unread + n)
        accepted = chain.probabilities.astype(np.float64)
        gained, lengths = np.cumsum(accepted), np.arange(1, n + 1)
        again = (unread + 1) * (1 - accepted) + gained - lengths * accepted
        worth = gained - self._rule.rate * (costs[unread + 1 :] - costs[unread] + row * again)
        best = int(worth.argmax()) if n else 0
        return chain.best_chain(best + 1 if n and worth[best] > 0 else 0)

    def record(self, rows: int, emitted: int) -> None:
        """Take in one step over `rows` more than one, which emitted so many tokens."""
        self._rule.record(rows, emitted)

    def _costs(self, most: int) -> npt.NDArray[np.float64]:
        if self._learner is not None:
            return self._learner.costs(most)
        known: npt.NDArray[np.float64] = self._rule.costs
        costs: npt.NDArray[np.float64] = known[np.minimum(np.arange(most + 1), len(known) - 1)]
        return costs
