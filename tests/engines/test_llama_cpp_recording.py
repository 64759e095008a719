"""The draft model against a recording of llama-cpp-python's own calls, which `tools/record_llama_cpp.py` made."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_loop import Llama, take, writer

from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.engines.llama_cpp import HierarchyDraftModel

RECORDING: dict[str, Any] = json.loads(
    gzip.decompress(Path(__file__).with_name("recording_llama_cpp.json.gz").read_bytes())
)
TEXTS = sorted((request["prompt"] + request["answer"] for request in RECORDING["requests"]), key=len)


def llama(draft_model: HierarchyDraftModel) -> Llama:
    return Llama(
        writer([[]]),
        vocab_size=RECORDING["n_vocab"],
        n_ctx=RECORDING["n_ctx"],
        n_batch=RECORDING["n_batch"],
        draft_model=draft_model,
    )


def answered(llama: Llama, request: dict[str, Any]) -> list[int]:
    """The answer to a request by what answered it then, as two of one prompt may differ at a near-tie."""
    llama.target = writer([*TEXTS, request["prompt"] + request["answer"]])
    return take(llama.generate(request["prompt"]), len(request["answer"]))


def test_the_llama_of_these_tests_does_what_the_real_one_did() -> None:
    drafts = iter([event[2] for event in RECORDING["events"] if event[0] == "call"])

    class Recorded(HierarchyDraftModel):
        """Drafts what was drafted then."""

        def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
            draft: list[int] = next(drafts)
            assert self._passes is not None
            self._passes.expect(draft)
            return np.array(draft, np.intc)

    tested = llama(Recorded(HierarchyDrafter(RECORDING["n_vocab"])))
    for request in RECORDING["requests"]:
        assert answered(tested, request) == request["answer"]
    assert next(drafts, None) is None
    events = [list(event) for event in tested.events]
    for event, recorded in zip(events, RECORDING["events"], strict=True):
        assert event == recorded[: len(event)]


def test_each_request_is_told_from_the_next_through_llama_cpps_own_calls() -> None:
    draft_model = HierarchyDraftModel(HierarchyDrafter(RECORDING["n_vocab"], learn=True), costs=np.ones(7), budget=6)
    tested = llama(draft_model)
    text: list[int] = []
    texts, new = [], 0
    for request in RECORDING["requests"]:
        before, goes_on = draft_model._session, request["prompt"] == text
        assert answered(tested, request) == request["answer"]
        if not goes_on:  # else it is the same request, or another: its text does not say
            assert draft_model._session is not before
            assert draft_model._generated == len(request["prompt"])
            new += 1
        text = request["prompt"] + request["answer"]
        texts.append(text)
    assert new == 9
    draft_model.close()
    learnt = [each.tolist() for each in draft_model.drafter.model_database.documents()]
    assert new <= len(learnt) <= len(texts)
    for document in learnt:
        begins = [len(request["prompt"]) for request in RECORDING["requests"]]
        assert any(text[begin : begin + len(document)] == document for text in texts for begin in begins)
    assert sum(map(len, learnt)) >= sum(len(request["answer"]) for request in RECORDING["requests"]) - 7 * len(learnt)
    assert draft_model.accepted > 50
