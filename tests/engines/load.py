"""Run by `test_vllm_engine` as a program of its own: 500 requests through one engine, with the proposer watched.

    python load.py REFERENCES

REFERENCES is JSON, prompts and what the model writes after each without speculation. Requests enter at different times
and end at different lengths, every fifth is aborted, and the cache is too small for a full batch, so that some are
preempted. After each step, what the proposer knows of each row is compared with the row.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine within this process, where it can be watched

import numpy as np
from vllm import LLM, SamplingParams

from hdraft.demo import MODEL, MODEL_DATABASE


def main() -> None:
    """Run, and print what was found."""
    references: list[tuple[str, list[int]]] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(
        str(MODEL),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        block_size=32,
        num_gpu_blocks_override=60,
        enforce_eager=True,
        additional_config={"hdraft": {"model_database": str(MODEL_DATABASE), "learn": True}},
        speculative_config={
            "method": "custom_class",
            "model": "hdraft.engines.vllm.HierarchyProposer",
            "num_speculative_tokens": 8,
        },
    )
    from hdraft.drafting.hierarchy.drafter import HierarchySession

    engine: Any = llm.llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    proposer, batch = runner.drafter, runner.input_batch
    calls, most = 0, 0
    inner = proposer.propose

    def propose(sampled: Any, lengths: Any, tokens: Any, **others: Any) -> Any:
        nonlocal calls, most
        drafts = inner(sampled, lengths, tokens, **others)
        calls += 1
        most = max(most, len(batch.req_ids))
        for row, request in enumerate(proposer._requests):
            if request is not None:
                own = tokens[row, : lengths[row]].tolist()
                assert request.known.tolist() == own
                if request.session is not None:
                    context = request.session._context
                    assert context.trie.text[: len(context)].tolist() == own
        return drafts

    proposer.propose = propose
    rng = np.random.default_rng(0)
    expected: dict[str, list[int]] = {}
    waiting = list(range(500))
    finished = aborted = tokens = 0
    while waiting or engine.has_unfinished_requests():
        for _ in range(int(rng.integers(0, 4))):
            if waiting and engine.get_num_unfinished_requests() < 24:
                number = waiting.pop()
                prompt, output = references[int(rng.integers(len(references)))]
                limit = int(rng.integers(1, len(output) + 1))
                expected[str(number)] = output[:limit]
                engine.add_request(str(number), prompt, SamplingParams(temperature=0, max_tokens=limit))
        running = [name for name in expected if name]
        for result in engine.step():
            ids = list(result.outputs[0].token_ids)
            assert ids == expected[result.request_id][: len(ids)], result.request_id
            if result.finished:
                assert ids == expected.pop(result.request_id)
                finished, tokens = finished + 1, tokens + len(ids)
        if running and rng.random() < 0.08:
            name = running[int(rng.integers(len(running)))]
            if expected.pop(name, None) is not None:
                engine.abort_request([name])
                aborted += 1
    for _ in range(20):
        inner([], batch.num_tokens_no_spec, batch.token_ids_cpu)
    gc.collect()
    alive = sum(isinstance(each, HierarchySession) for each in gc.get_objects())
    proposer._batch.learner.flush()
    learnt = len(proposer._batch.drafter.model_database.snapshot()[1].tokens)
    found = {"finished": finished, "aborted": aborted, "tokens": tokens, "calls": calls, "rows": most}
    print(json.dumps(found | {"sessions_left": alive, "failed": proposer._batch.failed, "learnt": learnt}))


if __name__ == "__main__":
    main()
