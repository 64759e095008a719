"""A GGUF file's tokenizer, and the commands on such a file; in the environment of `make test-llama-cpp`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hdraft.demo.conversion import ConversionError, find_gguf
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.vocabulary import tokenizer_fingerprint
from hdraft.engines.gguf import GgufError, GgufTokenizer

pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: `make test-llama-cpp` runs this where it is"
)
gguf: Any = pytest.importorskip("gguf")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # as GGUF numbers the kinds of tokens

Kinds = list[tuple[str, int]]


def write_vocabulary(file: Path, tokens: Kinds, model: str = "gpt2", tokenizer: bool = True) -> Path:
    """A GGUF file without weights."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    if tokenizer:
        writer.add_tokenizer_model(model)
        writer.add_token_list([token for token, _ in tokens])
        writer.add_token_types([kind for _, kind in tokens])
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
        if model == "gpt2":
            writer.add_token_merges(["a b"])
            writer.add_tokenizer_pre("gpt-2")
    else:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(10)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


class Known:
    """A Hugging Face tokenizer, as far as a fingerprint needs it."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def __len__(self) -> int:
        return len(self._vocabulary)


BYTES: Kinds = [("<unk>", UNKNOWN), ("</s>", CONTROL), *((f"<0x{i:02X}>", BYTE) for i in range(256))]


def test_ids_without_a_token_are_left_out_and_a_token_of_that_name_is_not(tmp_path: Path) -> None:
    tokens: Kinds = [("</s>", CONTROL), ("a", NORMAL), ("b", NORMAL), ("ab", NORMAL), ("[PAD4]", NORMAL)]
    padded: Kinds = [*tokens, ("[PAD5]", UNUSED), ("[PAD6]", USER_DEFINED)]
    tokenizer = GgufTokenizer.open(write_vocabulary(tmp_path / "padded.gguf", padded))
    vocabulary = {token: index for index, (token, _) in enumerate(tokens)}
    assert tokenizer.get_vocab() == vocabulary
    assert len(tokenizer) == 5
    assert tokenizer.vocab_size == 7
    assert tokenizer.eos_token_id == 0
    assert tokenizer.context_length == 64
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(Known(vocabulary))
    assert tokenizer("abba", add_special_tokens=False)["input_ids"] == [3, 2, 1]
    assert tokenizer(["ab", "", "b"], add_special_tokens=False)["input_ids"] == [[3], [], [2]]


def test_added_tokens_of_spaces_are_spelt_as_the_tokenizer_they_come_from_spells_them(tmp_path: Path) -> None:
    tokens: Kinds = [*BYTES, ("▁boat", NORMAL), ("  ", USER_DEFINED), ("<end of turn>", CONTROL)]
    tokenizer = GgufTokenizer.open(write_vocabulary(tmp_path / "pieces.gguf", tokens, "llama"))
    expected = [token for token, _ in BYTES] + ["▁boat", "▁▁", "<end of turn>"]
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(expected)}


def test_a_file_that_is_none_or_cut_off_or_lacks_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_vocabulary(tmp_path / "whole.gguf", [("</s>", CONTROL), ("a", NORMAL), ("b", NORMAL)])
    cut, other, none = tmp_path / "cut.gguf", tmp_path / "other.gguf", tmp_path / "none.gguf"
    cut.write_bytes(whole.read_bytes()[:60])
    other.write_bytes(b"PK\x03\x04")
    write_vocabulary(none, [], tokenizer=False)
    for file, reason in (
        (cut, "llama.cpp cannot load .*cut.gguf"),
        (other, "other.gguf is no GGUF file"),
        (tmp_path / "missing.gguf", "missing.gguf cannot be read .No such file"),
        (tmp_path, "cannot be read .Is a directory"),
        (none, "none.gguf has no tokenizer"),
    ):
        with pytest.raises(GgufError, match=reason):
            GgufTokenizer.open(file)


# ------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return find_gguf()
    except ConversionError as error:
        pytest.skip(str(error))


def hdraft(*arguments: object, code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-c", "from hdraft.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def generated(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hdraft("generate", "--json", *arguments)[0])
    return found


LIST = "Here are the boats: the green boat, the red boat, the old boat, the green boat, the red boat, the"


def test_generate_continues_a_text_as_without_drafts_and_says_what_it_cost(smollm2: Path) -> None:
    options = ("--model", smollm2, "--prompt", LIST, "--max-new-tokens", 40)
    plain, drafting = generated(*options, "--no-draft"), generated(*options)
    assert drafting["text"] == plain["text"]
    assert drafting["output_ids"] == plain["output_ids"]
    assert plain["statistics"]["steps"] == len(plain["output_ids"]) == plain["statistics"]["tokens"]
    assert drafting["statistics"]["tokens"] == len(drafting["output_ids"])
    assert drafting["statistics"]["steps"] < plain["statistics"]["steps"]
    assert sum(source is not None for source in drafting["sources"]) == sum(drafting["statistics"]["accepted"].values())
    assert 0 < drafting["statistics"]["seconds_model"] < drafting["statistics"]["seconds"]
    text, errors = hdraft("generate", "--engine", "llama.cpp", *options, "--stats")
    assert text == plain["text"] + "\n"
    assert errors.startswith(f"{len(plain['output_ids'])} tokens in ")


def test_a_chat_template_sampling_and_a_seed_are_taken(smollm2: Path) -> None:
    options = ("--model", smollm2, "--chat", "--prompt", "Name a colour.", "--max-new-tokens", 24)
    sampled = ("--do-sample", "--temperature", 0.9, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01)
    first, again, other = (generated(*options, *sampled, "--seed", seed)["text"] for seed in (3, 3, 4))
    assert first == again != other
    greedy = generated(*options)
    assert greedy["prompt_tokens"] > 20
    assert greedy["text"]
    assert "<|im_end|>" not in greedy["text"]


def test_databases_are_built_for_the_file_and_fit_it_and_its_hugging_face_tokenizer(
    smollm2: Path, tmp_path: Path
) -> None:
    from rich.console import Console
    from transformers import AutoTokenizer

    from hdraft.demo.conversion import converted

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": LIST + f" boat {i} is <|im_end|> é."}) + "\n" for i in range(9)))
    output = tmp_path / "D_m"
    hdraft("build", "model", "--generations", texts, "--tokenizer", smollm2, "--output", output)
    hdraft("build", "statistics", "--corpus", texts, "--tokenizer", smollm2, "--output", tmp_path / "D_s")
    folder = converted(smollm2, Console(quiet=True))
    hdraft("build", "model", "--generations", texts, "--tokenizer", folder, "--output", tmp_path / "theirs")
    ours, theirs = ModelDatabase.from_pretrained(output), ModelDatabase.from_pretrained(tmp_path / "theirs")
    assert ours.tokenizer == theirs.tokenizer
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ModelDatabase.from_pretrained(output, AutoTokenizer.from_pretrained(folder), 49152).tokenizer
    hdraft("inspect", output, "--tokenizer", smollm2)
    databases = ("--model-database", output, "--statistics-database", tmp_path / "D_s")
    drafted = generated("--model", smollm2, "--prompt", "Here are the boats:", "--max-new-tokens", 24, *databases)
    assert drafted["statistics"]["tokens"] == len(drafted["output_ids"])


def test_what_a_file_cannot_do_is_refused_on_one_line(smollm2: Path, tmp_path: Path) -> None:
    other = ModelDatabase.from_documents([[1, 2, 3]], 49152, tokenizer=Known({"a": 1, "b": 2, "c": 3}))
    other.save_pretrained(tmp_path / "other")
    for arguments, reason in (
        (("--max-new-tokens", 9000), "the model takes 8192 tokens and the prompt has 1: --max-new-tokens 8191 at most"),
        (("--model-database", tmp_path / "other"), "was built with another tokenizer: token id 1 is"),
        (("--chat", "--chat-template", tmp_path / "none.jinja"), "no chat template"),
    ):
        _, errors = hdraft("generate", "--model", smollm2, "--prompt", "Hello", *arguments, code=2)
        assert reason in errors
        assert errors.count("\n") == 1, errors
