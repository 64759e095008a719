"""The counters of a request, and the stopwatch that fills them in."""

import hdraft
from hdraft.decoding import GenerationStats, Statistics, stats
from hdraft.decoding.stats import Stopwatch


def test_the_name_that_users_know_is_the_same_class():
    assert hdraft.Statistics is hdraft.GenerationStats is Statistics is GenerationStats


def test_a_lap_goes_to_its_part_and_to_the_total_and_what_is_skipped_to_neither(monkeypatch):
    now = iter([10.0, 11.0, 20.0, 24.0, 32.0])
    monkeypatch.setattr(stats, "perf_counter", lambda: next(now))
    counters = GenerationStats()
    watch = Stopwatch(counters)
    watch.lap("drafting")
    watch.skip()
    watch.lap("inputs", until=22.0)
    watch.lap("model")
    watch.lap()
    assert (counters.seconds_drafting, counters.seconds_inputs, counters.seconds_model) == (1.0, 2.0, 2.0)
    assert counters.seconds == 1.0 + 2.0 + 2.0 + 8.0
    assert counters.seconds_verification == counters.seconds_cache == 0.0
