"""Record what vLLM really hands to a proposer, for `tests/engines/recording.json.gz`.

    python tools/record_vllm.py

A run of the embedded model in a batch of 6 rows and a cache too small for them: requests enter at different times, with
prompts that are read in pieces, end, are aborted, are preempted and come again, and some come near the longest text, so
that calls are left out. Each call is kept as

    {"rows": [[request, tokens], …], "sampled": [[token, …], …]}

where `tokens` is how many of the row's tokens were there before those sampled; the tokens themselves are those of
`requests`, a list of texts. So the file tells what no proposer is told: which request a row is.
"""

import gzip
import importlib
import json
import os
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine within this process, where it can be watched
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np

from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS

RECORDING = Path(__file__).parents[1] / "tests" / "engines" / "recording.json.gz"
MAX_MODEL_LEN = 320


class Recorder:
    """Writes down each call of a proposer's hook."""

    def __init__(self, runner: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.texts: dict[str, list[int]] = {}
        self._runner, self._propose = runner, runner.drafter.propose
        runner.drafter.propose = self.propose

    def propose(self, sampled_token_ids: Any, num_tokens_no_spec: Any, token_ids_cpu: Any, **others: Any) -> Any:
        """As the proposer does."""
        call: dict[str, Any] = {"rows": [], "sampled": [list(sampled) for sampled in sampled_token_ids]}
        for row, sampled in enumerate(sampled_token_ids):
            name = self._runner.input_batch.req_ids[row]
            length = int(num_tokens_no_spec[row])
            text = token_ids_cpu[row, :length].tolist()
            known = self.texts.setdefault(name, [])
            assert text[: len(known)] == known
            self.texts[name] = text
            call["rows"].append([name, length - len(sampled)])
        self.calls.append(call)
        return self._propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu, **others)


def main() -> None:
    """Run, and write the file."""
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(
        str(MODEL),
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=24,
        enforce_eager=True,
        enable_prefix_caching=False,
        additional_config={"hdraft": {"model_database": str(MODEL_DATABASE), "learn": True}},
        speculative_config={
            "method": "custom_class",
            "model": "hdraft.engines.vllm.HierarchyProposer",
            "num_speculative_tokens": 6,
        },
    )
    engine: Any = llm.llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    recorder = Recorder(runner)
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    rng = np.random.default_rng(0)
    for step in range(10_000):
        if step % 4 == 0 and step < 4 * 40:
            text = prompts[int(rng.integers(len(prompts)))]
            tokens = 400 if step % 5 == 0 else int(rng.integers(4, 90))
            text = text[: len(text) // int(rng.integers(1, 5))]
            engine.add_request(f"request-{step}", text, vllm.SamplingParams(temperature=0, max_tokens=tokens))
        running = list(runner.input_batch.req_ids)
        if step % 40 == 39 and running:
            engine.abort_request([running[int(rng.integers(len(running)))]])
        engine.step()
        if step >= 4 * 40 and not engine.has_unfinished_requests():
            break
    names = {name: number for number, name in enumerate(recorder.texts)}
    for call in recorder.calls:
        call["rows"] = [[names[name], before] for name, before in call["rows"]]
    recording = {"max_model_len": MAX_MODEL_LEN, "requests": list(recorder.texts.values()), "calls": recorder.calls}
    with gzip.GzipFile(RECORDING, "wb", mtime=0) as file:
        file.write(json.dumps(recording, separators=(",", ":")).encode())
    print(f"{len(recorder.calls)} calls, {len(names)} requests, {RECORDING.stat().st_size} bytes")


if __name__ == "__main__":
    main()
