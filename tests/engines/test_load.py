"""Drafts are priced by what steps tell, and rest where they do not pay."""

from itertools import count

import pytest

from hdraft.engines.load import Load


def step(load: Load, rows: int, drafted: int, emitted: int, drafting: float | None = 0.0) -> None:
    """A step of 10 ms and 0.1 ms a token."""
    load.record(rows, drafted, emitted, 0.01 + 0.0001 * (rows + drafted), drafting)


@pytest.mark.parametrize("on_processor", [False, True])
def test_a_draft_token_costs_what_its_place_delays_the_others(on_processor: bool) -> None:
    load = Load(on_processor)
    assert 0 < load.price(1) < load.price(8) < load.price(32) == load.price(64) == 0.5
    for drafted in [0, 16, 32, 48] * 40:
        step(load, 8, drafted, 16)
    rate = 16 / (0.01 + 0.0001 * (8 + 24))
    assert load.price(8) == pytest.approx(0.0001 * rate, rel=0.05)
    step(load, 32, 0, 32)
    assert load.price(32) == pytest.approx(0.0001 * 32 / 0.0132), "a batch of a new size begins with what is known"


def test_now_and_then_a_step_is_drafted_by_half_the_price_and_one_not_at_all() -> None:
    load = Load()
    price = load.price(8)
    prices = [load.next_price(8) for _ in range(128)]
    assert prices[0] == prices[64] == price / 2 and prices[32] == prices[96] > 1
    assert prices.count(price) == 124


def test_a_price_that_is_much_too_high_is_found_out() -> None:
    load = Load(on_processor=True)
    assert load.price(32) == 0.5
    for _ in range(200):  # tokens are worth 0.3 each, of which there are 96
        drafted = 96 if load.next_price(32) < 0.3 else 0
        load.record(32, drafted, 32 + drafted // 3, 0.02 + 0.00001 * drafted, 0.0)
    assert load.price(32) == pytest.approx(0.03, rel=0.1)


def test_drafting_rests_where_it_does_not_pay_and_is_tried_again() -> None:
    load = Load()
    drafted = 0
    for _ in range(2000):
        drafts = load.batches(32).drafts()
        drafted += drafts
        step(load, 32, 60 if drafts else 0, 32 + (3 if drafts else 0), 0.002 if drafts else None)
    assert 24 <= drafted <= 100
    for _ in range(600):
        drafts = load.batches(32).drafts()
        step(load, 32, 60 if drafts else 0, 32 + (40 if drafts else 0), 0.002 if drafts else None)
    assert drafts
    assert load.batches(1).drafts()


def test_a_step_that_the_engine_was_held_up_in_does_not_count_for_hundreds() -> None:
    load = Load()
    for _ in range(20):
        step(load, 8, 8, 12)
    rate = load.batches(8).rate
    load.record(8, 8, 12, 60.0, 0.0)
    assert load.batches(8).rate > 0.7 * rate
    for _ in range(20):
        step(load, 8, 8, 12)
    assert load.batches(8).rate > 0.9 * rate


def test_after_a_rest_drafting_begins_by_half_the_price() -> None:
    load = Load()
    first = load.next_price(8)
    assert load.next_price(8) == 2 * first
    while load.batches(8).drafts():
        load.batches(8).gained(-1.0)
    assert load.next_price(8) == first


def test_drafting_is_tried_again_soon_at_first_and_seldom_later() -> None:
    batches = Load().batches(8)

    def rest(gain: float) -> int:
        """Gain that much in a trial; how many steps drafting rests for then."""
        for _ in range(8):
            batches.gained(gain)
        return next(steps for steps in count() if batches.drafts())

    assert [rest(-0.001) for _ in range(6)] == [16, 32, 64, 128, 256, 256]
    assert rest(0.1) == 0
    assert rest(-0.1) == 16  # it had been worth it, and may soon be so again
