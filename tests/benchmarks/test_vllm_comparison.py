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
    """Answers each part at once: drafting methods are twice as fast, and one `ngram` three times."""

    def __init__(self, arguments: Any) -> None:
        self.texts: set[str] = set()
        self.methods: list[str] = []

    def run(self, name: str, texts: list[str], concurrency: int) -> dict[str, Any]:
        self.methods.append(name)
        speed = 100.0 * {"none": 1, "ngram, 2 to 5": 3}.get(name, 2)
        numbers = ("drafted_a_step", "milliseconds_a_step", "propose_microseconds_a_row", "propose_share")
        outputs = [0 if name == "none" else int(i == 0) for i in range(len(texts))]
        return {"outputs": outputs, "tokens": 7, "tokens_a_second": speed, "mean_accepted_tokens": 1.5} | dict.fromkeys(
            numbers, 1.0
        )

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
    methods = [name for name in comparison.METHODS if not name.startswith("suffix")]
    assert made[0].methods in (methods * 2, list(comparison.METHODS) * 2)
    run(comparison, monkeypatch, *arguments, "--rounds", 2)
    second = json.loads(file.read_text(encoding="utf-8"))
    assert second["parts"][: len(first["parts"])] == first["parts"]
    assert {name for name in made[1].methods if name.startswith("ngram")} == {"ngram, 2 to 5"}
    row = next(row for row in second["figures"] if (row["method"], row["concurrency"]) == ("ngram, 2 to 5", 8))
    assert row["throughput_over_none"] == 3.0 and row["rounds"] == 2 and row["outputs_as_without"] == "6 of 8"
    assert "hdraft, learning" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(comparison, monkeypatch, *arguments, "--new-tokens", 5)
    assert "was measured with other settings" in capsys.readouterr().err
