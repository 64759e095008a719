import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.hierarchy.budget import BudgetRule, least_worthwhile

costs_lists = st.lists(st.floats(0.5, 5.0), min_size=1, max_size=20)
probability_lists = st.lists(st.floats(0.0, 1.0), max_size=19)


def grown(rule: BudgetRule, descending: npt.NDArray[np.float64]) -> int:
    """How many nodes of these probabilities a tree would keep, stopped where no more can pay."""
    prices = rule.prices(len(rule.costs) - 1)
    gain, best, best_size, n = 0.0, -prices[0], 0, 0
    while n < len(descending) and descending[n] >= least_worthwhile(prices, n, gain, best):
        gain += descending[n]
        n += 1
        if gain - prices[n] > best:
            best, best_size = gain - prices[n], n
    return best_size


def test_the_worked_example_drafts_two() -> None:
    assert grown(BudgetRule([1.0, 1.1, 1.2, 2.0]), np.array([0.8, 0.5, 0.3])) == 2


def test_nothing_is_drafted_where_nothing_is_worth_its_place() -> None:
    assert grown(BudgetRule([1.0, 1.5, 2.0]), np.array([0.2, 0.2])) == 0


def test_a_free_node_is_always_worth_its_place() -> None:
    assert grown(BudgetRule(np.ones(9)), np.full(8, 0.01)) == 8


@given(costs_lists, probability_lists, st.floats(0.5, 4.0))
def test_stopping_where_no_more_can_pay_never_loses_the_best_size(
    costs: list[float], probabilities: list[float], rate: float
) -> None:
    descending = np.array(sorted(probabilities, reverse=True)[: len(costs) - 1])
    rule = BudgetRule(costs, rate)
    prices = rule.prices(len(costs) - 1)
    values = [descending[:size].sum() - prices[size] for size in range(len(descending) + 1)]
    assert values[grown(rule, descending)] == pytest.approx(max(values))


def test_the_rate_follows_what_steps_emitted() -> None:
    rule = BudgetRule([2.0, 2.0, 4.0])
    for _ in range(1000):
        rule.record(drafted=2, emitted=3)
    assert rule.rate == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("costs", [[], [0.0], [-1.0, 2.0], [1.0, float("nan")], [[1.0]]])
def test_costs_that_are_no_times_are_refused(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="costs must be"):
        BudgetRule(costs)
