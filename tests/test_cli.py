"""The commands, as a user types them: what they print, and that every mistake is one line and an exit code."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny_model import TEXT, save_tiny_model
from typer.main import get_command

import hdraft
from hdraft import cli

HDRAFT = [sys.executable, "-c", "from hdraft.cli import main; main()"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["hdraft", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(end.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("other") / "model", text="Two lattes, please.")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT * 20}) + "\n" for _ in range(5)))
    return path


@pytest.fixture
def statistics_database(run: Run, model: Path, corpus: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "D_s"
    assert run("build", "statistics", "--corpus", corpus, "--tokenizer", model, "--output", folder).code == 0
    return folder


def refused(result: Result, *words: str, code: int = 2) -> None:
    """One line that says it, and nothing else."""
    assert result.code == code, result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("hdraft: ")
    assert "Traceback" not in result.err
    assert not result.out
    for word in words:
        assert word in result.err


# ------------------------------------------------------------------------------------------- generate


def test_generate_writes_what_the_model_writes_by_itself(run: Run, model: Path) -> None:
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 40)
    drafted, ordinary = run(*ask), run(*ask, "--no-draft")
    assert (drafted.code, drafted.err) == (0, "")
    assert drafted.out.strip()
    assert drafted.out == ordinary.out


@pytest.mark.parametrize("step", ["auto", "static", "captured", "dynamic"])
def test_generate_writes_the_same_however_a_step_is_run(run: Run, model: Path, step: str) -> None:
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 40)
    stepped = run(*ask, "--step", step)
    assert (stepped.code, stepped.err) == (0, "")
    assert stepped.out == run(*ask, "--no-draft").out


def test_generate_reads_standard_input_and_files(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT)
    ask = ("generate", "--model", model, "--max-new-tokens", 8)
    expected = run(*ask, "--prompt", TEXT).out
    assert run(*ask, stdin=TEXT.encode()).out == expected
    assert run(*ask, "--prompt-file", tmp_path / "prompt.txt").out == expected


def test_generate_json(run: Run, model: Path) -> None:
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 40, "--json")
    answer = json.loads(run(*ask).out)
    assert len(answer["output_ids"]) == len(answer["sources"]) == answer["statistics"]["tokens"] == 40
    accepted = answer["statistics"]["accepted"]
    assert sum(accepted.values()) == sum(source is not None for source in answer["sources"])
    assert answer["text"] == run(*ask[:-1]).out.removesuffix("\n")


def test_generate_samples_the_same_with_the_same_seed(run: Run, model: Path) -> None:
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 16, "--do-sample", "--temperature", 2)
    first = run(*ask, "--seed", 1).out
    assert first == run(*ask, "--seed", 1, "--no-draft").out
    assert first != run(*ask, "--seed", 2).out


def test_generate_with_databases_and_statistics(run: Run, model: Path, statistics_database: Path) -> None:
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 16, "--stats")
    result = run(*ask, "--statistics-database", statistics_database)
    assert result.code == 0
    assert "16 tokens in" in result.err
    assert "\x1b" not in result.out + result.err


def test_generate_drafts_from_a_reference_and_writes_what_it_writes_without(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdraft.HierarchyDrafter, "uses_costs", False)  # whatever a busy machine measures
    hdraft.HierarchyDrafter(100).warm_up()
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 32, "--json")
    alone = json.loads(run(*ask).out)
    reference = tmp_path / "last.txt"
    reference.write_text(alone["text"])
    drafted = json.loads(run(*ask, "--reference", reference).out)
    assert drafted["output_ids"] == alone["output_ids"]
    assert drafted["statistics"]["accepted"]["reference"] > 0
    assert drafted["statistics"]["steps"] < alone["statistics"]["steps"]
    refused(run(*ask, "--reference", reference, "--no-draft"), "--reference is for drafting")
    refused(run(*ask, "--reference", tmp_path / "nothing"), "does not exist")
    reference.write_bytes(b"\xff\xfe")
    refused(run(*ask, "--reference", reference), "UTF-8")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused(run: Run, model: Path, text: str) -> None:
    refused(run("generate", "--model", model, "--prompt", text), "empty")
    refused(run("generate", "--model", model, stdin=text.encode()), "empty")


def test_a_prompt_that_is_not_text_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff\xfe")
    refused(run("generate", "--model", model, "--prompt-file", tmp_path / "prompt"), "UTF-8")
    refused(run("generate", "--model", model, "--prompt-file", tmp_path / "nothing"), "does not exist")
    refused(run("generate", "--model", model, "--prompt", "a", "--prompt-file", tmp_path / "prompt"), "leave one out")


def test_a_prompt_file_is_read_as_a_corpus_is(run: Run, model: Path, tmp_path: Path) -> None:
    """A byte order mark and the ends of lines make no difference."""
    ask = ("generate", "--model", model, "--max-new-tokens", 8)
    expected = run(*ask, "--prompt", TEXT).out
    written = b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()
    (tmp_path / "prompt.txt").write_bytes(written)
    assert run(*ask, "--prompt-file", tmp_path / "prompt.txt").out == expected
    assert run(*ask, stdin=written).out == expected
    refused(run(*ask, stdin=b"\xef\xbb\xbf"), "the prompt is empty")


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def truncate_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def change_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def make_unknown(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')


def make_encoder_decoder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')


def remove_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_config, "not a valid JSON"),
        (truncate_weights, "cannot load"),
        (change_shapes, "other shapes"),
        (remove_tokenizer, "tokenizer"),
        (make_unknown, "unheard_of"),
        (make_encoder_decoder, "no causal language model"),
        (remove_weight, "lacks weights, model.norm.weight"),
    ],
)
def test_a_damaged_model_is_refused(run: Run, tmp_path: Path, damage: Callable[[Path], None], word: str) -> None:
    folder = save_tiny_model(tmp_path / "model")
    damage(folder)
    refused(run("generate", "--model", folder, "--prompt", "a"), word)


def test_a_missing_model_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("generate", "--model", tmp_path / "nothing", "--prompt", "a"), "no folder")
    refused(run("generate", "--model", "./nothing", "--prompt", "a"), "no folder")
    refused(run("generate", "--model", __file__, "--prompt", "a"), "is a file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chat"], "no chat template: give --chat-template"),
        (["--chat-template", "alpaca"], "no chat template alpaca"),
        (["--device", "abacus"], "no device"),
        (["--dtype", "int3"], "--dtype"),
        (["--temperature", "0.5"], "add --do-sample"),
        (["--do-sample", "--temperature", "0"], "above 0"),
        (["--do-sample", "--temperature", "inf"], "finite"),
        (["--do-sample", "--temperature", "nan"], "--temperature"),
        (["--do-sample", "--top-p", "nan"], "--top-p"),
        (["--do-sample", "--min-p", "nan"], "--min-p"),
        (["--repetition-penalty", "inf"], "finite"),
        (["--model-database", ""], "--model-database is empty"),
        (["--statistics-database="], "--statistics-database is empty"),
        (["--no-draft", "--model-database", "x"], "--model-database is for drafting, and --no-draft is without"),
        (["--no-draft", "--statistics-database", "x"], "--statistics-database is for drafting"),
        (["--do-sample", "--top-p", "2"], "--top-p"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--budget", "-1"], "--budget"),
        (["--budget", "many"], "--budget"),
        (["--model-database", "nothing"], "no database at nothing"),
        (["--statistics-database", os.path.dirname(__file__)], "not a database"),
        (["--unheard-of"], "--unheard-of"),
    ],
)
def test_wrong_arguments_are_refused(run: Run, model: Path, arguments: list[str], words: str) -> None:
    refused(run("generate", "--model", model, "--prompt", "a", *arguments), words)


GGUF = ["generate", "--model", "some.gguf", "--prompt", "a"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*GGUF, "--dtype", "float32"], "--dtype is for transformers"),
        ([*GGUF, "--step", "static"], "--step is for transformers"),
        ([*GGUF, "--no-repeat-ngram-size", "3"], "--no-repeat-ngram-size is for transformers"),
        ([*GGUF, "--trust-remote-code"], "--trust-remote-code is for transformers"),
        ([*GGUF, "--device", "cuda:1"], "with llama.cpp, --device is auto"),
        ([*GGUF, "--top-k", "3"], "--top-k is for sampling: add --do-sample"),
        ([*GGUF, "--no-draft", "--model-database", "D_m"], "--model-database is for drafting"),
        ([*GGUF, "--engine", "transformers"], "some.gguf is a GGUF file"),
        (["chat", "--model", "some.gguf"], "some.gguf is a GGUF file"),
        (["build", "model", "--model", "some.gguf", "--prompts", "p.jsonl", "--output", "D"], "is a GGUF file"),
    ],
)
def test_what_a_gguf_file_is_not_run_with_is_refused(
    run: Run, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    refused(run(*arguments), words)


@pytest.mark.parametrize(
    "arguments",
    [
        GGUF,
        ["build", "statistics", "--corpus", "c.txt", "--tokenizer", "some.gguf", "--output", "D"],
        ["build", "model", "--generations", "g.jsonl", "--tokenizer", "some.gguf", "--output", "D"],
    ],
)
def test_a_gguf_file_without_what_reads_it_is_refused_with_how_to_get_that(
    run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdraft.engines.gguf.find_spec", lambda name: None)
    refused(run(*arguments), "llama-cpp-python is not installed here: pip install 'hdraft[llama-cpp]'")


def test_a_database_for_another_tokenizer_is_refused(run: Run, other_model: Path, statistics_database: Path) -> None:
    ask = ("generate", "--model", other_model, "--prompt", "a")
    refused(run(*ask, "--statistics-database", statistics_database), "tokenizer")
    refused(run(*ask, "--model-database", statistics_database), "model database is needed")


# ----------------------------------------------------------------------------------------------- chat


def chat(model: Path, *arguments: object) -> tuple[object, ...]:
    return ("chat", "--model", model, "--chat-template", "vicuna", "--max-new-tokens", 12, *arguments)


def test_chat_in_a_pipe_answers_each_line_and_writes_nothing_else(run: Run, model: Path) -> None:
    first = run(
        "generate", "--model", model, "--prompt", "def area", "--chat-template", "vicuna", "--max-new-tokens", 12
    )
    drafted, ordinary = (
        run(*chat(model, *options), stdin=b"def area\n\nwidth\r\nheight") for options in ((), ("--no-draft",))
    )
    assert (drafted.code, drafted.err) == (0, "")
    assert drafted.out == ordinary.out and "\x1b" not in drafted.out
    assert drafted.out.startswith(first.out) and len(drafted.out) > len(first.out)
    assert run(*chat(model), stdin=b"") == (0, "", "")


def test_chat_drafts_from_a_reference(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdraft.HierarchyDrafter, "uses_costs", False)  # whatever a busy machine measures
    answer = run(*chat(model), stdin=b"def area\n").out
    (tmp_path / "answer.txt").write_text(answer)
    result = run(*chat(model, "--reference", tmp_path / "answer.txt"), stdin=b"def area\n/stats\n")
    assert result.code == 0 and result.out.startswith(answer)
    assert re.search(r"reference .*: [1-9]", result.out)


def test_chat_saves_what_was_said(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    lines = f"def \\\narea\n /help\n/save {path}\n/reset\nwidth\n/exit\nheight\n"
    result = run(*chat(model, "--system", "Be short."), stdin=lines.encode())
    assert (result.code, result.err) == (0, "")
    messages = [json.loads(line) for line in path.read_text().splitlines()]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in messages[:4:1] if message["role"] != "assistant"] == [
        "Be short.",
        "def \narea",
        " /help",
    ]
    answers = "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    alone = run(*chat(model, "--system", "Be short."), stdin=b"width\n").out
    assert result.out == answers + alone


def test_chat_says_how_its_tokens_came_about(run: Run, model: Path) -> None:
    result = run(*chat(model), stdin=b"width\nheight\n/stats\n/help\n")
    assert result.code == 0
    assert re.search(r"^2 turns, 24 tokens, [\d.,]+ tokens/s, MAT \d", result.out, re.MULTILINE)
    sources = "   ".join(rf"{name} .*: (\d+)" for name in ("D_c", "D_m", "D_s", "recycled", "model"))
    counts = re.search(rf"^{sources}$", result.out, re.MULTILINE)
    assert counts is not None and sum(map(int, counts.groups())) == 24
    assert all(f"\n/{name}" in result.out for name in ("reset", "stats", "save", "help", "exit"))


def test_chat_drafts_from_what_it_has_learnt_and_from_databases(
    run: Run, model: Path, statistics_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdraft.HierarchyDrafter, "uses_costs", False)  # whatever a busy machine measures
    hdraft.HierarchyDrafter(100).warm_up()
    lines = b"width\n/reset\nwidth\n/stats\n"
    plain = run(*chat(model), stdin=lines).out.splitlines()
    for options in (("--learn",), ("--learn", "--statistics-database", statistics_database)):
        learnt = run(*chat(model, *options), stdin=lines).out.splitlines()
        assert learnt[:-2] == plain[:-2]
        assert int(re.findall(r": (\d+)", learnt[-1])[1]) > 0 == int(re.findall(r": (\d+)", plain[-1])[1])


def test_chat_samples_the_same_with_the_same_seed(run: Run, model: Path) -> None:
    ask = chat(model, "--do-sample", "--temperature", 2)
    first = run(*ask, "--seed", 1, stdin=b"width\nheight\n").out
    assert first == run(*ask, "--seed", 1, "--no-draft", stdin=b"width\nheight\n").out
    assert first != run(*ask, "--seed", 2, stdin=b"width\nheight\n").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chat-template", "auto"], "no chat template: give --chat-template"),
        (["--chat-template", "alpaca"], "no chat template alpaca"),
        (["--temperature", "0.5"], "add --do-sample"),
        (["--do-sample", "--temperature", "0"], "above 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--no-draft", "--learn"], "--learn is for drafting, and --no-draft is without"),
        (["--no-draft", "--model-database", "x"], "--model-database is for drafting"),
        (["--model-database", "nothing"], "no database at nothing"),
        (["--system", "a\udce9"], "--system is not valid text"),
        (["--device", "abacus"], "no device"),
    ],
)
def test_chat_refuses_wrong_arguments_before_it_reads(run: Run, model: Path, arguments: list[str], words: str) -> None:
    refused(run(*chat(model), *arguments, stdin=b"width\n"), words)


def test_chat_refuses_a_template_that_takes_no_system_prompt(run: Run, model: Path, tmp_path: Path) -> None:
    template = tmp_path / "gemma.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x")
    ask = (*chat(model), "--chat-template", template, "--system")
    refused(run(*ask, "Be short.", stdin=b"width\n"), "takes no system prompt (no system): give none")
    assert run(*ask, "", stdin=b"width\n").code == 0


def test_chat_in_a_pipe_ends_with_what_it_cannot_do_after_the_answers_before_it(
    run: Run, model: Path, tmp_path: Path
) -> None:
    answered = run(*chat(model), stdin=b"width\n").out
    (tmp_path / "kept.jsonl").write_text("mine")
    for line, words in (
        (b"\xff\xfe", "standard input is not UTF-8"),
        (b"/sav x", "there is no /sav: /help lists the commands"),
        (b"/save", "needs the name of a file"),
        (f"/save {tmp_path / 'kept.jsonl'}".encode(), "kept.jsonl exists: give another name"),
        (f"/save {tmp_path / 'none' / 'x'}".encode(), "none/x: No such file"),
        (f"/save {tmp_path}".encode(), "exists"),
        (b"/reset\n/stats", "nothing has been said"),
        (b"/reset\n/save x", "nothing has been said"),
    ):
        result = run(*chat(model), stdin=b"width\n" + line + b"\nheight\n")
        assert result.out == answered
        refused(result._replace(out=""), words)
    assert (tmp_path / "kept.jsonl").read_text() == "mine"


# ------------------------------------------------------------------------------------- build and inspect


def test_build_and_inspect_statistics(run: Run, statistics_database: Path) -> None:
    result = run("inspect", statistics_database)
    assert result.code == 0
    assert "statistics" in result.out
    assert "checksum verified" in result.out


def test_inspect_says_whether_a_database_will_pay(
    run: Run, model: Path, statistics_database: Path, trace: Path, tmp_path: Path
) -> None:
    assert (
        "too small to say" in run("inspect", statistics_database).out or "%" in run("inspect", statistics_database).out
    )
    (tmp_path / "text.txt").write_text(TEXT * 30)
    measured = run("inspect", statistics_database, "--against", tmp_path / "text.txt", "--tokenizer", model)
    assert measured.code == 0 and "without it" in measured.out and "speed-up, gpu" in measured.out
    assert "with this text it" in measured.out
    assert "with this text it" in run("inspect", statistics_database, "--against", trace).out
    refused(run("inspect", statistics_database, "--against", tmp_path / "text.txt"), "give --tokenizer")
    refused(run("inspect", statistics_database, "--against", tmp_path / "nothing"), "does not exist")


def test_build_model_from_token_ids(run: Run, tmp_path: Path) -> None:
    (tmp_path / "outputs.jsonl").write_text('{"output_ids": [5, 6, 7]}\n{"output_ids": [5, 6, 8]}\n')
    result = run(
        *("build", "model", "--generations", tmp_path / "outputs.jsonl", "--output", tmp_path / "D_m"),
        *("--vocab-size", 10, "--eos-token-id", 0),
    )
    assert result.code == 0, result
    assert "model" in run("inspect", tmp_path / "D_m").out


def test_build_model_by_generating(run: Run, model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("def a", "def b", "return")))
    output = tmp_path / "D_m"
    ask = ("build", "model", "--model", model, "--prompts", prompts, "--max-new-tokens", 8, "--output", output)
    result = run(*ask)
    assert result.code == 0, result
    generations = tmp_path / "D_m.generations.jsonl"
    finished = generations.read_text()
    assert finished.count("\n") == 3
    generations.write_text(finished[: len(finished) // 2])  # as a kill would leave it
    assert run(*ask).code == 0
    assert generations.read_text() == finished
    assert run("generate", "--model", model, "--prompt", "a", "--model-database", output).code == 0


def test_what_no_database_can_be_built_from_is_refused(run: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([*lines[:2], '{"text": \n', *lines[2:]]))
    ask = ("build", "statistics", "--output", tmp_path / "D_s", "--tokenizer", model)
    refused(run(*ask, "--corpus", corpus), f"{corpus}:3")
    refused(run(*ask, "--corpus", tmp_path / "nothing"), "no such file")
    refused(run("build", "statistics", "--output", tmp_path / "D_s", "--corpus", corpus), "tokenizer")
    refused(run("build", "model", "--output", tmp_path / "D_m"), "--generations")
    refused(run("build", "model", "--output", tmp_path / "D_m", "--model", model), "--prompts")
    refused(run("build", "model", "--output", model, "--generations", corpus, "--tokenizer", model), "not a database")
    assert not (tmp_path / "D_s").exists()


def test_what_is_no_text_is_refused_by_file_and_line(run: Run, model: Path, tmp_path: Path) -> None:
    written = tmp_path / "written.jsonl"
    written.write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "a\\ud800b", "prompt": "a\\ud800b"}\n')
    output = ("--output", tmp_path / "D_m")
    refused(
        run("build", "model", "--generations", written, "--tokenizer", model, *output), f"{written}:2: not valid text"
    )
    refused(run("build", "model", "--model", model, "--prompts", written, *output), "")
    written.write_text('{"prompt": "a"}\n{"prompt": "a\\ud800b"}\n')
    refused(run("build", "model", "--model", model, "--prompts", written, *output), f"{written}:2: not valid text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["written.jsonl"]


def test_a_database_in_a_corpus_is_left_out_and_named(
    run: Run, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    (corpus / "a.txt").write_text(TEXT * 9)
    ask = ("build", "statistics", "--corpus", corpus, "--output", corpus / "D_s", "--tokenizer", model)
    first, second, third = (run(*ask) for _ in range(3))
    assert first.out == second.out == third.out and third.code == 0
    assert caplog.messages == [f"{corpus / 'D_s'}: holds a database, whose arrays are left out"] * 2
    refused(run(*ask[:3], corpus / "D_s", *ask[4:]), f"{corpus / 'D_s'}: no .npy, .jsonl", "but a database's arrays")


def test_what_cannot_be_written_is_refused_before_the_work(run: Run, model: Path, tmp_path: Path) -> None:
    """Before anything is read: what there would be to read is missing."""
    (tmp_path / "file").write_text("")
    below, nothing = tmp_path / "file" / "x", tmp_path / "nothing.jsonl"
    refused(run("replay", nothing, "--json", below), f"{below}: Not a directory")
    refused(run("demo", "--json", below), f"{below}: Not a directory")
    refused(
        run("build", "statistics", "--corpus", nothing, "--output", below, "--vocab-size", 9), f"{below}: Not a dir"
    )
    refused(run("build", "model", "--model", nothing, "--prompts", nothing, "--output", below), f"{below}: Not a dir")
    refused(run("bench", "--model", nothing, "--output", below), f"{below}: Not a directory")
    output, generations = tmp_path / "D_m", tmp_path / "file" / "g.jsonl"
    ask = ("build", "model", "--model", nothing, "--prompts", nothing, "--output", output)
    refused(run(*ask, "--generations", generations), f"{tmp_path / 'file'}: File exists")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_figures_that_cannot_be_written_are_shown(
    run: Run, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text("old")
    monkeypatch.setattr("os.fsync", full_disk)
    result = run("replay", trace, "--json", figures)
    assert result.code == 1 and "microseconds a step" in result.out
    assert result.err == f"hdraft: {figures}: No space left on device\n"
    assert figures.read_text() == "old" and sorted(tmp_path.iterdir()) == [figures, trace]


def test_a_damaged_database_is_refused(run: Run, model: Path, statistics_database: Path) -> None:
    suffixes = next(statistics_database.glob("suffixes-*.npy"))
    whole = suffixes.read_bytes()

    suffixes.write_bytes(whole[:-4] + b"\xff\xff\xff\xff")  # the right size, wrong in the middle
    refused(run("inspect", statistics_database), suffixes.name)
    ask = ("generate", "--model", model, "--prompt", TEXT, "--max-new-tokens", 8)
    assert run(*ask, "--statistics-database", statistics_database).out == run(*ask).out

    suffixes.write_bytes(whole[:-4])
    refused(run("inspect", statistics_database), suffixes.name)
    refused(run(*ask, "--statistics-database", statistics_database), suffixes.name)

    manifest = statistics_database / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"version": 99}
    manifest.write_text(json.dumps(newer))
    refused(run("inspect", statistics_database), "upgrade")
    refused(run("inspect", model), "not a database")
    refused(run("inspect", statistics_database / "nothing"), "no database")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_the_machines_fault(model: Path) -> None:
    with open("/dev/full", "w") as full:
        ask = [*HDRAFT, "generate", "--model", str(model), "--prompt", TEXT, "--max-new-tokens", "4"]
        result = subprocess.run(ask, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(Result(result.returncode, "", result.stderr), "No space left", code=1)


# --------------------------------------------------------------------------------------------- replay


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    request = {"id": "1", "category": "code", "prompt_ids": [5, 6, 7, 8], "output_ids": [5, 6, 7, 8, 5, 6, 7, 8, 0]}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(request) + "\n")
    return path


@pytest.mark.parametrize("method", ["hd", "published", "pld"])
def test_replay(run: Run, trace: Path, tmp_path: Path, method: str) -> None:
    result = run("replay", trace, "--method", method, "--budget", 8, "--json", tmp_path / "figures.json")
    assert result.code == 0, result
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["settings"]["method"] == method
    assert figures["categories"]["code"]["tokens"] == 9
    assert f"{figures['categories']['all']['mat']:.3f}" in result.out
    assert "speed-up" not in result.out


def test_replay_predicts_the_speedup(run: Run, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps([1, *range(50, 58)]))
    ask = ("replay", trace, "--budget", 8, "--json", tmp_path / "figures.json", "--cost", tmp_path / "costs.json")
    for mode in ("--fixed", "--adaptive"):
        result = run(*ask, mode)
        figures = json.loads((tmp_path / "figures.json").read_text())
        score = figures["categories"]["code"]
        assert "speed-up" in result.out and f"{score['predicted_speedup']:.3f}" in result.out
        assert (score["predicted_speedup"] < 1) == (mode == "--fixed")  # at this price nothing is worth drafting
    assert run("replay", trace, "--adaptive").out.count("gpu") == 1


def test_categories_are_shown_as_they_are_and_on_one_line(run: Run, trace: Path) -> None:
    trace.write_text(trace.read_text().replace('"code"', r'"[/red] a\n\u001b[1mb"'))
    result = run("replay", trace)
    assert result.code == 0 and r"[/red] a \x1b[1mb" in result.out


def test_replay_learns_unless_told_not_to(run: Run, trace: Path, tmp_path: Path) -> None:
    trace.write_text(trace.read_text() * 3)
    steps = []
    for learn in ((), ("--learn",), ("--no-learn",)):
        assert run("replay", trace, *learn, "--json", tmp_path / "figures.json").code == 0
        steps.append(json.loads((tmp_path / "figures.json").read_text())["categories"]["all"]["steps"])
    assert steps[0] == steps[1] < steps[2]


def test_replay_refuses_what_it_cannot_replay(run: Run, trace: Path, tmp_path: Path, statistics_database: Path) -> None:
    refused(run("replay", tmp_path / "nothing"), "No such file")
    refused(run("replay", tmp_path), "directory")
    refused(run("replay", trace, "--method", "rest"), "--statistics-database")
    refused(run("replay", trace, "--method", "published", "--order", "XYZ"), "order")
    refused(run("replay", trace, "--method", "published", "--order", "WL"), "--statistics-database")
    for option in ("--order", "--ngram-size", "--guess", "--previous-tokens"):
        refused(run("replay", trace, "--method", "pld", option, 3), option, "is for published, not for pld")
    for option in ("--learn", "--adaptive"):
        refused(run("replay", trace, "--method", "pld", option), option, "is for")
    refused(run("replay", trace, "--method", "pld", "--model-database", tmp_path), "--model-database is for")
    refused(run("replay", trace, "--model-database", tmp_path / "none"), "none")
    refused(run("replay", trace, "--budget", 10**9), "--budget")
    refused(run("replay", trace, "--json", tmp_path / "none" / "figures.json"), "none/figures.json: No such file")
    (tmp_path / "costs.json").write_text('{"0": 1}')
    refused(run("replay", trace, "--cost", tmp_path / "costs.json"), "JSON list")
    (tmp_path / "costs.json").write_text("[1, 1]")
    ask = ("replay", trace, "--adaptive", "--cost", tmp_path / "costs.json")
    refused(run(*ask, "--budget", 64), "ends at 1 draft token")
    assert run(*ask).code == 0  # the default is no more than the curve has
    refused(run("replay", trace, "--cost", "tpu"), "no cost curve tpu", "cpu-measured")
    large = trace.with_name("large.jsonl")
    large.write_text(json.dumps({"id": "7", "category": "code", "prompt_ids": [1], "output_ids": [10**6]}))
    refused(run("replay", trace, large, "--statistics-database", statistics_database), "request 7", "1000000")
    trace.write_text(trace.read_text() + "{\n")
    refused(run("replay", trace), f"{trace}:2")
    trace.write_text("")
    refused(run("replay", trace), "no requests")


# --------------------------------------------------------------------------------- what all commands share


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"hdraft {hdraft.__version__}\n"
    for command in ("", "demo", "generate", "chat", "build", "build model", "build statistics", "inspect", "replay"):
        assert f"Usage: hdraft {command}".rstrip() in run(*command.split(), "--help").out
    assert "Usage: hdraft" in run().out


@pytest.mark.parametrize(
    ("command", "title", "names"),
    [
        ("bench", "Questions", ("--questions", "--question-begin", "--question-end", "--num-choices", "--download")),
        ("generate", "The text", ("--prompt", "--prompt-file")),
        ("chat", "Databases", ("--model-database", "--statistics-database", "--learn")),
        ("replay", "Databases", ("--model-database", "--statistics-database")),
    ],
)
@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_of_a_command_with_many_options_has_sections_and_leaves_none_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, title: str, names: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run(command, "--help").out
    for parameter in get_command(cli.app).commands[command].params:  # type: ignore[attr-defined]
        name = "TRACE" if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
        assert len(re.findall(rf"^  {re.escape(name)}(?![\w-])", shown, re.MULTILINE)) == 1, name
    section = shown.partition(f"{title}:\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^  (--[a-z-]+)", section, re.MULTILINE)) == names
    assert all(len(line) <= columns for line in shown.splitlines())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, hdraft.cli; print([m for m in ('torch', 'transformers', 'numba', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_unknown_commands_are_refused(run: Run) -> None:
    refused(run("frobnicate"), "frobnicate")
    refused(run("build", "frobnicate"), "frobnicate")
    refused(run("generate"), "--model")
    refused(run("demo", "--prompt-id", "nothing"), "no prompt nothing")
    refused(run("demo", "--json", "/nothing/demo.json"), "/nothing/demo.json: No such file")


def test_a_fault_of_hdraft_is_one_line_and_a_traceback_only_on_request(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unexpected")

    monkeypatch.setattr("hdraft.loading.load_target", fail)
    refused(run("generate", "--model", model, "--prompt", "a"), "KeyError", "HDRAFT_DEBUG=1", code=1)
    monkeypatch.setenv("HDRAFT_DEBUG", "1")
    result = run("generate", "--model", model, "--prompt", "a")
    assert result.code == 1
    assert "Traceback" in result.err


def test_out_of_memory_is_the_machines_fault(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("hdraft.loading.load_target", fail)
    refused(run("generate", "--model", model, "--prompt", "a"), "out of memory", "smaller model", code=1)


@pytest.fixture
def endless(model: Path) -> Iterator[subprocess.Popen[str]]:
    """A generation that goes on until it is stopped."""
    ask = [*HDRAFT, "generate", "--model", str(model), "--prompt", TEXT, "--max-new-tokens", "100000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(ask, stdout=pipe, stderr=pipe, text=True, errors="replace") as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it is running
        yield process
        process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_quietly(endless: subprocess.Popen[str]) -> None:
    endless.send_signal(signal.SIGINT)
    _, err = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert err == ""


def test_a_closed_pipe_ends_quietly(endless: subprocess.Popen[str]) -> None:
    assert endless.stdout is not None and endless.stderr is not None
    endless.stdout.close()
    assert endless.stderr.read() == ""
    assert endless.wait(timeout=60) == 1


def test_an_array_of_ids_is_a_corpus(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([5, 6, 0, 5, 7, 0], np.int32))
    ask = ("build", "statistics", "--corpus", tmp_path / "ids.npy", "--output", tmp_path / "D_s")
    assert run(*ask, "--vocab-size", 10, "--eos-token-id", 0).code == 0
    refused(run(*ask, "--vocab-size", 6, "--eos-token-id", 0), "outside the vocabulary")
    refused(run(*ask, "--vocab-size", 10, "--eos-token-id", 10), "end-of-sequence")


# ------------------------------------------------------------------------------------------ bench and report


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    lines = [
        {"question_id": 1, "category": "qa", "turns": ["def area("]},
        {"question_id": 2, "category": "writing", "turns": ["width", "height"]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_record_writes_a_trace_that_replay_takes(run: Run, model: Path, questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    ask = ("record", "--model", model, "--questions", questions, "--output", output)
    ask += ("--max-new-tokens", 12, "--chat-template", "vicuna")
    first = run(*ask, "--question-end", 1)
    assert first.code == 0 and first.out == f"{output}: 1 requests\n"
    assert run(*ask).code == 0
    assert {"candidates", "log_probabilities"} < json.loads(output.read_text().splitlines()[0]).keys()
    assert run("replay", output).code == 0 and run("replay", output, "--method", "retrieval").code == 0
    refused(run(*ask, "--temperature", 1), "choose another file")
    refused(run(*ask[:6], tmp_path / "trace.txt", *ask[7:]), "must end in .jsonl")


def benched(model: Path, questions: Path, output: Path, *methods: str) -> list[object]:
    chosen = [argument for method in methods for argument in ("--method", method)]
    rest = ["--questions", questions, "--output", output, "--max-new-tokens", 12, "--chat-template", "vicuna"]
    return ["bench", "--model", model, *chosen, *rest]


def test_bench_answers_reports_and_goes_on(run: Run, model: Path, questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run(*benched(model, questions, output, "vanilla", "transformers", "hd"), "--question-end", 1)
    assert result.code == 0 and not result.err
    assert result.out.startswith("| method | all | qa | MAT | same text |\n")
    assert f"all figures in {output / 'report.md'}" in result.out
    assert (output / "report.md").exists() and (output / "speedup.png").exists()
    assert run(*benched(model, questions, output, "vanilla", "transformers", "hd")).code == 0
    again = run("report", output)
    assert again.code == 0 and "| method | all | mt_bench | qa | MAT | same text |" in again.out
    assert "| hd | " in again.out and "3/3" in again.out


def test_bench_with_a_database_left_out_or_all_of_its_options(
    run: Run, model: Path, questions: Path, statistics_database: Path, tmp_path: Path
) -> None:
    given = ["--statistics-database", statistics_database, "--question-end", 1, "--budget", 16]
    result = run(
        *benched(model, questions, tmp_path / "out", "vanilla", "published", "rest", "hd", "lookahead"),
        *given,
        *("--no-context", "--previous-tokens", 1, "--ngram-size", 4, "--window", 3, "--guess", 2, "--no-learn"),
        *("--do-sample", "--temperature", 0.8, "--num-choices", 2, "--seed", 5),
        *("--system-prompt", "", "--dtype", "float32"),
    )
    assert result.code == 0, result
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["methods"]["published"] == {
        "model_database": None,
        "statistics_database": str(statistics_database),
        "order": "L",
        "ngram_size": 4,
        "window": 0,
        "guess": 2,
        "previous_tokens": 1,
    }
    assert settings["methods"]["lookahead"] == {"ngram_size": 4, "window": 3, "guess": 2}
    assert not settings["methods"]["hd"]["learn"]
    assert (settings["temperature"], settings["num_choices"], settings["seed"], settings["budget"]) == (0.8, 2, 5, 16)
    for name in ("published", "rest", "hd", "lookahead"):
        row = json.loads((tmp_path / "out" / "report.json").read_text())["methods"][name]["all"]
        assert row["same_text"] == row["turns"] == 2


def test_bench_takes_no_default_that_was_not_asked_for(run: Run, questions: Path, tmp_path: Path) -> None:
    ask = ("bench", "--method", "vanilla", "--method", "pld", "--questions", questions, "--question-end", 1)
    result = run(*ask, "--chat-template", "vicuna", "--max-new-tokens", 4, "--output", tmp_path / "out")
    assert result.code == 0, result
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["methods"] == {"vanilla": {}, "pld": {}}


def test_bench_on_a_full_disk_shows_what_was_measured(
    run: Run, model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    left = [3]

    def sync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            full_disk()

    monkeypatch.setattr("os.fsync", sync)  # of the settings, and of two answers
    result = run(*benched(model, questions, output, "vanilla", "pld"))
    assert result.code == 1
    assert result.err == f"hdraft: {output / 'vanilla.jsonl'}: No space left on device\n"
    assert result.out.startswith("| method | all | qa | MAT | same text |") and "| pld |" in result.out
    monkeypatch.undo()
    for name in ("vanilla", "pld"):
        assert (output / f"{name}.jsonl").read_text().count("\n") == 1


def test_a_bench_that_cannot_begin_leaves_nothing(run: Run, questions: Path, tmp_path: Path) -> None:
    refused(run(*benched(tmp_path / "nothing", questions, tmp_path / "a" / "out", "vanilla")), "no folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "magic"], ["no method 'magic'", "vanilla", "hd"]),
        (["--method", "rest"], ["REST drafts from D_s: give --statistics-database"]),
        (["--method", "hd", "--window", "3"], ["--window is for lookahead and published"]),
        (["--method", "hd", "--no-context"], ["--no-context is for published"]),
        (["--method", "published", "--order", "WS"], ["--order WS asks S: give --model-database"]),
        (["--method", "published", "--order", "W", "--no-context"], ["--order W asks W: leave out --no-context"]),
        (["--method", "published", "--order", "L", "--window", "3"], ["--order L asks L"]),
        (["--method", "published", "--no-context", "--window", "3"], ["published has no database to ask"]),
        (["--method", "published", "--ngram-size", "2"], ["n-grams of at least 3 tokens"]),
        (["--model-database", "a", "--no-model-database"], ["contradict"]),
        (["--statistics-database", "a", "--no-statistics-database"], ["contradict"]),
        (["--no-do-sample", "--temperature", "1"], ["--temperature is for sampling"]),
        (["--do-sample", "--temperature", "0"], ["above 0"]),
        (["--temperature", "inf"], ["finite"]),
        (["--temperature", "nan"], ["--temperature"]),
        (["--system-prompt", "a\udce9"], ["--system-prompt is not valid text"]),
        (["--model-database", ""], ["--model-database is empty"]),
        (["--output", ""], ["--output is empty"]),
        (["--output", "/dev/null/out"], ["/dev/null/out: Not a directory"]),
        (["--chat-template", "alpaca"], ["no chat template alpaca"]),
        (["--questions", "nothing.jsonl"], ["nothing.jsonl"]),
        (["--question-begin", "7"], ["no questions from index 7"]),
        (["--device", "abacus"], ["no device"]),
        (["--num-workers", "0"], ["--num-workers"]),
    ],
)
def test_bench_refuses_in_one_line(
    run: Run, model: Path, questions: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    asked = ["--method", "hd"] if "--method" not in arguments else []
    refused(run(*benched(model, questions, tmp_path / "out"), *asked, *arguments), *words)


def test_bench_downloads_only_what_it_knows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("mine")
    refused(run("bench", "--download", "--questions", tmp_path / "mine.jsonl"), "is not Spec-Bench's questions")


def test_report_refuses_a_folder_without_answers(run: Run, tmp_path: Path) -> None:
    refused(run("report", tmp_path), "no answers in")
    refused(run("report", tmp_path / "nothing"), "no answers in")
