import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.budget import BudgetRule, least_worthwhile

costs_lists = st.lists(st.floats(0.5, 5.0), min_size=1, max_size=20)
probability_lists = st.lists(st.floats(0.0, 1.0), max_size=19)


def test_the_worked_example_drafts_two() -> None:
    assert BudgetRule([1.0, 1.1, 1.2, 2.0]).choose(np.array([0.8, 0.5, 0.3])) == 2


def test_nothing_is_drafted_where_nothing_is_worth_its_place() -> None:
    assert BudgetRule([1.0, 1.5, 2.0]).choose(np.array([0.2, 0.2])) == 0


def test_a_free_node_is_always_worth_its_place() -> None:
    assert BudgetRule(np.ones(9)).choose(np.full(8, 0.01)) == 8


@given(costs_lists, probability_lists)
def test_the_choice_is_the_best_of_all(costs: list[float], probabilities: list[float]) -> None:
    descending = np.array(sorted(probabilities, reverse=True)[: len(costs) - 1])
    rule = BudgetRule(costs)
    values = [descending[:n].sum() - rule.rate * rule.costs[n] for n in range(len(descending) + 1)]
    assert values[rule.choose(descending)] == pytest.approx(max(values))


@given(costs_lists, probability_lists, st.floats(0.5, 4.0))
def test_stopping_below_the_least_worthwhile_never_loses_the_best(
    costs: list[float], probabilities: list[float], rate: float
) -> None:
    descending = np.array(sorted(probabilities, reverse=True)[: len(costs) - 1])
    rule = BudgetRule(costs, rate)
    prices = rule.prices(len(costs) - 1)
    gain, best, n = 0.0, -prices[0], 0
    while n < len(descending) and descending[n] >= least_worthwhile(prices, n, gain, best):
        gain += descending[n]
        n += 1
        best = max(best, gain - prices[n])
    values = [descending[:size].sum() - prices[size] for size in range(len(descending) + 1)]
    assert best == pytest.approx(max(values))


def test_the_rate_follows_what_steps_emitted() -> None:
    rule = BudgetRule([2.0, 2.0, 4.0])
    for _ in range(1000):
        rule.record(drafted=2, emitted=3)
    assert rule.rate == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("costs", [[], [0.0], [-1.0, 2.0], [1.0, float("nan")], [[1.0]]])
def test_costs_that_are_no_times_are_refused(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="costs must be"):
        BudgetRule(costs)
