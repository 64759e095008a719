"""What vLLM's releases say of the hook, as committed, against what the adapter expects; a start with another hook."""

import importlib.util
import inspect
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from batch import vllm_config

from hdraft.engines.vllm import RUNNER, TESTED, HierarchyProposer, call_of_hook

RECORDS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("contract.json").read_text(encoding="utf-8"))
TOOL = Path(__file__).parents[2] / "tools" / "vllm_contract.py"
TAKES = list(inspect.signature(HierarchyProposer.propose).parameters)[1:]

KNOWN = """
class GPUModelRunner:
    def propose_draft_token_ids(self, sampled_token_ids, slot_mappings):
        if self.speculative_config.method == "ngram":
            return self.drafter.propose(4, sampled_token_ids)
        elif self.speculative_config.method == "custom_class":
            return self.drafter.propose(
                sampled_token_ids,
                self.input_batch.num_tokens_no_spec,
                self.input_batch.token_ids_cpu,
                slot_mappings=slot_mappings,
            )
"""


def test_a_release_of_each_version_that_is_said_to_be_tested_is_committed() -> None:
    assert {".".join(record["version"].split(".")[:2]) for record in RECORDS} == set(TESTED)
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    least, most = TESTED[0], int(TESTED[-1].split(".")[1]) + 1
    assert f'"vllm>={least},<0.{most}"' in project


@pytest.mark.parametrize("record", RECORDS, ids=[record["version"] for record in RECORDS])
def test_the_proposer_takes_what_this_release_calls_it_with_and_gives_what_it_takes(record: dict[str, Any]) -> None:
    facts = record["facts"]
    assert len(record["files"]) == 7 and all(len(hashed) == 64 for hashed in record["files"].values())
    assert facts["made_with"] == list(inspect.signature(HierarchyProposer).parameters) == ["vllm_config"]
    assert facts["called_with"] == TAKES
    assert str(inspect.signature(HierarchyProposer.propose).return_annotation) in facts["returns"].split(" | ")
    assert "custom_class" in facts["v1_only"]


@pytest.mark.parametrize("record", RECORDS, ids=[record["version"] for record in RECORDS])
def test_this_release_has_all_that_is_read_of_its_configuration(record: dict[str, Any]) -> None:
    """A configuration with no more than the release has makes a proposer; with less, none."""
    read = vars(vllm_config(10, {"learn": True}))
    assert sorted(read) == sorted(record["facts"]["configuration"]["VllmConfig"])
    for name in ("model", "parallel", "speculative"):
        part = vars(read[f"{name}_config"])
        assert sorted(part) == sorted(record["facts"]["configuration"][f"{name.title()}Config"])
    HierarchyProposer(SimpleNamespace(**read))
    for name in ("model_config", "parallel_config", "speculative_config"):
        for member in vars(read[name]):
            if member.startswith(("tokenizer", "trust", "skip")):
                continue  # looked at for named databases
            lacking = SimpleNamespace(**{key: value for key, value in vars(read[name]).items() if key != member})
            with pytest.raises(RuntimeError, match=r"changed the hook .*: use vLLM 0\.32 or 0\.33"):
                HierarchyProposer(SimpleNamespace(**{**read, name: lacking}))


def start_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, runner: str | None) -> HierarchyProposer:
    """Make a proposer as vLLM of a version does, whose runner has this source."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, RUNNER, raising=False)
    if runner is not None:
        path = tmp_path / "runner.py"
        path.write_text(runner, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(RUNNER, path)
        assert spec is not None and spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, RUNNER, module)
        spec.loader.exec_module(module)
    configuration = type("VllmConfig", (SimpleNamespace,), {"__module__": "vllm.config.vllm"})
    return HierarchyProposer(configuration(**vars(vllm_config(10))))


@pytest.mark.parametrize(("version", "lines"), [("0.33.1", 0), ("0.32.0+cpu", 0), ("0.34.0", 1), ("0.3.3", 1)])
def test_a_start_with_an_untested_version_logs_one_line(
    version: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vllm.hdraft"):
        start_in(monkeypatch, tmp_path, version, KNOWN)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"hdraft has not been tested with vLLM {version}, but with 0.32 and 0.33"] * lines


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "slot_mappings=slot_mappings,\n            )",
            "slot_mappings=slot_mappings, lora_ids=0)",
            "token_ids_cpu, slot_mappings, lora_ids",
        ),
        (
            "self.input_batch.num_tokens_no_spec,\n",
            "",
            "propose with sampled_token_ids, token_ids_cpu, slot_mappings instead of",
        ),
        ("self.input_batch.token_ids_cpu", "self.input_batch.token_ids_gpu", "token_ids_gpu"),
        ('"custom_class"', '"custom"', "propose with nothing instead of"),
        ("def propose_draft_token_ids", "def draft", "no vllm.v1.worker.gpu_model_runner.GPUModelRunner.propose_draft"),
        (KNOWN, "", "no vllm.v1.worker.gpu_model_runner.GPUModelRunner.propose_draft"),
    ],
)
def test_a_start_with_another_hook_fails_with_a_sentence(
    old: str, new: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in KNOWN
    with pytest.raises(RuntimeError) as refused:
        start_in(monkeypatch, tmp_path, "0.34.0", KNOWN.replace(old, new))
    message = str(refused.value)
    assert message.startswith("vLLM 0.34.0 has changed the hook that hdraft drafts by")
    assert reason in message and message.endswith("use vLLM 0.32 or 0.33, or a newer hdraft") and "\n" not in message


def test_a_start_without_the_v1_runner_fails_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="has changed the hook"):
        start_in(monkeypatch, tmp_path, "0.34.0", None)


def test_the_tool_reads_a_release_as_the_start_does(tmp_path: Path) -> None:
    if not TOOL.exists():
        pytest.skip("an installed package has no tools")
    spec = importlib.util.spec_from_file_location("vllm_contract", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sources = {
        tool.RUNNER: KNOWN.replace("slot_mappings):", "slot_mappings) -> list[list[int]]:"),
        tool.MAKES: "def create(vllm_config):\n    return user_class(vllm_config)\n",
        tool.CONFIG: """
class VllmConfig:
    additional_config: dict
    speculative_config: object
    def _get_v2_model_runner_unsupported_features(self):
        if speculative_config.method in ("suffix", "custom_class") and speculative_config.x not in ("a",):
            return []
""",
        tool.V2: "class BaseSpeculator:\n    def propose(self, input_batch, num_sampled): ...\n",
        tool.PARTS[0]: "class ModelConfig:\n    tokenizer: str\n    def get_vocab_size(self): ...\n",
        tool.PARTS[1]: "class ParallelConfig:\n    rank: int = 0\n",
        tool.PARTS[2]: "class SpeculativeConfig:\n    num_speculative_tokens: int\n",
    }
    assert tool.facts(sources) == {
        "made_with": ["vllm_config"],
        "called_with": TAKES,
        "returns": "list[list[int]]",
        "v1_only": ["custom_class", "suffix"],
        "configuration": {
            "VllmConfig": ["additional_config", "speculative_config"],
            "ModelConfig": ["get_vocab_size", "tokenizer"],
            "ParallelConfig": ["rank"],
            "SpeculativeConfig": ["num_speculative_tokens"],
        },
        "v2": ["input_batch", "num_sampled"],
    }
    assert call_of_hook(KNOWN) == TAKES and call_of_hook("pass") == []
