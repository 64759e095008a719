"""The proposer against a recording of vLLM's own calls, which `tools/record_vllm.py` made."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from batch import vllm_config

from hdraft.engines.vllm import HierarchyProposer

RECORDING: dict[str, Any] = json.loads(gzip.decompress(Path(__file__).with_name("recording.json.gz").read_bytes()))


def test_each_request_is_followed_through_vllms_own_calls_and_none_takes_anothers_session() -> None:
    texts, length = RECORDING["requests"], RECORDING["max_model_len"]
    proposer = HierarchyProposer(vllm_config(8192, max_model_len=length))
    assert proposer._batch is not None
    proposer._batch._measure = lambda *_: None  # type: ignore[method-assign]
    tokens, lengths = np.zeros((8, length), np.int32), np.zeros(8, np.int32)
    known: dict[int, tuple[int, int, int, int]] = {}  # request: its tokens, in which call and row, what followed it
    owner: dict[int, int] = {}
    kept: list[Any] = []  # so that no id is used twice
    moved = skipped = absent = accepted = 0
    for number, call in enumerate(RECORDING["calls"]):
        for row, ((request, before), sampled) in enumerate(zip(call["rows"], call["sampled"], strict=True)):
            lengths[row] = before + len(sampled)
            tokens[row, : lengths[row]] = texts[request][: lengths[row]]
            assert tokens[row, before : lengths[row]].tolist() == sampled
        drafts = proposer.propose(call["sampled"], lengths, tokens)
        for row, ((request, before), sampled, draft) in enumerate(
            zip(call["rows"], call["sampled"], drafts, strict=True)
        ):
            follower = proposer._requests[row]
            if not sampled:
                assert follower is None
                assert draft == []
                continue
            assert follower is not None
            assert follower.session is not None
            context = follower.session._context
            assert context.trie.text[: len(context)].tolist() == texts[request][: lengths[row]]
            assert owner.setdefault(id(follower), request) == request
            kept.append(follower)
            if request in known:
                tokens_known, when, where, same = known[request]
                if tokens_known != before:
                    skipped += 1
                elif when != number - 1:
                    absent += 1
                else:
                    assert same == id(follower), "a request in the batch of two calls in a row keeps its session"
                    moved += where != row
            known[request] = (before + len(sampled), number, row, id(follower))
            for token, expected in zip(draft, texts[request][lengths[row] :], strict=False):
                if token != expected:
                    break
                accepted += 1
    assert min(moved, skipped, absent) > 0, "the recording has requests that move, are left out and are preempted"
    assert accepted > 500
