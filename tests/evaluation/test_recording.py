"""A model's own trace: its answers, and what it found likely; resumed after anything, nothing of others touched."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hdraft.drafting.databases.candidates import WIDTH
from hdraft.evaluation import recording
from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.methods import options_of_all
from hdraft.evaluation.recording import record
from hdraft.evaluation.replay import replay_files
from hdraft.evaluation.traces import Request, TraceError, read_trace


def setup(small: dict[str, str], **settings: Any) -> Setup:
    options = options_of_all(["hd"], model_database=small["model_database"])
    return Setup(small["model"], options, **{"max_new_tokens": 24} | settings)


@pytest.fixture(scope="module")
def trace(small: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "trace.jsonl"
    assert record(setup(small), Path(small["questions"]), path) == 5
    return path


def test_each_turn_is_a_request_with_what_generate_writes_and_finds_likely(small: dict[str, str], trace: Path) -> None:
    requests = read_trace(trace)
    assert [request.id for request in requests] == ["81-0", "81-1", "161-0", "321-0", "481-0"]
    assert [request.category for request in requests] == ["coding", "coding", "translation", "qa", "rag"]
    model = AutoModelForCausalLM.from_pretrained(small["model"])
    for request in requests:
        prompt = torch.from_numpy(request.prompt_ids.astype(np.int64))[None]
        output = model.generate(prompt, max_new_tokens=24, do_sample=False)[0]
        assert request.output_ids.tolist() == output[prompt.shape[1] :].tolist()
        assert request.temperature == 0
        with torch.no_grad():
            exact = model(output[None]).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        assert request.candidates is not None and request.log_probabilities is not None
        assert request.candidates.shape == (len(request.output_ids), WIDTH)
        assert request.candidates[:, 0].tolist() == request.output_ids.tolist()
        likely = exact.gather(1, torch.from_numpy(request.candidates.astype(np.int64))).numpy()
        assert likely == pytest.approx(exact.topk(WIDTH).values.numpy(), abs=1e-4)
        assert request.log_probabilities == pytest.approx(likely, abs=0.006)


def test_sampled_answers_are_those_of_the_seed(small: dict[str, str], tmp_path: Path) -> None:
    outputs = []
    for seed in (1, 1, 2):
        path = tmp_path / f"{len(outputs)}.jsonl"
        record(setup(small, temperature=1.0, seed=seed), Path(small["questions"]), path, end=1)
        outputs.append([request.output_ids.tolist() for request in read_trace(path)])
        assert all(request.temperature == 1.0 for request in read_trace(path))
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_goes_on_where_it_was_stopped(
    small: dict[str, str], trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    lines = trace.read_bytes().splitlines(keepends=True)
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    answered = []
    answer = Answerer.answer
    monkeypatch.setattr(
        Answerer,
        "answer",
        lambda self, question, method: (answered.append(question.id), answer(self, question, method))[1],
    )
    assert record(setup(small), Path(small["questions"]), path) == 5
    assert answered == [161, 321, 481]
    assert path.read_bytes() == trace.read_bytes()
    monkeypatch.setattr(recording, "Answerer", None)  # not even loaded
    assert record(setup(small), Path(small["questions"]), path) == 5


def test_a_question_of_which_a_turn_is_missing_is_answered_anew(
    small: dict[str, str], trace: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(trace.read_bytes().splitlines(keepends=True)[0])
    assert record(setup(small), Path(small["questions"]), path) == 5
    assert path.read_bytes() == trace.read_bytes()


@pytest.mark.parametrize("content", ["a text", "{}\n", '{"id": 1}', '{"settings": "other"}\n', '{"settings": "0123'])
def test_a_file_of_something_else_is_refused_and_left_alone(
    small: dict[str, str], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(content)
    with pytest.raises(TraceError):
        record(setup(small), Path(small["questions"]), path)
    assert path.read_text() == content


def test_other_settings_are_refused(small: dict[str, str], trace: Path) -> None:
    before = trace.read_bytes()
    with pytest.raises(TraceError, match="choose another file"):
        record(setup(small, max_new_tokens=25), Path(small["questions"]), trace)
    with pytest.raises(TraceError, match=r"must end in \.jsonl"):
        record(setup(small), Path(small["questions"]), trace.with_suffix(".txt"))
    assert trace.read_bytes() == before


def test_replay_drafts_from_recorded_candidates(small: dict[str, str], trace: Path) -> None:
    shares = {}
    for method in ("hd", "retrieval"):
        figures = replay_files([trace], method, 8, learn=False)
        shares[method] = figures["categories"]["all"]["accepted_share"]["recycled"]
    assert shares["retrieval"] == 0.0


def test_recorded_candidates_foresee_what_no_database_has(tmp_path: Path) -> None:
    """Tokens in ever another order: what may follow each is known from the last time only."""
    draw = np.random.default_rng(0)
    output = [0]
    for _ in range(300):
        output.append((output[-1] * 4 + int(draw.integers(4))) % 64)
    following = [[(token * 4 + i) % 64 for i in range(4)] for token in [63, *output[:-1]]]
    record = {"id": "1", "category": "qa", "prompt_ids": [63], "output_ids": output}
    scores = [[-1.39] * 4] * len(output)
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(record | {"candidates": following, "log_probabilities": scores}) + "\n")
    hd, retrieval = (replay_files([path], method, 16, learn=False) for method in ("hd", "retrieval"))
    assert hd["categories"]["all"]["mat"] > 1.3 * retrieval["categories"]["all"]["mat"]
    assert hd["categories"]["all"]["accepted_share"]["recycled"] > 0.3
    assert retrieval["categories"]["all"]["accepted_share"]["recycled"] == 0.0


def test_a_request_without_candidates_is_as_ever() -> None:
    request = Request("1", "qa", np.zeros(1, np.int32), np.ones(2, np.int32))
    assert request.candidates is None and request.log_probabilities is None and request.largest_id == 1
