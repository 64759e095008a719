"""Corpora and generations into token arrays: every format, and every way that one can be wrong."""

import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hdraft.building.reading import BuildError, Vocabulary, read_tokens

IDS = Vocabulary(vocab_size=100, eos_token_id=0)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens: `</s>` is 0, byte b is b + 1."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (ord(letter) > 255, ord(letter)))
    words = {"</s>": 0} | {letter: index + 1 for index, letter in enumerate(letters)}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(*paths, vocabulary=IDS):
    return read_tokens(paths, vocabulary).tolist()


def test_ids_of_every_format(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, 2, 0, 3], np.int64))
    write(tmp_path / "b.jsonl", {"ids": [4, 5]}, "", {"ids": []}, {"ids": [6, 0]})
    write(tmp_path / "c.jsonl", {"id": "x", "prompt_ids": [9, 9], "output_ids": [7]})
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"ids": [8]}'))
    (tmp_path / "e.md").write_text("not of a known kind")
    expected = [1, 2, 0, 3, 0, 4, 5, 0, 6, 0, 7, 0, 8, 0]
    assert read(tmp_path) == expected
    assert read(*sorted(path for path in tmp_path.iterdir() if path.suffix != ".md")) == expected
    tokens = read_tokens(tmp_path, IDS)
    assert tokens.dtype == np.uint16
    assert read_tokens(tmp_path, Vocabulary(70_000, None)).dtype == np.uint32


def test_without_an_end_of_sequence_id_documents_end_in_the_vocabulary_size(tmp_path):
    path = write(tmp_path / "a.jsonl", {"ids": [4, 0]}, {"ids": [5]})
    assert read(path, vocabulary=Vocabulary(100, None)) == [4, 0, 100, 5, 100]


def test_text_of_every_format(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("Ünïcode\r\nand more")
    (tmp_path / "b.py").write_bytes(b"x = '\xff'\n")
    write(tmp_path / "c.jsonl", {"text": "one"}, {"text": ""}, {"text": "two", "id": 5})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("")
    expected = []
    for text in ("Ünïcode\nand more", "x = '\ufffd'\n", "one", "two"):
        expected += [*encode(tokenizer, text), 0]
    assert read(tmp_path, vocabulary=Vocabulary.of(tokenizer, None, None)) == expected


def test_long_text_is_one_document(tmp_path, tokenizer):
    text = "".join(f"line {i}\n" for i in range(40_000)) + "x" * 300_000
    (tmp_path / "a.txt").write_text(text)
    tokens = read(tmp_path / "a.txt", vocabulary=Vocabulary.of(tokenizer, None, None))
    assert tokens.count(0) == 1
    assert tokens[:-1] == encode(tokenizer, text)


def test_progress_reaches_the_end(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3_000_000, np.uint16))
    write(tmp_path / "b.jsonl", {"ids": [4, 5]})
    calls = []
    read_tokens([tmp_path], IDS, lambda *call: calls.append(call))
    assert len(calls) > 1
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)
    assert calls[-1][0] == "reading"
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ids": [1, 2', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"ids": [1, 100]}', "token id 100 is outside the vocabulary of 100 ids"),
        ('{"ids": [-1]}', "token id -1 is outside"),
        ('{"ids": [1.5]}', '"ids" is not a list of token ids'),
        ('{"ids": [true]}', "not a list"),
        ('{"ids": [[1], [2, 3]]}', "not a list"),
        ('{"ids": [1' + "0" * 400 + "]}", "not a list"),
        ('{"ids": [1' + "0" * 5000 + "]}", "not valid JSON"),
        ('{"output_ids": "12"}', '"output_ids" is not a list'),
        ('{"text": 5}', '"text" is not a string'),
        ('{"text": "words"}', "is text; give a tokenizer"),
        ('{"txt": "words"}', "none of"),
        ('{"ids": ' + "[" * 100_000, "nested too deep"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"ids": [1]}\n\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(BuildError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_text_lines_are_named_too(tmp_path):
    path = write(tmp_path / "a.jsonl", {"ids": [1]}, {"ids": [1]}, {"text": "words"})
    with pytest.raises(BuildError, match=r"a.jsonl:3: is text; give a tokenizer"):
        read(path)


def pickled():
    return np.array([{"code": "run me"}], object)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, 2]]), "holds 2-D int64, not 1-D integer"),
        (np.array([1.5]), "holds 1-D float64"),
        (np.array(5), "holds 0-D"),
        (np.array(["a"]), "not 1-D integer"),
        (pickled(), "not an .npy file of plain numbers"),
        (np.array([1, 100]), "token id 100 is outside"),
        (np.array([1, -5]), "token id -5 is outside"),
        (np.array([2**64 - 1], np.uint64), "outside"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, message):
    path = tmp_path / "corpus.npy"
    np.save(path, array)
    with pytest.raises(BuildError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    good = tmp_path / "good.npy"
    np.save(good, np.arange(90))
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "garbage.npy").write_bytes(b"nothing of the kind")
    (tmp_path / "empty.npy").write_bytes(b"")
    packed = gzip.compress(b'{"ids": [1]}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-10])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"ids": [1]}\n')
    (tmp_path / "corrupt.jsonl.gz").write_bytes(packed[:20] + b"\xff" * 20 + packed[40:])
    (tmp_path / "unknown.csv").write_text("1,2")
    for name in ("cut.npy", "garbage.npy", "empty.npy", "cut.jsonl.gz", "plain.jsonl.gz", "corrupt.jsonl.gz"):
        with pytest.raises(BuildError, match=name) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(BuildError, match=r"unknown.csv: of no known kind \(.npy, .jsonl, .jsonl.gz, .txt, .py\)"):
        read(tmp_path / "unknown.csv")
    with pytest.raises(BuildError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")


def test_nothing_to_read(tmp_path):
    with pytest.raises(BuildError, match=r"no .npy, .jsonl, .jsonl.gz, .txt, .py files in this folder"):
        read(tmp_path)
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", {"ids": []})
    np.save(tmp_path / "c.npy", np.zeros(0, np.uint16))
    with pytest.raises(BuildError, match="nothing to build from"):
        read(tmp_path)


def test_vocabularies(tokenizer):
    vocabulary = Vocabulary.of(tokenizer, None, None)
    assert (vocabulary.vocab_size, vocabulary.eos_token_id, vocabulary.separator) == (257, 0, 0)
    assert Vocabulary.of(tokenizer, 300, 5).vocab_size == 300
    assert Vocabulary.of(None, 10, None).separator == 10
    for wrong in ((None, None, None), (None, 0, None), (None, 10, 10), (None, 10, -1), (None, 2**31, None)):
        with pytest.raises(BuildError):
            Vocabulary.of(*wrong)
