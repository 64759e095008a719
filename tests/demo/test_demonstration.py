"""The demonstration, on a model of a few thousand weights in place of the embedded one."""

import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_model import TEXT, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hdraft
from hdraft.decoding import StreamedToken
from hdraft.demo import PROMPTS, SMOLLM2, library
from hdraft.demo.comparison import Prompt, compare, read_prompts
from hdraft.demo.demonstration import demonstrate
from hdraft.demo.figures import as_json, verdict
from hdraft.drafting import Source
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PromptLookupDrafter

TWO = [Prompt("first", "code", TEXT * 3, 40), Prompt("second", "text", "a\nb\nc\nd\ne\nf", 24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_both_ways_give_the_same_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    shown = []
    drafter = PromptLookupDrafter(model.config.vocab_size, draft=4)  # it drafts whatever a step costs here
    comparison = compare(TWO[0], model, tokenizer, drafter, show=shown.append)
    assert comparison.identical
    assert comparison.tokens == len(shown) == 40
    assert comparison.sources[Source.CONTEXT] == comparison.statistics.accepted[Source.CONTEXT] > 0
    assert sum(map(comparison.share, comparison.sources)) == pytest.approx(1)
    assert comparison.seconds_hdraft > comparison.statistics.seconds_model > 0


def test_a_pipe_gets_plain_text_and_every_figure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    console = Console(file=io.StringIO(), width=120)
    comparisons = demonstrate(TWO, model, tokenizer, HierarchyDrafter(model.config.vocab_size), console)
    output = console.file.getvalue()
    assert "\x1b" not in output
    assert "\r" not in output
    assert "compiling kernels, once" in output
    for words in ("D_c this text so far", "first (code)", "second (text)", "the same 40 tokens", "2/2", "speed-up"):
        assert words in output
    figures = json.loads(json.dumps(as_json(comparisons, "tiny", torch.float32)))
    assert figures["identical"]
    assert (figures["model"], figures["dtype"]) == ("tiny", "float32")
    assert "All 2 texts are identical" in output
    assert [prompt["id"] for prompt in figures["prompts"]] == ["first", "second"]
    speedups = [prompt["speedup"] for prompt in figures["prompts"]]
    assert figures["mean"]["speedup"] == pytest.approx(sum(speedups) / 2)
    assert figures["machine"]["threads"] >= 1


def test_a_terminal_gets_colours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    demonstrate(TWO[:1], model, tokenizer, HierarchyDrafter(model.config.vocab_size), console)
    assert "\x1b[36m" in console.file.getvalue()  # cyan: D_c


def test_a_sample_is_the_same_from_the_same_seed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    drafter = PromptLookupDrafter(model.config.vocab_size, draft=4)
    prompts = [Prompt("sampled", "text", TEXT * 3, 40, temperature=2.0, seed=seed) for seed in (1, 2)]
    texts: list[list[int]] = []
    for prompt in prompts:
        shown: list[int] = []
        comparison = compare(prompt, model, tokenizer, drafter, show=lambda token, shown=shown: shown.append(token.id))
        assert comparison.identical
        texts.append(shown)
    assert texts[0] != texts[1]


def test_a_message_goes_through_the_chat_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}"
    ids = tokenizer(f"user: {TEXT}\n", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    shown: list[int] = []
    drafter = PromptLookupDrafter(model.config.vocab_size, draft=4)
    prompt = Prompt("message", "text", TEXT, 24, chat=True)
    assert compare(prompt, model, tokenizer, drafter, show=lambda token: shown.append(token.id)).identical
    assert shown == expected


def test_where_two_texts_part_is_told(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that puts another token in the sixth place, as rounding may in bfloat16."""

    def stream(*arguments: Any, **options: Any) -> Iterator[StreamedToken]:
        for place, token in enumerate(hdraft.stream(*arguments, **options)):
            yield replace(token, id=(token.id + 1) % 50) if place == 5 else token

    monkeypatch.setattr("hdraft.demo.comparison.stream", stream)
    apart = compare(TWO[0], model, tokenizer, PromptLookupDrafter(model.config.vocab_size, draft=4))
    assert not apart.identical
    assert apart.parting is not None and apart.parting.position == 5
    theirs, ours = apart.parting.probabilities
    assert 1 > theirs >= ours > 0
    monkeypatch.undo()
    same = compare(TWO[1], model, tokenizer, PromptLookupDrafter(model.config.vocab_size, draft=4))
    why = verdict([apart, same], torch.bfloat16)
    for words in ("1 of 2 texts are identical", "rounds differently", "--dtype float32", "first, after 5 tokens"):
        assert words in why
    assert "a fault of hdraft" in verdict([apart, same], torch.float32)
    assert "fault" not in why


@pytest.mark.parametrize("file", [PROMPTS, SMOLLM2 / "prompts.jsonl"])
def test_the_prompts_are_readable(file: Path) -> None:
    prompts = read_prompts(file)
    assert len({prompt.id for prompt in prompts}) == len(prompts) >= 4
    assert all(prompt.prompt and prompt.max_new_tokens > 0 for prompt in prompts)


@pytest.fixture
def standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one, and a cache folder of our own."""
    folder = tmp_path / "library"
    for name in ("abc.py", "json/decoder.py", "site-packages/other.py", "json/tests/test_decoder.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TEXT)
    monkeypatch.setattr(library.sysconfig, "get_path", lambda _: str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_library_database_is_built_once(
    standard_library: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    assert [path.relative_to(standard_library).as_posix() for path in library.library_files()] == [
        "abc.py",
        "json/decoder.py",
    ]
    size = len(tokenizer)
    first, second = Console(file=io.StringIO()), Console(file=io.StringIO())
    built = library.library_database(tokenizer, size, first)
    assert "building D_s" in first.file.getvalue()
    kept = library.library_database(tokenizer, size, second)
    assert built is not None and kept is not None
    assert second.file.getvalue() == ""
    assert kept.tokens.tolist() == built.tokens.tolist()


def test_a_damaged_library_database_is_built_again(
    standard_library: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO())
    library.library_database(tokenizer, len(tokenizer), console)
    array = next((tmp_path / "cache").rglob("suffixes-*.npy"))
    whole = array.read_bytes()
    array.write_bytes(whole[:-1] + b"\xff")
    console = Console(file=io.StringIO())
    assert library.library_database(tokenizer, len(tokenizer), console) is not None
    assert "building D_s" in console.file.getvalue()
    assert next((tmp_path / "cache").rglob("suffixes-*.npy")).read_bytes() == whole


def test_no_cache_folder_is_no_obstacle(
    standard_library: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    console = Console(file=io.StringIO(), width=200)
    assert library.library_database(tokenizer, len(tokenizer), console) is not None
    assert "not kept" in console.file.getvalue()


def test_a_python_without_its_source_has_no_library_database(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library.library_database(tokenizer, len(tokenizer), Console(file=io.StringIO())) is None
