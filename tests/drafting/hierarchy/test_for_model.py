"""A drafter for a model: what may be named, and what is refused in one line."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hdraft import DatabaseError, HierarchyDrafter, ModelDatabase, StatisticsDatabase

WORDS = ["[UNK]", "</s>", "a", "b", "c", "d"]
SIZE = 8  # the model has more ids than its tokenizer


def words(*names: str) -> PreTrainedTokenizerFast:
    vocabulary = {name: index for index, name in enumerate(names or WORDS)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")), eos_token="</s>")


OTHER = words(*WORDS[:3], "B", "c", "d")


@pytest.fixture
def model() -> LlamaForCausalLM:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, **small))


@pytest.fixture
def d_m(tmp_path: Path) -> Path:
    ModelDatabase.from_documents([[2, 3, 4]], SIZE, 1, words()).save_pretrained(tmp_path / "D_m")
    return tmp_path / "D_m"


@pytest.fixture
def d_s(tmp_path: Path) -> Path:
    StatisticsDatabase.from_documents([[2, 3, 5]], SIZE, 1, words()).save_pretrained(tmp_path / "D_s")
    return tmp_path / "D_s"


def drafted(drafter: HierarchyDrafter) -> set[int]:
    """What may follow 2 3."""
    tree = drafter.session([2, 3]).propose(8)
    return {int(token) for token, depth in zip(tree.tokens, tree.depths, strict=True) if depth == 1}


def test_databases_by_folder_by_hub_name_and_as_they_are(
    model: LlamaForCausalLM, d_m: Path, d_s: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: {"me/m": str(d_m), "me/s": str(d_s)}[name]
    )
    for named_m, named_s in (
        (d_m, d_s),
        (str(d_m), str(d_s)),
        ("me/m", "me/s"),
        (ModelDatabase.from_pretrained(d_m), StatisticsDatabase.from_pretrained(d_s)),
    ):
        for each in (model, SIZE):
            drafter = HierarchyDrafter.for_model(each, words(), named_m, named_s)
            assert drafter.vocab_size == SIZE and not drafter.learn
            assert drafted(drafter) == {4, 5}
    assert drafted(HierarchyDrafter.for_model(model, model_database=d_m)) == {4}
    assert drafted(HierarchyDrafter.for_model(model, words(), statistics_database=d_s)) == {5}
    assert not drafted(HierarchyDrafter.for_model(model))


@pytest.mark.parametrize("databases", [0, 1, 2])
def test_what_is_learnt_is_drafted_for_later_requests_where_it_is_asked_for(
    model: LlamaForCausalLM, d_m: Path, d_s: Path, databases: int
) -> None:
    named = {"statistics_database": d_s} if databases == 1 else {"model_database": d_m, "statistics_database": d_s}
    for learn in (True, False):
        drafter = HierarchyDrafter.for_model(model, words(), learn=learn, **(named if databases else {}))
        session = drafter.session([1])
        session.extend([2, 3, 0, 7])
        session.close()
        assert (0 in drafted(drafter)) == learn


def test_a_database_of_another_tokenizer_is_refused(model: LlamaForCausalLM, d_m: Path, d_s: Path) -> None:
    for named in ({"model_database": d_m}, {"statistics_database": str(d_s)}):
        with pytest.raises(DatabaseError, match="another tokenizer: token id 3 is another token there and 'B'"):
            HierarchyDrafter.for_model(model, OTHER, **named)
        with pytest.raises(DatabaseError, match=f"a vocabulary of {SIZE} ids, not 9"):
            HierarchyDrafter.for_model(9, **named)


def test_two_databases_of_different_tokenizers_are_refused(tmp_path: Path, d_m: Path) -> None:
    other = StatisticsDatabase.from_documents([[2, 3]], SIZE, 1, OTHER)
    with pytest.raises(ValueError, match=r"^\S+D_m and the statistics_database are of different tokenizers"):
        HierarchyDrafter.for_model(SIZE, None, d_m, other)


def test_wrong_arguments_are_named(model: LlamaForCausalLM, d_m: Path, d_s: Path, tmp_path: Path) -> None:
    stored = ModelDatabase.from_pretrained(d_m)
    with pytest.raises(DatabaseError, match="there is no such folder"):
        HierarchyDrafter.for_model(model, None, tmp_path / "nothing")
    with pytest.raises(DatabaseError, match="a statistics database where a model database is needed"):
        HierarchyDrafter.for_model(model, None, d_s)
    with pytest.raises(ValueError, match=r"the statistics_database must be a folder.* not ModelDatabase"):
        HierarchyDrafter.for_model(model, None, None, stored)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the tokenizer must be the model's own, not a ModelDatabase"):
        HierarchyDrafter.for_model(model, stored)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for a model, or for a vocabulary's size, not for a str"):
        HierarchyDrafter.for_model("some/model")
    with pytest.raises(ValueError, match="vocab_size is 0"):
        HierarchyDrafter.for_model(0)


def test_a_drafter_without_databases_drafts_what_the_text_holds() -> None:
    tree = HierarchyDrafter.for_model(100).session(np.array([5, 6, 7, 5, 6])).propose(2)
    assert tree.tokens.tolist() == [7, 5]
