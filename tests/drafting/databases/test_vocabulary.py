"""Which tokenizers a database opens with: its own, one with tokens added or removed, none that gives an id anew."""

import json

import pytest
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from hdraft.demo import MODEL, MODEL_DATABASE
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.storage import MANIFEST, DatabaseError
from hdraft.drafting.databases.vocabulary import token_hashes, tokenizer_fingerprint
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PublishedDrafter
from hdraft.evaluation.methods import open_drafter

WORDS = ["[UNK]", "</s>", "a", "b", "c\n", "d"]


def words(*names, end="</s>"):
    vocabulary = {name: index for index, name in enumerate(names or WORDS)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")), eos_token=end)


def padded():
    tokenizer = words()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def extended():
    """With words of a user, and special tokens."""
    tokenizer = padded()
    tokenizer.add_tokens(["e", "f"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    return tokenizer


def larger():
    """A base vocabulary that was extended itself, with nothing added."""
    return words(*WORDS, *(f"w{i}" for i in range(50)))


MAKERS = [words, padded, extended, larger]


def save(folder, tokenizer, documents=((2, 3, 4, 2), (5, 2)), cls=StatisticsDatabase, vocab_size=None):
    cls.from_documents(documents, vocab_size or len(tokenizer), 1, tokenizer).save_pretrained(folder)
    return folder


def forget(folder):
    """Make it a database as they were before they remembered more than the fingerprint."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    (folder / manifest["arrays"].pop("vocabulary")["file"]).unlink()
    path.write_text(json.dumps(manifest))
    return folder


class Words:
    """What a fingerprint reads of a tokenizer."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary

    def __len__(self):
        return len(self.vocabulary)


def test_fingerprints_tell_vocabularies_apart_and_nothing_else():
    one = tokenizer_fingerprint(Words({"a": 0, "b": 1}))
    assert one == tokenizer_fingerprint(Words({"b": 1, "a": 0}))
    assert (
        len({one, *map(tokenizer_fingerprint, (Words({"a": 1, "b": 0}), Words({"a": 0}), Words({"a": 0, "c": 1})))})
        == 4
    )
    assert tokenizer_fingerprint(one) == one
    assert tokenizer_fingerprint(None) is None


def test_hashes_are_of_tokens_by_id():
    hashes = token_hashes(Words({"a": 0, "b": 3, "a\ud800": 2, "beyond": 9}), 5)
    assert (hashes != 0).tolist() == [True, False, True, True, False]
    assert len(set(hashes.tolist())) == 4
    assert hashes[0] == token_hashes(Words({"a": 4}), 5)[4]
    # two tokens of one id: which comes first in the dictionary is not the tokenizer's doing
    assert token_hashes(Words({"x": 0, "y": 0}), 1) == token_hashes(Words({"y": 0, "x": 0}), 1)


def test_a_tokenizer_reloaded_has_the_same_fingerprint(tmp_path):
    tokenizer = words()
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(reloaded) == tokenizer_fingerprint(tokenizer)
    assert token_hashes(reloaded, 8).tolist() == token_hashes(tokenizer, 8).tolist()
    reloaded.add_tokens("e")
    assert tokenizer_fingerprint(reloaded) != tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("built", MAKERS)
@pytest.mark.parametrize("given", MAKERS)
def test_tokenizers_that_agree_on_the_ids_of_both(tmp_path, built, given):
    """`larger` and `padded` give id 6 to different tokens."""
    folder = save(tmp_path, built())
    if larger in (built, given) and {built, given} & {padded, extended}:
        with pytest.raises(DatabaseError, match="another tokenizer: token id 6 is ") as caught:
            StatisticsDatabase.from_pretrained(folder, given())
        assert "\n" not in str(caught.value)
    else:
        database = StatisticsDatabase.from_pretrained(folder, given(), vocab_size=100)
        assert HierarchyDrafter(len(given()), statistics_database=database).session([2, 3]).propose(2).tokens[0] == 4
        assert PublishedDrafter(len(given()), statistics_database=database).session([2, 3]).propose(7).tokens[0] == 4


def test_an_id_that_the_smaller_tokenizer_lacks(tmp_path):
    pad = padded().pad_token_id
    folder = save(tmp_path, padded(), [(2, pad, 3)])
    with pytest.raises(DatabaseError, match=f"holds token id {pad}, which this tokenizer lacks; build it again"):
        StatisticsDatabase.from_pretrained(folder, words())
    database = StatisticsDatabase.from_pretrained(folder, padded())
    with pytest.raises(ValueError, match=f"of 7 ids and the model one of {pad}"):
        HierarchyDrafter(pad, statistics_database=database)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["[UNK]", "</s>", "a", "B", "c\n", "d"], r"token id 3 is another token there and 'B' here"),
        (["[UNK]", "</s>", "a", "b", "d", "c\n"], r"token id 4 is 'c\\n' there and 'd' here"),
        (["</s>", "a", "b", "c\n", "d"], r"token id 0 is another token there and '</s>' here"),
    ],
)
def test_the_first_conflict_is_named(tmp_path, names, said):
    folder = save(tmp_path, words())
    with pytest.raises(DatabaseError, match=f"another tokenizer: {said}; build it again with this model's") as caught:
        StatisticsDatabase.from_pretrained(folder, words(*names))
    assert "\n" not in str(caught.value)


def test_a_vocabulary_padded_for_the_hardware(tmp_path):
    """The model has ids to spare, which a token that is added later takes."""
    folder = save(tmp_path, words(), vocab_size=64)
    assert StatisticsDatabase.from_pretrained(folder, extended(), vocab_size=64).vocab_size == 64
    assert StatisticsDatabase.from_pretrained(folder, words(), vocab_size=128).vocab_size == 64


def test_slow_tokenizers(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    slow, added = (BertTokenizer.from_pretrained(tmp_path) for _ in range(2))
    folder = save(tmp_path / "database", slow, [(5, 6, 5)])
    added.add_special_tokens({"additional_special_tokens": ["<x>"]})
    added.save_pretrained(tmp_path / "added")
    for tokenizer in (slow, added, AutoTokenizer.from_pretrained(tmp_path / "added")):
        StatisticsDatabase.from_pretrained(folder, tokenizer)
    python = transformers.ByT5Tokenizer()  # one in Python alone
    folder = save(tmp_path / "bytes", python, [(100, 101)])
    python.add_tokens("word")
    StatisticsDatabase.from_pretrained(folder, python)
    with pytest.raises(DatabaseError, match="another tokenizer: token id 0 is '<pad>' there and"):
        StatisticsDatabase.from_pretrained(folder, words("<x>", "<pad>"))


def test_a_database_of_before_opens_with_its_tokenizer_and_with_one_or_a_few_tokens_added(tmp_path):
    folder = forget(save(tmp_path, words()))
    for tokenizer in (words(), padded(), extended()):
        StatisticsDatabase.from_pretrained(folder, tokenizer)
    for tokenizer in (words(*WORDS[:-1]), words(*WORDS[:-1], "D"), larger()):
        with pytest.raises(DatabaseError, match="was built with another tokenizer: build it again with this model's"):
            StatisticsDatabase.from_pretrained(folder, tokenizer)


def test_a_database_of_before_remembers_more_when_it_is_saved(tmp_path):
    folder = forget(save(tmp_path, words(), cls=ModelDatabase))
    ModelDatabase.from_pretrained(folder, padded()).save_pretrained(folder)
    assert json.loads((folder / MANIFEST).read_text())["arrays"]["vocabulary"]["shape"] == [6]
    ModelDatabase.from_pretrained(folder, larger())


def test_a_fingerprint_alone_has_to_be_the_same(tmp_path):
    folder = save(tmp_path, words())
    StatisticsDatabase.from_pretrained(folder, tokenizer_fingerprint(words()))
    with pytest.raises(DatabaseError, match="was built with another tokenizer: build it again"):
        StatisticsDatabase.from_pretrained(folder, tokenizer_fingerprint(padded()))
    StatisticsDatabase.from_documents([[2]], 6, 1, "a fingerprint").save_pretrained(tmp_path)
    with pytest.raises(DatabaseError, match="was built with another tokenizer: build it again"):
        StatisticsDatabase.from_pretrained(tmp_path, words())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("shape", [5], "type or shape of vocabulary"),
        ("dtype", "uint16", "type or shape of vocabulary"),
        ("bytes", 10**9, "size of vocabulary"),
        ("file", "tokens-0123456789abcdef.txt", "file of vocabulary"),
    ],
)
def test_a_manifest_that_is_wrong_about_the_vocabulary_is_refused(tmp_path, field, value, said):
    folder = save(tmp_path, words())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["arrays"]["vocabulary"][field] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DatabaseError, match=said):
        StatisticsDatabase.from_pretrained(folder)


def test_two_databases_built_before_and_after_a_token_was_added(tmp_path):
    general = save(tmp_path / "general", words())
    model = save(tmp_path / "model", padded(), [(2, 3, 6)], ModelDatabase)
    options = {"model_database": str(model), "statistics_database": str(general), "learn": True}
    for vocab_size, tokenizer in ((7, padded()), (None, None)):
        drafter = open_drafter("hd", options, vocab_size=vocab_size, tokenizer=tokenizer)
        assert drafter.vocab_size == 7
        assert 6 in drafter.session([2, 3]).propose(8).tokens
    other = save(tmp_path / "other", words(*WORDS[:3], "B", "c\n", "d"), cls=ModelDatabase)
    with pytest.raises(ValueError, match="are of different tokenizers: build both with one"):
        open_drafter("hd", {**options, "model_database": str(other)})
    with pytest.raises(ValueError, match="build both with this model's tokenizer"):
        HierarchyDrafter(
            9, ModelDatabase.from_pretrained(other), StatisticsDatabase.from_pretrained(general), learn=True
        )


def test_the_embedded_database_opens_with_its_tokenizer_and_one_with_a_pad_token():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, verify=True)
    tokenizer.add_special_tokens({"pad_token": "<a new one>"})
    database = ModelDatabase.from_pretrained(MODEL_DATABASE, tokenizer, vocab_size=len(tokenizer))
    HierarchyDrafter(len(tokenizer), database)
