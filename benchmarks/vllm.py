"""The same prompts through one vLLM engine after another: no speculation, vLLM's n-gram drafter, suffix decoding, ours.

    python benchmarks/vllm.py [--json FILE] [--dtype bfloat16] [--rounds N]

The embedded model on this machine's processor, in the environment of `make test-vllm`. Each method has an engine in a
process of its own, all live at once, and the rounds alternate between them, so that what the machine does beside them
touches all alike. Throughputs are ratios within a round, and a figure is the median over the rounds. Suffix decoding
runs where arctic-inference is installed. The first round is not counted. Every round has the same prompts, so suffix
decoding, which keeps outputs, has seen these before; hdraft learns nothing here.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from hdraft.demo import MODEL, MODEL_DATABASE, PROMPTS
from hdraft.evaluation.machine import machine

TOKENS = 8
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": TOKENS},
    "ngram 2 to 5": {
        "method": "ngram",
        "num_speculative_tokens": TOKENS,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 5,
    },
    "suffix": {"method": "suffix", "num_speculative_tokens": TOKENS},
    "hdraft": {
        "method": "custom_class",
        "model": "hdraft.engines.vllm.HierarchyProposer",
        "num_speculative_tokens": TOKENS,
    },
}
REQUESTS = {1: 8, 8: 64, 32: 64}  # by concurrency


def prompts(count: int) -> list[str]:
    """Beginnings for the embedded model: those of the demonstration, cut at several places."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [text[: len(text) * (16 - i) // 16] for i in range(count // len(texts) + 1) for text in texts][:count]


def serve(connection: Connection, method: str, dtype: str, new_tokens: int) -> None:
    """An engine that answers each concurrency sent with what it generated and how long that took."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # within this process, where `propose` can be timed
    # This file has vLLM's name: look for the package elsewhere.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(
        str(MODEL),
        dtype=dtype,
        max_model_len=2048,
        max_num_seqs=64,
        enforce_eager=True,
        enable_prefix_caching=False,
        num_gpu_blocks_override=400,
        speculative_config=METHODS[method],
        additional_config={"hdraft": {"model_database": str(MODEL_DATABASE)}},
    )
    engine: Any = llm.llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    drafting: list[tuple[int, float]] = []  # rows, seconds
    if METHODS[method] is not None:
        propose = runner.drafter.propose

        def timed(*arguments: Any, **others: Any) -> Any:
            start = time.perf_counter()
            drafts = propose(*arguments, **others)
            drafting.append((len(drafts), time.perf_counter() - start))
            return drafts

        runner.drafter.propose = timed
    params = vllm.SamplingParams(temperature=0, max_tokens=new_tokens)
    connection.send("ready")
    while concurrency := connection.recv():
        waiting = prompts(REQUESTS[concurrency])[::-1]
        outputs: dict[str, list[int]] = {}
        running = steps = rows = 0
        drafting.clear()
        start = time.perf_counter()
        while waiting or running:
            while waiting and running < concurrency:
                engine.add_request(str(len(waiting)), waiting.pop(), params)
                running += 1
            for result in engine.step():
                rows += 1
                if result.finished:
                    outputs[result.request_id] = list(result.outputs[0].token_ids)
                    running -= 1
            steps += 1
        seconds = time.perf_counter() - start
        emitted = sum(map(len, outputs.values()))
        connection.send(
            {
                "outputs": [outputs[name] for name in sorted(outputs)],
                "tokens_a_second": emitted / seconds,
                "mean_accepted_tokens": emitted / rows,
                "milliseconds_a_step": 1000 * seconds / steps,
                "propose_microseconds_a_step": 1e6 * median([each for _, each in drafting] or [0.0]),
                "propose_microseconds_a_row": 1e6 * median([each / max(n, 1) for n, each in drafting] or [0.0]),
            }
        )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="vLLM without speculation, with ngram, with suffix and with hdraft.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(REQUESTS), choices=list(REQUESTS))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    names = [name for name in METHODS if name != "suffix" or importlib.util.find_spec("arctic_inference")]
    context = get_context("spawn")
    engines: dict[str, Connection] = {}
    for name in names:
        engines[name], other = context.Pipe()
        process = context.Process(target=serve, args=(other, name, arguments.dtype, arguments.new_tokens), daemon=True)
        process.start()
        engines[name].recv()
    concurrencies = {}
    for concurrency in arguments.concurrency:
        rounds: list[dict[str, dict[str, Any]]] = []
        for _ in range(arguments.rounds + 1):
            rounds.append({})
            for name, engine in engines.items():
                engine.send(concurrency)
                rounds[-1][name] = engine.recv()
        plain = rounds[0]["none"]["outputs"]
        figures = {}
        for name in names:
            counted = [each[name] for each in rounds[1:]]
            same = [sum(a == b for a, b in zip(plain, each["outputs"], strict=True)) for each in counted]
            figures[name] = {
                "throughput_over_none": median(
                    each[name]["tokens_a_second"] / each["none"]["tokens_a_second"] for each in rounds[1:]
                ),
                **{key: median(each[key] for each in counted) for key in counted[0] if key != "outputs"},
                "outputs_as_without": f"{min(same)} of {len(plain)}",
            }
            print(concurrency, name, figures[name], flush=True)
        concurrencies[str(concurrency)] = figures
    for engine in engines.values():
        engine.send(0)
    if arguments.json:
        cores = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")  # vLLM's: which ones, None for all
        settings = {"dtype": arguments.dtype, "rounds": arguments.rounds, "new_tokens": arguments.new_tokens}
        result = {
            "machine": machine() | {"vllm-cpu": version("vllm-cpu"), "VLLM_CPU_OMP_THREADS_BIND": cores},
            "settings": settings | {"num_speculative_tokens": TOKENS, "requests": REQUESTS},
            "concurrency": concurrencies,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
