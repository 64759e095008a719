"""Models by name: how much text there is room for."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hdraft.building import BuildError, generate_outputs
from hdraft.loading import LoadError, check_room


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """With 32 positions."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=None))


def test_a_default_gives_way_to_the_models_positions_and_what_is_asked_for_does_not(model: GPT2LMHeadModel) -> None:
    assert check_room(model, 10, None, default=256) == 23
    assert check_room(model, 10, None, default=5) == 5
    assert check_room(model, 10, 23, default=256) == 23
    with pytest.raises(LoadError, match="--max-new-tokens 23 at most"):
        check_room(model, 10, 24, default=256)
    with pytest.raises(LoadError, match="shorten it"):
        check_room(model, 33, None, default=256)


def test_answers_end_where_positions_do(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [{"prompt_ids": [1] * length} for length in (3, 31)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate_outputs(model, None, prompts, answers)
    assert [len(json.loads(line)["output_ids"]) for line in answers.read_text().splitlines()] == [30, 2]
    prompts.write_text(json.dumps({"prompt_ids": [1] * 33}) + "\n")
    with pytest.raises(BuildError, match=r"prompts.jsonl:1: the prompt has 33 tokens, more than the model takes"):
        generate_outputs(model, None, prompts, tmp_path / "others.jsonl")
