"""benchmarks/llama_cpp.py without llama.cpp: what it makes of the times of requests, and the table in the documents."""

from typing import Any

import pytest
from scripts import BENCHMARKS, load

benchmark = load("llama_cpp")
documents = load("readme_results", BENCHMARKS.parent / "tools")


def result(seconds: float, tokens: int = 4) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": list(range(tokens)), "first": 0.1}


def rounds() -> list[dict[str, dict[str, dict[str, Any]]]]:
    """A round that is not counted, and three in which the machine is as fast, half as fast, and disturbed once."""
    return [
        {"a": {"plain": result(3.0), "hdraft": result(4.0)}, "b": {"plain": result(9.0), "hdraft": result(1.0)}},
        {"a": {"plain": result(2.0), "hdraft": result(1.0)}, "b": {"plain": result(1.0), "hdraft": result(1.0)}},
        {"a": {"plain": result(4.0), "hdraft": result(2.0)}, "b": {"plain": result(2.0), "hdraft": result(2.0)}},
        {"a": {"plain": result(2.0), "hdraft": result(9.0)}, "b": {"plain": result(1.0), "hdraft": result(1.0, 3)}},
    ]


def test_ratios_are_within_a_round_and_medians_over_the_rounds_that_count() -> None:
    figures = benchmark.measured(["plain", "hdraft"], rounds())
    assert figures["hdraft"]["by_prompt"] == {"a": 2.0, "b": 1.0}
    assert figures["hdraft"]["speedup"] == 1.5
    assert (figures["hdraft"]["least"], figures["hdraft"]["most"]) == (1.0, 2.0)
    assert figures["hdraft"]["cold"] == 0.75
    assert figures["hdraft"]["texts_as_plain"] == "1 of 2"
    assert figures["plain"]["speedup"] == 1.0
    assert figures["plain"]["milliseconds_a_token"] == pytest.approx(375)


def test_the_table_has_a_row_for_each_method_and_says_what_rows_cost() -> None:
    figures = benchmark.measured(["plain", "hdraft"], rounds())
    figures["hdraft"] |= {"steps": 5, "drafted_a_step": 1.25, "microseconds_a_draft": 80.0}
    text = documents.llama_cpp_results(
        {
            "machine": {"llama-cpp-python": "0.3.36", "cores": 2, "processor": "a processor"},
            "settings": {"file": "m.gguf", "threads": 2, "flash_attn": True, "new_tokens": 160, "rounds": 3},
            "costs": [1 + 0.4 * n for n in range(17)],
            "methods": figures,
            "modelled_by_row_cost": {"0.02": 1.9, "0.1": 1.5},
        }
    )
    assert "1.40, 2.60 and 7.40 times" in text
    assert "| hdraft | 1.50 | 1.00 to 2.00 | 0.75 | 1 of 2 | 1.25 | 80 |" in text
    assert "2%: 1.90, 10%: 1.50" in text
