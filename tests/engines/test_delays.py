"""What draft tokens add to a step is told by its neighbours, whatever else the machine does."""

from collections.abc import Callable

import numpy as np
import pytest

from hdraft.engines.delays import Delays

TOKEN, ANY = 0.0007, 0.004  # seconds


def told(steps: int, drafts: Callable[[np.random.Generator], int], disturb: bool, seed: int) -> Delays:
    """Steps over as many tokens as `drafts` tells; a machine that is disturbed slows down and wavers, too."""
    rng = np.random.default_rng(seed)
    delays = Delays()
    for step in range(steps):
        drafted = drafts(rng)
        seconds = 0.05 + TOKEN * drafted + ANY * (drafted > 0)
        if disturb:
            seconds *= (1 + step / steps) * rng.normal(1, 0.02) * (1.5 if rng.random() < 0.1 else 1)
        delays.record(32, drafted, seconds)
    return delays


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("disturb", "within"), [(False, 0.02), (True, 0.35)])
def test_a_token_and_any_at_all_are_told_apart(seed: int, disturb: bool, within: float) -> None:
    delays = told(600, lambda rng: int(rng.choice([0, 4, 8, 16, 32])), disturb, seed)
    speed = 1.5 if disturb else 1.0  # of the half of the steps that is remembered
    assert delays.token(believed=1.0) == pytest.approx(speed * TOKEN, rel=within)
    assert delays.of(0, 1.0) == 0.0
    assert delays.of(20, 1.0) == pytest.approx(speed * (20 * TOKEN + ANY), rel=within)


def test_what_is_believed_holds_until_steps_have_told() -> None:
    delays = Delays()
    assert delays.token(0.3) == 0.3 and delays.of(2, 0.3) == 0.6 and delays.told is None
    delays.record(32, 4, 0.050)
    delays.record(32, 5, 0.051)
    assert delays.token(0.3) == 0.3 and delays.told is None, "one token more tells little"
    for drafted in (40, 4) * 4:
        delays.record(32, drafted, 0.046 + 0.001 * drafted)
    assert delays.token(0.3) == pytest.approx(0.001) and delays.told == delays.token(0.3)


def test_steps_of_other_sizes_of_batches_are_not_set_against_each_other() -> None:
    delays = Delays()
    for rows, drafted in ((32, 4), (31, 40), (32, 4), (31, 40)) * 50:
        delays.record(rows, drafted, rows * drafted)
    assert delays.token(0.3) == 0.3


def test_where_more_tokens_take_no_longer_they_cost_nothing() -> None:
    delays = Delays()
    for drafted in (4, 40, 0) * 50:
        delays.record(8, drafted, 0.05 - 0.0001 * drafted)
    assert delays.token(0.3) == 0.0 and delays.of(9, 0.3) == 0.0


def test_what_is_long_ago_is_forgotten() -> None:
    delays = Delays()
    for drafted in (4, 40) * 300:
        delays.record(8, drafted, 0.01 * drafted)
    for drafted in (4, 40) * 150:
        delays.record(8, drafted, 0.001 * drafted)
    assert delays.token(0.3) == pytest.approx(0.001)


def test_drafts_that_only_ever_follow_on_none_tell_too() -> None:
    delays = told(200, lambda rng: int(rng.choice([0, 0, 0, 50])), False, 0)
    assert delays.token(1.0) == pytest.approx(TOKEN + ANY / 50)
    assert delays.of(50, 1.0) == pytest.approx(50 * TOKEN + ANY)


def test_what_was_told_before_gives_way_to_steps_with_and_without() -> None:
    """Where a price is too high, drafts only come now and then, between two steps without."""
    delays = Delays()
    for drafted in (4, 8) * 130:
        delays.record(8, drafted, 0.01 * drafted)
    for drafted in (0, 64) * 40:
        delays.record(8, drafted, 0.001 * drafted)
    assert delays.token(0.3) == pytest.approx(0.001)


def test_what_was_told_long_ago_is_as_if_it_had_not_been() -> None:
    delays = Delays()
    for drafted in (4, 40) * 20:
        delays.record(8, drafted, 0.01 * drafted)
    for _ in range(3000):
        delays.record(8, 0, 0.01)
    assert delays.token(0.3) == 0.3 and delays.told is None
