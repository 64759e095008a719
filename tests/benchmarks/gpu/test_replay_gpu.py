"""The measurements at full size, at a tiny one: the accounting adds up, a MAT is the replay's, and nothing is lost."""

import json
import lzma
import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import BENCHMARKS, load, run
from timed import PARTS, AskedAsDecoding
from transformers import AutoModelForCausalLM

from hdraft.evaluation.replay import replay
from hdraft.evaluation.traces import Request, read_traces

METHODS = ("transformers", "transformers-static", "vanilla", "pld", "published", "hd-7", "hd-adaptive")
TURNS, TOKENS, PLAIN = 5, 12, 3
ROWS = [1, 4, 8, 16, 32, 48, 64]

replay_gpu, sizes = load("replay", BENCHMARKS / "gpu"), load("sizes", BENCHMARKS / "gpu")
pack_replay = load("pack_replay", BENCHMARKS.with_name("tools"))


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
    file = ("--json", output / "figures.json", "--name", "mine")
    turns = ("--turns", TURNS, "--tokens", TOKENS, "--plain-turns", PLAIN, "--cached", 40)
    run(replay_gpu, monkeypatch, *tiny, *file, *turns, *arguments)
    return figures(output)


def figures(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "figures.json").read_text())["mine"]
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
    assert all(record["methods"][name]["steps_are"] == request.param for name in ("vanilla", "hd-7"))
    return record, output


def test_every_mat_is_that_of_the_replay(measured: tuple[dict[str, Any], Path], folder: Path) -> None:
    record, output = measured
    requests = replay_gpu.select(read_traces([folder / "trace.jsonl"]), TURNS, TOKENS)
    assert record["mat_equals_replay"]
    for name in ("pld", "published", "hd-7", "hd-adaptive"):
        method = replay_gpu.Method.of(name)
        costs = np.array(record["costs_milliseconds"]) / 1000 if method.adaptive else None
        scores = replay(requests, AskedAsDecoding(method.drafter(output)), method.budget, costs=costs).scores
        for category, score in scores.items():
            row = record["methods"][name]["categories"][category]
            assert (row["tokens"], row["steps"], row["mat"]) == (score.tokens, score.steps, score.mat)
            assert row["drafted_per_step"] == score.drafted / score.steps
    mats = {name: method["categories"]["all"]["mat"] for name, method in record["methods"].items()}
    assert mats["transformers"] == mats["vanilla"] == 1
    assert mats["hd-7"] > 1.5 and mats["pld"] > 1.1 and mats["published"] > 1.1


def test_the_accounting_adds_up(measured: tuple[dict[str, Any], Path]) -> None:
    record, _ = measured
    requests = record["requests"]
    assert [request["category"] for request in requests] == ["easy", "hard", "easy", "hard", "easy"]
    assert record["categories"] == ["all", "easy", "hard"]
    for name, method in record["methods"].items():
        rows = method["categories"]
        for key in ("requests", "tokens", "steps"):
            assert rows["all"][key] == rows["easy"][key] + rows["hard"][key]
        turns = PLAIN if name == "transformers" else TURNS
        assert [name in request["seconds"] for request in requests] == [True] * turns + [False] * (TURNS - turns)
        seconds = sum(request["seconds"][name] for request in requests[:turns])
        steps = sum(request["steps"][name] for request in requests[:turns])
        assert rows["all"]["requests"] == turns
        assert rows["all"]["tokens"] == sum(request["tokens"] for request in requests[:turns])
        assert rows["all"]["tokens_per_second"] == pytest.approx(rows["all"]["tokens"] / seconds)
        assert rows["all"]["steps"] == steps
        for row in rows.values():
            for figures in (row, row["decoding"]):
                assert figures["efficiency"] == pytest.approx(figures["speedup_over_vanilla"] / figures["mat"])
                assert figures["milliseconds_per_token"] == pytest.approx(1000 / figures["tokens_per_second"])
        both = [sum(request["seconds"][each] for request in requests[:PLAIN]) for each in ("transformers", name)]
        assert rows["all"]["speedup_over_transformers"] == pytest.approx(both[0] / both[1])
        floor = record["steps"][0]["floor_milliseconds"]
        assert method["share_of_floor"] == pytest.approx(floor / rows["all"]["decoding"]["step_milliseconds"]["p50"])
        parts = method["parts_milliseconds"]
        assert (parts is None) == (name == "transformers")
        if parts is not None:
            for taken in parts.values():
                assert sum(taken[part] for part in PARTS) + taken["rest"] == pytest.approx(taken["total"])
                assert taken["rest"] >= 0 and all(taken[part] >= 0 for part in PARTS)
            total = parts["prompt"]["total"] * TURNS + parts["decoding"]["total"] * (steps - TURNS)
            assert total == pytest.approx(1000 * seconds)
    assert sum(request["tokens"] for request in requests) == 4 * TOKENS + 8
    (bandwidth,) = record["steps"]
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64) + 64 + 64 * 32000  # layers, the last norm, the head
    assert bandwidth["weight_bytes"] == 4 * weights and bandwidth["cache_bytes"] == 4 * 2 * 2 * 64 * 40
    read = bandwidth["weight_bytes"] + bandwidth["cache_bytes"]
    assert bandwidth["floor_milliseconds"] == pytest.approx(1000 * read / bandwidth["copy_bytes_per_second"])
    assert [row["rows"] for row in bandwidth["sizes"]] == ROWS
    for row in bandwidth["sizes"]:
        assert row["share_of_floor"] == pytest.approx(bandwidth["floor_milliseconds"] / row["milliseconds"])
        assert row["to_one_row"] == pytest.approx(row["milliseconds"] / bandwidth["sizes"][0]["milliseconds"])


def test_it_says_what_it_is_of_and_what_was_not_measured(measured: tuple[dict[str, Any], Path]) -> None:
    record, _ = measured
    assert record["machine"]["accelerator"] is None and record["machine"]["processor"]
    assert "cudnn" not in record["machine"]["attention"] and "math" in record["machine"]["attention"]
    assert (record["shape"], record["dtype"], record["device"]) == ("tiny", "float32", "cpu")
    missing = "\n".join(record["not_measured"])
    words = ("no GPU was at hand", "peak memory", "transformers-static", "a tiny shape")
    assert all(word in missing for word in words)
    assert "transformers-static" not in record["methods"]
    tables = replay_gpu.markdown(record)
    assert "**Not measured**: no GPU was at hand" in tables and "| hd-adaptive |" in tables and "floor" in tables


def test_a_run_without_time_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = measure(folder, tmp_path, monkeypatch, "--methods", "vanilla", "hd-7", "--seconds", 0)
    assert f"{TURNS} of {TURNS} turns: the 0 seconds given were over" in record["not_measured"]
    assert record["categories"] == record["requests"] == [] and len(record["steps"][0]["sizes"]) == 7


def test_a_model_may_know_more_ids_than_were_recorded_and_share_keys(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("--methods", "vanilla", "hd-63", "hd-64", "--step", "captured")
    record = measure(folder, tmp_path, monkeypatch, *methods, "--shape", "tiny-grouped", "--cached", 40, 70)
    assert record["mat_equals_replay"] and record["methods"]["hd-63"]["categories"]["all"]["mat"] > 1.5
    assert [steps["cached_tokens"] for steps in record["steps"]] == [40, 70]
    assert [[row["rows"] for row in steps["sizes"]] for steps in record["steps"]] == [ROWS, [1, 64]]
    heads = 2 * 2 * 2 * 32 * 4  # keys and values, of two layers, two heads of 32, in four bytes
    assert [steps["cache_bytes"] for steps in record["steps"]] == [40 * heads, 70 * heads]


def test_another_mat_than_the_replays_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(trace: list[Request], *arguments: Any, **options: Any) -> Any:
        return replay(trace * 2, *arguments, **options)

    monkeypatch.setattr(replay_gpu, "replay", other)
    with pytest.raises(SystemExit, match=r"hd-7, 1: MAT .* one of the two is wrong"):
        measure(folder, tmp_path, monkeypatch, "--methods", "hd-7")
    record = figures(tmp_path)
    assert not record["mat_equals_replay"] and len(record["requests"]) == TURNS, "measured to its end all the same"
    assert "MATs that are not those of the replay without a model: hd-7, 1: MAT" in replay_gpu.markdown(record)


def test_what_is_measured_is_written_before_what_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_decoding = replay_gpu.time_decoding

    def fails(model: Any, request: Request, *arguments: Any) -> Any:
        if request.id == "4" and (tmp_path / "figures.json").exists() and figures(tmp_path)["requests"]:
            raise RuntimeError("CUDA error")
        return time_decoding(model, request, *arguments)

    monkeypatch.setattr(replay_gpu, "time_decoding", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        measure(folder, tmp_path, monkeypatch, "--methods", "vanilla", "hd-7")
    record = figures(tmp_path)
    assert [request["id"] for request in record["requests"]] == ["1", "2", "3"] and record["mat_equals_replay"]
    assert "### all: 3 turns" in replay_gpu.markdown(record)


def test_the_time_of_steps_attention_and_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, profile = tmp_path / "figures.json", tmp_path / "profile.txt"
    tiny = ("--shape", "tiny", "--dtype", "float32", "--device", "cpu", "--cached", 40, "--json", file)
    run(sizes, monkeypatch, *tiny, "--profile", profile)
    record = json.loads(file.read_text())["tiny-float32-captured-sizes"]
    assert [row["rows"] for row in record["steps"][0]["sizes"]] == ROWS and record["not_measured"] == []
    alone = {(row["attention"], row["rows"]): row for row in record["attention"]}
    assert alone["math", 1]["milliseconds"] > 0 and alone["math", 64]["width"] == 256
    assert "cannot" in alone["cudnn", 64], "which a CPU has not"
    tables = profile.read_text()
    assert "== a captured step of 1 rows behind 40 tokens" in tables and "of 64 rows" in tables and "aten::mm" in tables
    assert "| math | 64 | 256 |" in replay_gpu.markdown(record)

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("CUPTI is not there\nmore")

    monkeypatch.setattr(sizes, "profiled", fails)
    with pytest.raises(SystemExit) as ended:
        run(sizes, monkeypatch, *tiny, "--profile", profile, "--name", "mine")
    assert ended.value.code == 1 and "CUPTI" in capsys.readouterr().err
    assert figures(tmp_path)["not_measured"] == ["profiles: RuntimeError: CUPTI is not there"]
    assert len(figures(tmp_path)["attention"]) == len(record["attention"])


def test_published_shapes_are_what_their_names_say() -> None:
    billions = {"llama-2-7b": 6.74, "llama-2-13b": 13.02, "llama-3-8b": 8.03, "qwen3-8b": 8.19}
    shapes = load("shapes", BENCHMARKS / "gpu")
    for name, expected in billions.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shapes.SHAPES[name], dtype=torch.float16)
        assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(expected, abs=0.006)
    weights, cache = shapes.bytes_read(model, 10)
    assert cache == 2 * 36 * 8 * 128 * 10 * 2 and 0.8 < weights / (2e9 * billions["qwen3-8b"]) < 1


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
    recorded = load("recorded", BENCHMARKS / "gpu")
    plain, packed = (
        (recorded.read_requests(each), *recorded.read_sources(each)) for each in (folder, tmp_path / "packed")
    )
    for ours, theirs in zip(plain[0], packed[0], strict=True):
        assert (ours.id, ours.category) == (theirs.id, theirs.category)
        assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert ours.output_ids.tolist() == theirs.output_ids.tolist()
    assert plain[1].tolist() == packed[1].tolist() and plain[2].tolist() == packed[2].tolist()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--device", "cuda"), "there is no GPU: give --device cpu"),
        (("--device", "cpu", "--methods", "rest"), r"no method rest: there are vanilla, hd-63, .* hd-64"),
        (("--device", "cpu", "--methods", "transformers-static"), "transformers-static is for a GPU"),
        (("--device", "cpu", "--json", "none/figures.json"), "No such file or directory: .*none"),
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


FILES = {"machine.json", "replays.json", "lossless.json", "precision.json"}
EIGHT = {*FILES, "parts.tsv", "profile.txt", "summary.md", "log.txt"}
TINY = ("--device", "cpu", "--shape", "tiny")


def script(*arguments: object, python: str | Path = sys.executable) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(**command(*arguments, python=python), capture_output=True, text=True, check=False)


def command(*arguments: object, python: str | Path = sys.executable) -> dict[str, Any]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    return {"args": [str(BENCHMARKS / "gpu" / "run.sh"), *map(str, arguments)], "env": environment}


def test_the_script_leaves_every_figure_in_one_folder(folder: Path, tmp_path: Path) -> None:
    parts = ("--parts", "machine replay")
    done = script("--traces", folder, *TINY, "--output", tmp_path, *parts)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == EIGHT - {"lossless.json", "precision.json", "profile.txt"}, "and of parts not asked for nothing"
    summary = (tmp_path / "summary.md").read_text()
    for part in ("machine", "replay"):
        assert f"| {part} | done |" in summary
    assert "| everything on a GPU | left out: none was at hand" in summary and "cudnn, math" not in summary
    replays = json.loads((tmp_path / "replays.json").read_text())
    assert list(replays) == ["tiny-float32-captured"]
    assert replays["tiny-float32-captured"]["mat_equals_replay"]
    assert set(json.loads((tmp_path / "machine.json").read_text())) == {"packages", "machine", "memory"}
    assert all(f"{part}: " in (tmp_path / "log.txt").read_text() for part in ("machine", "replay"))


@pytest.mark.parametrize("seconds", [5, 12])
def test_a_run_that_is_killed_leaves_what_it_had(folder: Path, tmp_path: Path, seconds: int) -> None:
    running = subprocess.Popen(
        **command("--traces", folder, *TINY, "--output", tmp_path), stdout=subprocess.DEVNULL, start_new_session=True
    )
    with suppress(subprocess.TimeoutExpired):
        running.wait(seconds)
    running.kill()
    running.wait()
    for process in Path("/proc").iterdir():  # `timeout` gives each part a group of its own
        if process.name.isdecimal() and str(tmp_path).encode() in read(process / "cmdline"):
            os.kill(int(process.name), signal.SIGKILL)
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert names <= EIGHT and "log.txt" in names
    for name in names & FILES:
        assert json.loads((tmp_path / name).read_text())
    page = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu" / "summary.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "summary.md").read_text().startswith("# What benchmarks/gpu/run.sh measured")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def test_the_script_names_the_parts_that_it_has_no_time_for(folder: Path, tmp_path: Path) -> None:
    done = script("--traces", folder, *TINY, "--output", tmp_path, "--seconds", 3)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    for part in ("machine", "steps", "replay", "lossless", "lossless-experts", "precision", "tiny-grouped"):
        assert f"| {part} | left out: " in summary


def test_the_script_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ((), "gpu/run.sh --traces FOLDER"),
        (("--traces", tmp_path / "none"), f"there is no folder {tmp_path}/none"),
        (("--traces",), "gpu/run.sh --traces FOLDER"),
        (("--traces", folder, "--parts", "steps stops"), "no part stops: there are machine steps replay"),
        (("--traces", folder, "--seconds", "soon"), "--seconds takes a whole number, not soon"),
    ):
        done = script(*arguments)
        assert done.returncode == 2 and says in done.stderr and not done.stdout


@pytest.mark.parametrize("shape", ["llama-2-7b", "llama-3-8b"])
def test_what_the_script_runs_on_a_gpu(folder: Path, tmp_path: Path, shape: str) -> None:
    """A stand-in for Python tells what it was asked for, and writes what is asked for."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nscript=$1\necho "$*" >> {calls}\n'
        'while [ $# -gt 0 ]; do case $1 in --json|--profile) echo "{}" > "$2";; esac; shift; done\n'
        "case $script in *precision.py) echo three lines; exit 3;; esac\n"
    )
    python.chmod(0o755)
    output = tmp_path / "output"
    done = script("--traces", folder, "--output", output, "--shape", shape, python=python)
    assert done.returncode == 1, "a part that fails does not keep the others from running, and is not forgotten"
    assert "precision: three lines" in done.stderr
    parts = dict(line.split("\t")[:2] for line in (output / "parts.tsv").read_text().splitlines())
    assert parts.pop("precision") == "failed with 3, see log.txt"
    assert parts.pop("kernels and databases") == "ready" and set(parts.values()) == {"done"}
    assert {path.name for path in output.iterdir()} | {"summary.md"} == EIGHT
    ran = [line.split() for line in calls.read_text().splitlines() if "summary.py" not in line]
    beside = [each for each in ran if each[0] == "-m" or "recorded.py" in each[0]]
    assert beside[0] == ["-m", "hdraft.drafting.compile_kernels", "32000", "--all"]
    assert beside[1][:2] == ["benchmarks/gpu/recorded.py", str(folder)]
    ran = [each for each in ran if each not in beside]
    asked = [dict(pairwise(each)) for each in ran]
    assert [each[0] for each in ran[:3]] == [f"benchmarks/gpu/{name}.py" for name in ("memory", "sizes", "replay")]
    others = ("llama-3-8b", "qwen3-8b", "llama-2-13b") if shape == "llama-2-7b" else ()
    exact = {
        (each["--shape"], each["--dtype"]) for words, each in zip(ran, asked, strict=True) if "exact.py" in words[0]
    }
    assert exact == {(shape, "float16"), ("llama-3-8b", "bfloat16")}
    assert {each.get("--families") for each in asked[3:8]} == {"dense", "experts", None}
    of = [(each["--shape"], each["--dtype"], each["--step"]) for each in asked[8:]]
    assert of == [
        (shape, "float16", "exact"),
        *((other, "float16", "captured") for other in others),
        (shape, "bfloat16", "captured"),
        (shape, "float16", "compiled"),
    ]
    for words, each in zip(ran[8:], asked[8:], strict=True):
        assert "--methods vanilla hd-63" in " ".join(words) and "transformers-static" not in words
        longer = each["--shape"] in others and each["--shape"] != "llama-2-13b"
        assert ("--cached 512 4000" in " ".join(words)) == longer
    *seconds, compiled = (int(each["--seconds"]) for each in [asked[2], *asked[8:]])
    assert 100 < seconds[0] < 230 and seconds == sorted(seconds)
    assert compiled <= seconds[-1] < 555 * 6 / 7, "which has what the others left, and no share of its own"
