"""How long a chain is drafted where a rejected draft means reading again."""

import numpy as np
import pytest

from hdraft.drafting.costs import StepCosts
from hdraft.drafting.hierarchy.chains import ChainRule
from hdraft.drafting.tree import DraftTree

LINEAR = 1 + 0.1 * np.arange(65)


def chain(*probabilities):
    n = len(probabilities)
    return DraftTree(np.arange(n), np.arange(-1, n - 1), probabilities=np.array(probabilities, np.float32))


def rule(rate, costs=LINEAR):
    made = ChainRule(costs)
    for _ in range(1000):
        made.record(0, rate)
    return made


def test_the_worked_example():
    assert len(rule(2).cut(chain(0.9, 0.5, 0.2), 0)) == 2


def test_what_costs_nothing_is_drafted_whole_and_what_never_pays_not_at_all():
    assert len(rule(2, np.ones(65)).cut(chain(0.9, 0.5, 0.01), 5)) == 3
    assert len(rule(2, 1 + np.arange(65.0)).cut(chain(0.9, 0.5), 0)) == 0
    assert len(rule(2).cut(chain(), 3)) == 0


def test_much_that_is_unread_is_read_for_good():
    lengths = [len(rule(2).cut(chain(0.6, 0.4, 0.3), unread)) for unread in range(12)]
    assert lengths[0] > 0 and lengths[-1] == 0 and lengths == sorted(lengths, reverse=True)


def test_a_chain_that_is_sure_is_drafted_whatever_is_unread():
    assert len(rule(2).cut(chain(1.0, 1.0, 1.0), 40)) == 3


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_length_that_is_worth_most(seed):
    random = np.random.default_rng(seed)
    probabilities = np.cumprod(random.uniform(0.3, 1, 7))
    unread, rate = int(random.integers(9)), float(random.uniform(1, 3))
    costs = np.maximum.accumulate(1 + 0.05 * np.arange(65) * random.uniform(0.5, 1.5, 65))
    costs /= costs[0]
    made = rule(rate, costs)
    row = (costs[unread + 7] - 1) / (unread + 7)
    worth = [0.0]
    for length in range(1, 8):  # by the definition: over what may happen
        reached = [*probabilities[:length], 0.0]
        again = sum((1 + unread + k) * ((1.0 if k == 0 else reached[k - 1]) - reached[k]) for k in range(length))
        worth.append(sum(reached) - made._rule.rate * (costs[unread + length] - costs[unread] + row * again))
    kept = made.cut(chain(*probabilities), unread)
    assert worth[len(kept)] == pytest.approx(max(worth), abs=1e-5)


def test_costs_that_are_learnt_are_asked_for():
    costs = StepCosts([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], (0, 1, 2, 4, 8, 16, 32, 64))
    made = ChainRule(costs)
    made.record(70, 3)
    assert len(made.cut(chain(0.9, 0.5, 0.2), 3)) == 3
