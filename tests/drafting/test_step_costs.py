"""What is learnt of the costs of steps, on a simulated device with a simulated clock."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from hdraft.drafting.costs import KNOTS, StepCosts
from hdraft.drafting.hierarchy.budget import BudgetRule
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

BUDGET = 64
SIZES = np.arange(BUDGET + 1)
PROCESSOR = np.interp(SIZES, KNOTS, [1.0, 1.05, 1.1, 1.4, 2.8])
FLOAT32 = np.interp(SIZES, KNOTS, [1.0, 1.6, 1.7, 2.0, 2.6])
ACCELERATOR = np.interp(SIZES, KNOTS, [1.0, 1.01, 1.02, 1.03, 1.1])
DEAR = 1.0 + 0.5 * SIZES  # a step over a draft token takes half of an ordinary one more
DEVICES = {"processor": PROCESSOR, "float32": FLOAT32, "accelerator": ACCELERATOR, "dear": DEAR}

Curve = npt.NDArray[np.float64]
Slowness = Callable[[int], tuple[float, float, float]]
"""Of a step: how much slower all is, how much more large steps are, and the noise."""


class Steps(NamedTuple):
    """What a run of steps did: draft tokens, tokens emitted, and ordinary steps of a quiet machine that each took."""

    drafted: npt.NDArray[np.int64]
    emitted: Curve
    seconds: Curve

    def rate(self, steps: slice = slice(None)) -> float:
        return float(self.emitted[steps].sum() / self.seconds[steps].sum())


def prior(curve: Curve) -> Curve:
    return curve[list(KNOTS)]


def quiet(_: int) -> tuple[float, float, float]:
    return 1.0, 1.0, 0.05


def run(
    costs: StepCosts | Curve,
    device: Curve,
    steps: int,
    ease: float = 0.8,
    slowness: Slowness = quiet,
    seed: int = 0,
    rule: BudgetRule | None = None,
) -> Steps:
    """Let the budget rule choose from drafts as likely as `ease` says; one step in fifty takes much longer."""
    random = np.random.default_rng(seed)
    rule = BudgetRule(costs) if rule is None else rule
    drafted, emitted, seconds = np.zeros(steps, np.int64), np.zeros(steps), np.zeros(steps)
    tail = np.concatenate([[1, 0.6, 0.4, 0.3, 0.22, 0.18, 0.15, 0.12], 0.1 * 0.955 ** np.arange(BUDGET - 8)])
    for step in range(steps):
        probabilities = 0.95 * random.beta(2 * ease, 2 - 2 * ease) * tail if ease else 0.02 * tail
        prices = rule.prices(BUDGET)
        n = int((np.concatenate([[0.0], probabilities.cumsum()])[: len(prices)] - prices).argmax())
        slow, more, noise = slowness(step)
        time = slow * device[n] * (1 + (more - 1) * min(n, 8) / 8)
        took = time * np.exp(noise * random.standard_normal()) * (1 + (random.random() < 0.02) * 2 * random.pareto(1.5))
        if isinstance(costs, StepCosts):
            costs.record(n, 0.04 * took)
        drafted[step], emitted[step], seconds[step] = n, 1 + probabilities[:n].sum(), time
        rule.record(n, emitted[step])
    return Steps(drafted, emitted, seconds)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("ease", [0.8, 0.35])
def test_steps_that_are_taken_teach_the_shape_of_any_device(name: str, ease: float) -> None:
    device = DEVICES[name]
    for begin in (PROCESSOR, ACCELERATOR):
        costs = StepCosts(prior(begin))
        rule = BudgetRule(costs)
        run(costs, device, 400, ease, rule=rule)
        learnt, best = (run(each, device, 600, ease, seed=1) for each in (costs, device))
        assert learnt.rate() > 0.9 * best.rate()


def test_what_is_learnt_are_the_costs_of_the_sizes_that_are_taken() -> None:
    for device in (FLOAT32, ACCELERATOR):
        costs = StepCosts(prior(PROCESSOR))
        taken = run(costs, device, 1500).drafted
        often = np.unique(taken[taken > 0])[::4]
        assert costs.costs(BUDGET)[often] == pytest.approx(device[often], rel=0.15)


def disturbed(step: int) -> tuple[float, float, float]:
    """For 200 steps all is five times as slow, large steps are twenty times, and no two steps are alike."""
    return (5.0, 4.0, 0.5) if 300 <= step < 500 else quiet(step)


@pytest.mark.parametrize("name", ["processor", "float32", "accelerator"])
def test_drafting_is_back_50_steps_after_a_disturbance(name: str) -> None:
    device = DEVICES[name]
    back, rest = [], []
    for seed in range(6):
        learnt, best = (
            run(each, device, 900, slowness=disturbed, seed=seed) for each in (StepCosts(prior(device)), device)
        )
        assert learnt.drafted[545:600].mean() > 0.5 * best.drafted[545:600].mean()
        back.append(learnt.rate(slice(500, 550)) / best.rate(slice(500, 550)))
        rest.append(learnt.rate(slice(550, 900)) / best.rate(slice(550, 900)))
    assert min(rest) > 0.95
    assert np.mean(back) > 0.8


def test_drafting_that_a_disturbance_has_switched_off_is_tried_again() -> None:
    costs = StepCosts(prior(PROCESSOR))
    run(costs, PROCESSOR, 100)
    for step in range(200):  # large steps alone are slow, so that ordinary ones tell nothing of its end
        size = costs.explore(BUDGET) or 0
        costs.record(size, PROCESSOR[size] * (8 if size else 1) * (1 + step % 3 / 100))
    rule = BudgetRule(costs, rate=1.0)
    assert 1 + 0.5 - rule.rate * costs.costs(1)[1] < 0, "no draft of 0.5 is worth it now"
    after = run(costs, PROCESSOR, 50, seed=1, rule=rule)
    assert after.drafted[-5:].mean() > 4


@pytest.mark.parametrize("name", ["processor", "float32", "accelerator", "dear"])
def test_exploring_takes_about_two_percent_of_the_time_where_drafts_are_never_right(name: str) -> None:
    device = DEVICES[name]
    steps = run(StepCosts(prior(device)), device, 3000, ease=0.0)
    assert steps.seconds.sum() < 1.04 * steps.emitted.sum()


def test_sizes_that_are_never_taken_are_tried_and_so_is_none() -> None:
    costs = StepCosts(prior(PROCESSOR))
    for usual in (0, 16):
        tried = set()
        for _ in range(1200):
            size = costs.explore(BUDGET)
            tried.add(size)
            costs.record(usual if size is None else size, PROCESSOR[usual if size is None else size])
        assert tried == {None, 0, 64} - {usual} | ({1, 4, 16} if usual == 0 else set())


def test_a_trial_never_exceeds_the_budget_and_is_handed_out_once() -> None:
    costs = StepCosts(prior(PROCESSOR))
    for _ in range(1000):
        size = costs.explore(5)
        assert size is None or (size <= 5 and costs.explore(5) is None)
        costs.record(size or 0, PROCESSOR[size or 0])


def test_the_rule_grows_the_tree_to_the_size_that_is_tried() -> None:
    random = np.random.default_rng(0)
    text = random.integers(1, 5, 500)  # so that there is always something to draft
    costs = StepCosts([1.0, 3.0, 3.5, 9.0, 33.0])  # so that nothing is worth it
    session = HierarchyDrafter(8).session(text, costs)
    drafted = []
    for token in random.integers(1, 5, 400):
        drafted.append(len(session.propose(BUDGET)))
        costs.record(drafted[-1], DEAR[drafted[-1]])
        session.extend([token])
    assert {0, 1, 4} <= set(drafted)
    assert costs.costs(4) == pytest.approx(DEAR[:5], rel=0.1)


def test_costs_that_are_given_are_frozen_and_a_run_with_them_is_repeated() -> None:
    rule = BudgetRule(PROCESSOR)
    assert (rule.prices(BUDGET) == PROCESSOR).all()
    one, other = (run(PROCESSOR, DEAR, 300, seed=3) for _ in range(2))
    assert (one.drafted == other.drafted).all()
    assert (BudgetRule(PROCESSOR).costs == PROCESSOR).all()


def test_costs_never_fall_begin_with_one_and_go_on_in_proportion() -> None:
    random = np.random.default_rng(0)
    costs = StepCosts(prior(PROCESSOR))
    for _ in range(2000):
        costs.record(int(random.integers(0, 100)), float(random.lognormal(0, 2)))
        known = costs.costs(200)
        assert known[0] == 1.0 and (np.diff(known) > -1e-9).all() and np.isfinite(known).all()
        assert known[128] == pytest.approx(2 * known[64])
    assert (np.asarray(costs) == costs.costs(BUDGET)).all()


def test_times_that_are_none_are_left_out() -> None:
    costs = StepCosts(prior(PROCESSOR))
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        for _ in range(10):
            costs.record(4, seconds)
    assert costs.costs(BUDGET) == pytest.approx(PROCESSOR) and costs.ordinary == 0.0


def test_padded_steps_cost_what_the_size_does_that_they_are_padded_to() -> None:
    costs = StepCosts([1.0, 1.2, 1.5, 3.0], (0, 3, 7, 8), padded=True)
    assert costs.costs(8).tolist() == [1, 1.2, 1.2, 1.2, 1.5, 1.5, 1.5, 1.5, 3.0]
    for _ in range(20):
        for drafted, seconds in ((0, 1.0), (5, 2.0), (0, 1.0), (2, 1.1)):
            costs.record(drafted, seconds)
    assert costs.costs(7) == pytest.approx([1, 1.1, 1.1, 1.1, 2.0, 2.0, 2.0, 2.0])


def test_a_machine_that_slows_down_changes_no_costs() -> None:
    costs = StepCosts(prior(PROCESSOR))
    for step in range(400):
        slow = 1 + step / 100 + 3 * (step > 200)
        costs.record((0, 4, 16, 64)[step % 4], slow * PROCESSOR[(0, 4, 16, 64)[step % 4]])
    assert costs.costs(BUDGET) == pytest.approx(PROCESSOR, rel=0.06)
    assert costs.ordinary == pytest.approx(slow, rel=0.05)


def test_threads_share_it() -> None:
    costs = StepCosts(prior(ACCELERATOR))
    failures: list[BaseException] = []

    def request(seed: int) -> None:
        try:
            run(costs, PROCESSOR, 400, seed=seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert costs.costs(BUDGET)[64] == pytest.approx(2.8, rel=0.25)
