"""The comparison inside vLLM: its prompts, what it makes of its parts, and that it goes on where it was."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import BENCHMARKS, load, run


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)  # for its prompts; not for good, as it has vLLM's name
    return load("vllm")


@pytest.mark.parametrize("workload", ["mixed", "repeated"])
def test_nine_rounds_of_prompts_have_none_in_common(workload: str, comparison: ModuleType) -> None:
    made = comparison.prompts(workload, 0, 9 * 160)
    assert len(set(made)) == 9 * 160
    assert comparison.prompts(workload, 320, 160) == made[320:480]
    assert not any("{" in prompt for prompt in made)


class Engines:
    """Answers each slice at once: drafting methods are twice as fast, and one `ngram` three times.

    In every second slice of a round the machine is half as fast, for all methods.
    """

    def __init__(self, arguments: Any) -> None:
        self.methods: list[str] = []
        self.began: list[bool] = []
        self.slices: dict[str, int] = {}

    def run(self, name: str, texts: list[str], concurrency: int, begins: bool) -> dict[str, Any]:
        self.methods.append(name)
        self.began.append(begins)
        number = self.slices[name] = 0 if begins else self.slices[name] + 1
        speed = {"none": 1, "ngram, 2 to 5": 3}.get(name, 2) / (1 + number % 2)
        outputs = [int(name != "none" and begins and i == 0) for i in range(len(texts))]
        drafting = [] if name == "none" else [(2, 6, 0.004), (2, 2, 0.002)]
        return {"outputs": outputs, "tokens": 9, "seconds": 9 / speed, "steps": 3, "rows": 6, "drafting": drafting}

    def close(self) -> None:
        assert self.methods


def test_an_interrupted_comparison_goes_on_and_only_the_fastest_ngram_does(
    comparison: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").touch()
    file = tmp_path / "figures.json"
    made: list[Engines] = []
    monkeypatch.setattr(comparison, "Engines", lambda arguments: made.append(Engines(arguments)) or made[-1])
    monkeypatch.setattr(comparison, "version", lambda package: "0")
    arguments = ("--model", tmp_path, "--json", file, "--prompts", 8, "--workloads", "mixed", "--concurrency", 1, 8)
    run(comparison, monkeypatch, *arguments, "--rounds", 1)
    first = json.loads(file.read_text(encoding="utf-8"))
    methods = [name for name in comparison.METHODS if name != "suffix"]
    taking_turns = [*methods, *methods, *methods[1:], methods[0], *methods[2:], *methods[:2]]  # 1 prompt, then 3 slices
    assert made[0].methods == taking_turns or "suffix" in made[0].methods
    assert made[0].began.count(True) == 2 * len({*made[0].methods})
    run(comparison, monkeypatch, *arguments, "--rounds", 2)
    second = json.loads(file.read_text(encoding="utf-8"))
    assert second["parts"][: len(first["parts"])] == first["parts"]
    assert {name for name in made[1].methods if name.startswith("ngram")} == {"ngram, 2 to 5"}
    row = next(row for row in second["figures"] if (row["method"], row["concurrency"]) == ("ngram, 2 to 5", 8))
    assert row["throughput_of_each_slice"] == pytest.approx([3.0] * 6) and row["throughput_over_none"] == 3.0
    assert row["rounds"] == 2 and row["outputs_as_without"] == "6 of 8"
    assert row["mean_accepted_tokens"] == 1.5 and row["drafted_a_step"] == pytest.approx(24 / 18)
    assert row["propose_microseconds_a_row"] == pytest.approx(1500.0)
    assert "hdraft, learning" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(comparison, monkeypatch, *arguments, "--new-tokens", 5)
    assert "was measured with other settings" in capsys.readouterr().err
