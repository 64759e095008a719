"""Work over rows is done once for each row, on as many threads as are asked for."""

import threading
import time

import pytest

from hdraft.drafting.threads import Threads, processors


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 33])
def test_every_row_is_done_once(count: int, rows: int) -> None:
    threads = Threads(count)
    for _ in range(20):
        done: list[int] = []
        threads.over(rows, lambda begin, end: done.extend(range(begin, end)))  # noqa: B023
        assert sorted(done) == list(range(rows))


def test_helpers_take_part_and_the_caller_waits_for_them() -> None:
    names: set[str] = set()

    def work(begin: int, end: int) -> None:
        time.sleep(0.01)
        names.add(threading.current_thread().name)

    for _ in range(100):  # a helper may be late once
        Threads(2).over(40, work)
        if len(names) > 1:
            break
    assert threading.current_thread().name in names
    assert len(names) == 2


def test_what_a_helper_raises_is_raised() -> None:
    def work(begin: int, end: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("a helper's")
        time.sleep(0.01)

    threads = Threads(2)
    with pytest.raises(KeyError, match="a helper's"):
        for _ in range(100):
            threads.over(40, work)


def test_some_processor_may_be_used() -> None:
    assert processors()
