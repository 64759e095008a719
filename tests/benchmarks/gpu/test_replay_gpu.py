"""The replay at full size, at a tiny one: its accounting adds up, its MAT is the replay's, and it says what it is."""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import BENCHMARKS, load, run
from timed import PARTS, AskedAsDecoding

from hdraft.evaluation.replay import replay
from hdraft.evaluation.traces import Request, read_traces

METHODS = ("transformers", "transformers-static", "vanilla", "pld", "published", "hd-8", "hd-adaptive")
TURNS, TOKENS = 5, 12

replay_gpu, pack_replay = load("replay", BENCHMARKS / "gpu"), load("pack_replay", BENCHMARKS.with_name("tools"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An invented trace of phrases that come again, one behind a long prompt, and of tokens that do not."""
    folder = tmp_path_factory.mktemp("recorded")
    random = np.random.default_rng(0)
    phrases = random.integers(3, 32000, (6, 15)).tolist()
    noise = random.integers(3, 32000, 540).tolist()
    requests: list[dict[str, Any]] = [
        {"id": "1", "category": "easy", "prompt_ids": [1, *phrases[0], 9], "output_ids": [*phrases[0], *phrases[1]]},
        {"id": "2", "category": "hard", "prompt_ids": [1, 5, 6], "output_ids": noise[:20]},
        {"id": "3", "category": "easy", "prompt_ids": [1, *noise, *phrases[2]], "output_ids": phrases[2] * 2},
        {"id": "4", "category": "hard", "prompt_ids": [1, 7], "output_ids": noise[30:38]},
        {"id": "5", "category": "easy", "prompt_ids": [1, *phrases[3][:4]], "output_ids": [*phrases[3][4:], 2]},
        {"id": "6", "category": "easy", "prompt_ids": [1, 8], "output_ids": phrases[4]},
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    with (folder / "generations.jsonl").open("w") as file:
        file.writelines(json.dumps({"output_ids": [*phrase, 2]}) + "\n" for phrase in phrases[1:4])
    np.save(folder / "corpus.npy", np.array([*phrases[4], 2, *noise[100:], 2, *phrases[0], 2], np.int64))
    return folder


def measure(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    tiny = ("--shape", "tiny", "--dtype", "float32", "--device", "cpu", "--traces", folder)
    files = ("--json", output / "figures.json", "--markdown", output / "figures.md")
    run(replay_gpu, monkeypatch, *tiny, *files, "--turns", TURNS, "--tokens", TOKENS, *arguments)
    record: dict[str, Any] = json.loads((output / "figures.json").read_text())
    return record


@pytest.fixture(scope="module", params=["dynamic", "static"])
def measured(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as monkeypatch:
        record = measure(
            folder, output, monkeypatch, "--methods", *METHODS, "--step", request.param, "--databases", output
        )
    assert record["step"] == request.param
    assert all(record["methods"][name]["steps_are"] == request.param for name in ("vanilla", "hd-8"))
    return record, output


def test_every_mat_is_that_of_the_replay(measured: tuple[dict[str, Any], Path], folder: Path) -> None:
    record, output = measured
    requests = replay_gpu.select(read_traces([folder / "trace.jsonl"]), TURNS, TOKENS)
    assert record["mat_equals_replay"]
    for name in ("pld", "published", "hd-8", "hd-adaptive"):
        method = replay_gpu.Method.of(name)
        costs = np.array(record["costs_milliseconds"]) / 1000 if method.adaptive else None
        scores = replay(requests, AskedAsDecoding(method.drafter(output)), method.budget, costs=costs).scores
        for category, score in scores.items():
            row = record["methods"][name]["categories"][category]
            assert (row["tokens"], row["steps"], row["mat"]) == (score.tokens, score.steps, score.mat)
            assert row["drafted_per_step"] == score.drafted / score.steps
    mats = {name: method["categories"]["all"]["mat"] for name, method in record["methods"].items()}
    assert mats["transformers"] == mats["vanilla"] == 1
    assert mats["hd-8"] > 1.5 and mats["pld"] > 1.1 and mats["published"] > 1.1


def test_the_accounting_adds_up(measured: tuple[dict[str, Any], Path]) -> None:
    record, _ = measured
    requests = record["requests"]
    assert [request["category"] for request in requests] == ["easy", "hard", "easy", "hard", "easy"]
    assert record["categories"] == ["all", "easy", "hard"]
    for name, method in record["methods"].items():
        rows = method["categories"]
        for key in ("requests", "tokens", "steps"):
            assert rows["all"][key] == rows["easy"][key] + rows["hard"][key]
        seconds = sum(request["seconds"][name] for request in requests)
        steps = sum(request["steps"][name] for request in requests)
        assert rows["all"]["tokens"] == sum(request["tokens"] for request in requests) == 4 * TOKENS + 8
        assert rows["all"]["tokens_per_second"] == pytest.approx(rows["all"]["tokens"] / seconds)
        assert rows["all"]["steps"] == steps
        for row in rows.values():
            for figures in (row, row["decoding"]):
                assert figures["efficiency"] == pytest.approx(figures["speedup_over_vanilla"] / figures["mat"])
        base = record["methods"]["transformers"]["categories"]["all"]["tokens_per_second"]
        assert rows["all"]["speedup_over_transformers"] == pytest.approx(rows["all"]["tokens_per_second"] / base)
        parts = method["parts_milliseconds"]
        assert (parts is None) == (name == "transformers")
        if parts is not None:
            for taken in parts.values():
                assert sum(taken[part] for part in PARTS) + taken["rest"] == pytest.approx(taken["total"])
                assert taken["rest"] >= 0 and all(taken[part] >= 0 for part in PARTS)
            total = parts["prompt"]["total"] * TURNS + parts["decoding"]["total"] * (steps - TURNS)
            assert total == pytest.approx(1000 * seconds)
    bandwidth = record["bandwidth"]
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64) + 64 + 64 * 32000  # layers, the last norm, the head
    assert bandwidth["weight_bytes"] == 4 * weights and bandwidth["cache_bytes"] == 4 * 2 * 2 * 64 * 512
    read = bandwidth["weight_bytes"] + bandwidth["cache_bytes"]
    assert bandwidth["floor_milliseconds"] == pytest.approx(1000 * read / bandwidth["copy_bytes_per_second"])
    assert [row["rows"] for row in record["sizes"]] == [1, 4, 8, 16, 32, 64, 65]
    for row in record["sizes"]:
        assert row["share_of_floor"] == pytest.approx(bandwidth["floor_milliseconds"] / row["milliseconds"])
        assert row["to_one_row"] == pytest.approx(row["milliseconds"] / record["sizes"][0]["milliseconds"])


def test_it_says_what_it_is_of_and_what_was_not_measured(measured: tuple[dict[str, Any], Path]) -> None:
    record, output = measured
    assert record["machine"]["accelerator"] is None and record["machine"]["processor"]
    assert (record["shape"], record["dtype"], record["device"]) == ("tiny", "float32", "cpu")
    missing = "\n".join(record["not_measured"])
    words = ("no GPU was at hand", "peak memory", "transformers-static", "the tiny shape")
    assert all(word in missing for word in words)
    assert "transformers-static" not in record["methods"]
    tables = (output / "figures.md").read_text()
    assert tables == replay_gpu.markdown(record)
    assert "**Not measured**: no GPU was at hand" in tables and "| hd-adaptive |" in tables and "floor" in tables


def test_a_run_without_time_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = measure(folder, tmp_path, monkeypatch, "--methods", "vanilla", "hd-8", "--seconds", 0)
    assert f"{TURNS} of {TURNS} turns: the 0 seconds given were over" in record["not_measured"]
    assert record["categories"] == record["requests"] == [] and len(record["sizes"]) == 7


def test_another_mat_than_the_replays_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(trace: list[Request], *arguments: Any, **options: Any) -> Any:
        return replay(trace[1:], *arguments, **options)

    monkeypatch.setattr(replay_gpu, "replay", other)
    with pytest.raises(RuntimeError, match=r"hd-8, all: MAT .* one of the two is wrong"):
        measure(folder, tmp_path, monkeypatch, "--methods", "hd-8")
    assert not json.loads((tmp_path / "figures.json").read_text())["mat_equals_replay"]


def test_requests_are_spread_over_the_categories() -> None:
    def request(name: str, category: str, length: int) -> Request:
        return Request(name, category, np.ones(1, np.int32), np.arange(length, dtype=np.int32))

    trace = [request(f"a{i}", "a", 9) for i in range(10)]
    trace += [request(f"b{i}", "b", i) for i in range(1, 5)] + [request("c", "c", 1)]
    chosen = replay_gpu.select(trace, 7, 4)
    assert [each.id for each in chosen] == ["a0", "b4", "c", "a3", "b3", "a6"], "and of c there is one only"
    assert [len(each.output_ids) for each in chosen] == [4, 4, 1, 4, 3, 4]


def test_what_is_packed_reads_as_what_it_was(folder: Path, tmp_path: Path) -> None:
    assert pack_replay.pack(folder, tmp_path / "packed") > 0
    names = sorted(path.name for path in (tmp_path / "packed").iterdir())
    assert names == ["corpus.npy.xz", "generations.jsonl.gz", "trace.jsonl.gz"]
    assert len(lzma.decompress((tmp_path / "packed" / "corpus.npy.xz").read_bytes())) < 2 * 500 + 128 + 2 * 16
    vocabulary = replay_gpu.Vocabulary(32000, 2)
    plain, packed = (replay_gpu.read_folder(each, vocabulary) for each in (folder, tmp_path / "packed"))
    for ours, theirs in zip(plain[0], packed[0], strict=True):
        assert (ours.id, ours.category) == (theirs.id, theirs.category)
        assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert ours.output_ids.tolist() == theirs.output_ids.tolist()
    assert plain[1].tolist() == packed[1].tolist() and plain[2].tolist() == packed[2].tolist()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--device", "cuda"), "there is no GPU: give --device cpu"),
        (("--device", "cpu", "--methods", "rest"), r"no method rest: there are transformers, .* hd-64"),
        (("--device", "cpu", "--methods", "transformers-static"), "transformers-static is for a GPU"),
        (("--device", "cpu", "--json", "none/figures.json"), "there is no folder none"),
        (("--device", "cpu", "--tokens", "1"), "--tokens at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: tuple[str, ...], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=says):
        run(replay_gpu, monkeypatch, "--traces", folder, *arguments)


def test_a_folder_that_lacks_something_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trace.jsonl").write_bytes((folder / "trace.jsonl").read_bytes())
    for says in ("holds no generations", "holds no corpus"):
        with pytest.raises(SystemExit, match=says):
            run(replay_gpu, monkeypatch, "--traces", tmp_path, "--device", "cpu")
        (tmp_path / "generations.jsonl").write_bytes((folder / "generations.jsonl").read_bytes())


def script(*arguments: object, python: str | Path = sys.executable) -> "subprocess.CompletedProcess[str]":
    command = [str(BENCHMARKS / "gpu" / "run.sh"), *map(str, arguments)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_names_the_parts_that_it_has_no_time_for(folder: Path, tmp_path: Path) -> None:
    done = script("--traces", folder, "--device", "cpu", "--shape", "tiny", "--output", tmp_path, "--seconds", 5)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    for part in ("lossless", "precision", "tiny-float32", "everything on a GPU"):
        assert f"| {part} | left out: " in summary


def test_the_script_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ((), "gpu/run.sh --traces FOLDER"),
        (("--traces", tmp_path / "none"), f"there is no folder {tmp_path}/none"),
        (("--traces",), "gpu/run.sh --traces FOLDER"),
    ):
        done = script(*arguments)
        assert done.returncode == 2 and says in done.stderr and not done.stdout


@pytest.mark.parametrize("free", [80, 39])
def test_what_the_script_runs_on_a_gpu(folder: Path, tmp_path: Path, free: int) -> None:
    """A stand-in for Python tells what it was asked for."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && {{ case $2 in *mem_get_info*) echo {free};; esac; exit 0; }}\n'
        f'echo "$*" >> {calls}\ncase $* in *precision*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    output = tmp_path / "output"
    done = script("--traces", folder, "--output", output, python=python)
    assert done.returncode == 1, "a part that fails does not keep the others from running, and is not forgotten"
    summary, ran = (output / "summary.md").read_text(), calls.read_text().splitlines()
    assert "| precision | failed with 3, see precision.log |" in summary
    assert sorted(path.name for path in output.iterdir()) == ["precision.log", "summary.md"]
    assert ran[0] == "-m hdraft.drafting.compile_kernels 32000 --all"
    assert [line.split()[0] for line in ran[1:3]] == ["benchmarks/lossless.py", "benchmarks/precision.py"]
    replays = [line.split() for line in ran[3:]]
    assert all(each[0] == "benchmarks/gpu/replay.py" for each in replays)
    of = [(*(each[each.index(name) + 1] for name in ("--shape", "--dtype", "--step")),) for each in replays]
    large = [("llama-2-13b", "float16", "captured")]
    assert of == [
        ("llama-2-7b", "float16", "captured"),
        ("llama-2-7b", "float16", "compiled"),
        *(large if free >= 40 else []),
        ("llama-2-7b", "bfloat16", "captured"),
    ]
    assert ("llama-2-13b-float16-captured | left out: 39 GB are free, it takes 40" in summary) == (free < 40)
    for each in replays:
        assert set(each[each.index("--methods") + 1 :]) <= {*METHODS, "hd-27", "hd-64"}
    seconds = [int(each[each.index("--seconds") + 1]) for each in replays]
    assert 150 < seconds[0] < seconds[1] <= 440 * 6 / 7 and all(each < 530 for each in seconds)


@pytest.mark.parametrize(
    "script, version", [("echo 570.86.10; echo 570.86.10", "570.86.10"), ("echo no; exit 9", None)]
)
def test_the_driver_is_what_nvidia_smi_says(
    script: str, version: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert replay_gpu.driver() == version


def test_no_driver_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert replay_gpu.driver() is None
