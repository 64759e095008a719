"""The commands as processes: with standard streams that are closed, or of another encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import TEXT, save_tiny_model

HDRAFT = [sys.executable, "-m", "hdraft.cli"]
CLOSED = "<&- >&- 2>&-"
FAR = "Zwölf 日本 🎉"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", TEXT + FAR)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    request = {"id": "1", "category": FAR, "prompt_ids": [5, 6, 7, 8], "output_ids": [5, 6, 7, 8, 5, 6, 7, 8, 0]}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(request) + "\n")
    return path


def shell(arguments: list[object], redirections: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *HDRAFT, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
        env=os.environ | environment,
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", CLOSED])
def test_replay_with_streams_that_are_closed(trace: Path, tmp_path: Path, closed: str) -> None:
    result = shell(["replay", trace, "--json", tmp_path / "figures.json"], closed)
    assert result.returncode == 0 and not result.stderr, result
    assert json.loads((tmp_path / "figures.json").read_text())["categories"]["all"]["tokens"] == 9


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_commands_with_all_streams_closed(model: Path, trace: Path, tmp_path: Path) -> None:
    """Files that they open must not take the place of a stream that they write to."""
    corpus, output, questions = tmp_path / "corpus.txt", tmp_path / "D_s", tmp_path / "q.jsonl"
    corpus.write_text(TEXT * 9)
    questions.write_text('{"question_id": 1, "category": "qa", "turns": ["def area("]}\n')
    before = {path: path.read_bytes() for path in (corpus, trace, questions)}
    bench = ["bench", "--model", model, "--method", "pld", "--questions", questions, "--max-new-tokens", 8]
    for arguments, code in (
        (["build", "statistics", "--corpus", corpus, "--output", output, "--tokenizer", model], 0),
        ([*bench, "--chat-template", "vicuna", "--output", tmp_path / "bench"], 0),
        (["generate", "--model", model], 2),  # there is no prompt
        (["replay", tmp_path / "nothing"], 2),
        ([], 0),
    ):
        assert shell(arguments, CLOSED).returncode == code, arguments
    assert {path: path.read_bytes() for path in before} == before
    assert (output / "manifest.json").exists() and (tmp_path / "bench" / "report.md").exists()


OTHER_ENCODINGS = (
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.mark.parametrize("environment", OTHER_ENCODINGS[:1])
def test_json_is_whole_in_every_encoding(model: Path, environment: dict[str, str]) -> None:
    ask = ["generate", "--model", model, "--prompt", FAR, "--max-new-tokens", 8, "--json"]
    plain, other = shell(ask, ""), shell(ask, "", **environment)
    assert other.returncode == 0, other
    first, second = json.loads(plain.stdout), json.loads(other.stdout)
    assert first["text"] == second["text"] and not first["text"].isascii()


@pytest.mark.parametrize("environment", OTHER_ENCODINGS[1:])
def test_what_an_encoding_cannot_hold_is_escaped(trace: Path, environment: dict[str, str]) -> None:
    result = shell(["replay", trace], "", **environment)
    assert result.returncode == 0
    assert rb"\u65e5\u672c \U0001f389" in result.stdout and b"?" not in result.stdout
    result = shell(["replay", f"{FAR}.jsonl"], "", **environment)
    assert result.returncode == 2 and (rb"\u65e5\u672c" in result.stderr or rb"\udce6" in result.stderr)


def test_a_prompt_that_is_no_text_is_refused(model: Path) -> None:
    ask = ["generate", "--model", model, "--prompt"]
    command = [os.fsencode(each) for each in (*HDRAFT, *ask)]
    result = subprocess.run([*command, b"caf\xe9"], capture_output=True, check=False)
    assert result.returncode == 2, result
    assert result.stderr == b"hdraft: --prompt is not valid text: it must be UTF-8\n"
