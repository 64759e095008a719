"""A small model, its databases and a few questions, for the evaluation's tests."""

import json
from pathlib import Path

import pytest
import torch
from tiny_model import TEXT, save_tiny_model
from transformers import AutoTokenizer

from hdraft.building import build_statistics
from hdraft.drafting.databases.model import ModelDatabase

CHAT = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ '\n' }}{% endfor %}assistant:"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`model`, `model_database`, `statistics_database` and `questions`, by path."""
    folder = tmp_path_factory.mktemp("small")
    model = save_tiny_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    size = len(tokenizer)
    ModelDatabase.from_documents([tokenizer(TEXT).input_ids] * 3, size, 0, tokenizer).save_pretrained(folder / "D_m")
    (folder / "corpus.txt").write_text(TEXT * 9)
    build_statistics([folder / "corpus.txt"], folder / "D_s", tokenizer, size)
    questions = [
        {"question_id": 81, "category": "coding", "turns": ["def area(width", "again, please"]},
        {"question_id": 161, "category": "translation", "turns": ["return width * height"]},
        {"question_id": 321, "category": "qa", "turns": ["what is an area?"]},
        {"question_id": 481, "category": "rag", "turns": ["def area(width, height):\n    return"]},
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    return {
        "model": str(model),
        "model_database": str(folder / "D_m"),
        "statistics_database": str(folder / "D_s"),
        "questions": str(folder / "q.jsonl"),
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bench"
