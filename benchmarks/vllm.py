"""vLLM with hdraft beside vLLM with its own drafters and with none, on a real model and prompts never seen before.

    python benchmarks/vllm.py --model FOLDER --json FILE

FOLDER holds SmolLM2-135M-Instruct: `hdraft demo --prepare` makes it and prints where it is. Run this in the environment
of `make test-vllm`; suffix decoding is measured where `tools/suffix_decoding.sh` has put it there.

Two workloads (`vllm_prompts.py`): `mixed`, of ten kinds, and `repeated`, one of three templates of the same work with
other inputs each time. At each concurrency there are three rounds, every round has prompts of its own, and every
method begins it knowing nothing but its databases: what it learns, it learns from this round's earlier requests. FILE
is written after each round of a workload at a concurrency, and what is in it is not run again.

Engines are processes of their own, all live at once. As the machine's speed drifts, a round is cut into slices, and in
each slice the methods take turns, another one first each time. Throughputs are ratios to `none` within a slice; a
figure is the median over all slices. Of the settings of `ngram`, the one that was fastest in the first round goes on.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
import zlib
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from vllm_prompts import WORKLOADS, prompts

from hdraft import files
from hdraft.demo import SMOLLM2
from hdraft.evaluation.machine import machine

CONCURRENCY = (1, 8, 32)
SHARE = {1: 8, 8: 2}  # of the prompts, at this concurrency: one in so many, as the others take as long
SLICES = {1: 4, 8: 3, 32: 2}  # at this concurrency
PROPOSER = "hdraft.engines.vllm.HierarchyProposer"
D_M = {"model_database": str(SMOLLM2 / "database")}


class Method(NamedTuple):
    """What is compared: the engine that runs it, `speculative_config`, and what differs within the engine."""

    engine: str
    speculation: dict[str, Any]
    settings: dict[str, Any]


METHODS = {
    "none": Method("none", {}, {}),
    "ngram, as vLLM sets it": Method("ngram", {"method": "ngram"}, {}),
    "ngram, 2 to 5": Method("ngram", {"method": "ngram"}, {"prompt_lookup_min": 2, "prompt_lookup_max": 5}),
    "ngram, 3 to 5": Method("ngram", {"method": "ngram"}, {"prompt_lookup_min": 3, "prompt_lookup_max": 5}),
    "suffix": Method("suffix", {"method": "suffix"}, {}),
    "hdraft": Method("hdraft", {"method": "custom_class", "model": PROPOSER}, {}),
    "hdraft, D_m": Method("hdraft", {"method": "custom_class", "model": PROPOSER}, D_M),
    "hdraft, learning": Method("hdraft", {"method": "custom_class", "model": PROPOSER}, {"learn": True}),
    "hdraft, learning, D_m": Method("hdraft", {"method": "custom_class", "model": PROPOSER}, {"learn": True, **D_M}),
}


class Engine:
    """vLLM in this process, where its drafter can be replaced and timed."""

    def __init__(self, speculation: dict[str, Any], arguments: argparse.Namespace) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # This folder has a file of vLLM's name: look for the package elsewhere.
        sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
        self._vllm: Any = importlib.import_module("vllm")
        self._llm = self._vllm.LLM(
            arguments.model,
            dtype=arguments.dtype,
            max_model_len=2048,
            max_num_seqs=64,
            enforce_eager=True,
            enable_prefix_caching=False,
            num_gpu_blocks_override=arguments.blocks,
            speculative_config={**speculation, "num_speculative_tokens": arguments.tokens} if speculation else None,
        )
        self._engine = self._llm.llm_engine
        self._runner = self._engine.model_executor.driver_worker.worker.model_runner
        self._new_tokens = arguments.new_tokens
        self._defaults = {
            name: getattr(self._engine.vllm_config.speculative_config, name, None)
            for name in ("prompt_lookup_min", "prompt_lookup_max")
        }
        self._drafters: dict[str, Any] = {}
        self._drafting: list[tuple[int, int, float]] = []  # rows, draft tokens, seconds

    def run(self, name: str, texts: list[str], concurrency: int, begins: bool) -> dict[str, Any]:
        """A slice: these prompts, so many at a time; with a new drafter where a round begins."""
        if METHODS[name].speculation:
            if begins:
                self._renew(name)
            self._runner.drafter = self._drafters[name]
        self._drafting.clear()
        tokenizer = self._llm.get_tokenizer()
        waiting = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in reversed(texts)
        ]
        params = self._vllm.SamplingParams(temperature=0, max_tokens=self._new_tokens)
        outputs: dict[str, list[int]] = {}
        running = steps = rows = 0
        start = time.perf_counter()
        while waiting or running:
            while waiting and running < concurrency:
                self._engine.add_request(str(len(waiting)), {"prompt_token_ids": waiting.pop()}, params)
                running += 1
            for result in self._engine.step():
                rows += 1
                if result.finished:
                    outputs[result.request_id] = list(result.outputs[0].token_ids)
                    running -= 1
            steps += 1
        return {
            "outputs": [zlib.crc32(repr(outputs[str(i)]).encode()) for i in range(len(texts), 0, -1)],
            "tokens": sum(map(len, outputs.values())),
            "seconds": time.perf_counter() - start,
            "steps": steps,
            "rows": rows,
            "drafting": list(self._drafting),
        }

    def _renew(self, name: str) -> None:
        method, config = METHODS[name], self._engine.vllm_config
        if method.engine == "hdraft":
            config.additional_config = {"hdraft": method.settings}
        for key, value in (self._defaults | method.settings if method.engine == "ngram" else {}).items():
            setattr(config.speculative_config, key, value)
        drafter = self._drafters[name] = type(self._runner.drafter)(config)
        propose = drafter.propose

        def timed(*arguments: Any, **others: Any) -> Any:
            start = time.perf_counter()
            drafts = propose(*arguments, **others)
            self._drafting.append((len(drafts), sum(map(len, drafts)), time.perf_counter() - start))
            return drafts

        drafter.propose = timed


def serve(connection: Connection, name: str, arguments: argparse.Namespace) -> None:
    """An engine in a process of its own, which runs the slices that it is sent."""
    engine = Engine(METHODS[name].speculation, arguments)
    engine.run(name, prompts("mixed", 0, 4), 4, begins=True)
    connection.send("ready")
    while each := connection.recv():
        connection.send(engine.run(*each))


class Engines:
    """The engines' processes, started when they are first needed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._context = arguments, get_context("spawn")
        self._connections: dict[str, Connection] = {}
        self._processes: list[Any] = []

    def run(self, name: str, texts: list[str], concurrency: int, begins: bool) -> dict[str, Any]:
        """A slice; see `Engine.run`."""
        engine = METHODS[name].engine
        if engine not in self._connections:
            self._connections[engine], other = self._context.Pipe()
            self._processes.append(
                self._context.Process(target=serve, args=(other, name, self._arguments), daemon=True)
            )
            self._processes[-1].start()
            other.close()
            self._connections[engine].recv()
        self._connections[engine].send((name, texts, concurrency, begins))
        answer: dict[str, Any] = self._connections[engine].recv()
        return answer

    def close(self) -> None:
        """Have them end."""
        for connection in self._connections.values():
            connection.send(None)
        for process in self._processes:
            process.join()


def measure(engines: Engines, names: list[str], texts: list[str], concurrency: int) -> dict[str, list[dict[str, Any]]]:
    """A round: for each method its slices."""
    slices: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    count = min(SLICES.get(concurrency, 1), len(texts))
    for number in range(count):
        some = texts[number * len(texts) // count : (number + 1) * len(texts) // count]
        first = number % len(names)
        for name in names[first:] + names[:first]:
            slices[name].append(engines.run(name, some, concurrency, number == 0))
    return slices


def together(slices: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's round, from its slices."""
    tokens, seconds, rows, steps = (sum(each[key] for each in slices) for key in ("tokens", "seconds", "rows", "steps"))
    drafting = [each for own in slices for each in own["drafting"]]
    return {
        "outputs": [each for own in slices for each in own["outputs"]],
        "tokens": tokens,
        "tokens_a_second": tokens / seconds,
        "tokens_a_second_of_slices": [each["tokens"] / each["seconds"] for each in slices],
        "mean_accepted_tokens": tokens / rows,
        "drafted_a_step": sum(drafted for _, drafted, _ in drafting) / rows,
        "milliseconds_a_step": 1000 * seconds / steps,
        "propose_microseconds_a_row": 1e6 * median([each / n for n, _, each in drafting if n] or [0.0]),
        "propose_share": sum(each for _, _, each in drafting) / seconds,
    }


def figures(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each workload, concurrency and method: medians, of throughput over slices, of the rest over rounds."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for part in parts:
        groups.setdefault((part["workload"], part["concurrency"], part["method"]), []).append(part)
    rows = []
    for (workload, concurrency, method), group in groups.items():
        plain = {part["round"]: part for part in groups[workload, concurrency, "none"]}
        same = [
            sum(a == b for a, b in zip(part["outputs"], plain[part["round"]]["outputs"], strict=True)) for part in group
        ]
        key = "tokens_a_second_of_slices"
        ratios = [
            own / without for part in group for own, without in zip(part[key], plain[part["round"]][key], strict=True)
        ]
        numbers = [key for key, value in group[0].items() if isinstance(value, float)]
        rows.append(
            {"workload": workload, "concurrency": concurrency, "method": method, "rounds": len(group)}
            | {"throughput_over_none": median(ratios), "throughput_of_each_slice": ratios}
            | {key: median(part[key] for part in group) for key in numbers}
            | {"outputs_as_without": f"{sum(same)} of {sum(len(part['outputs']) for part in group)}"}
        )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print them as a table."""
    columns: tuple[str, ...] = ("throughput_over_none", "mean_accepted_tokens", "drafted_a_step", "milliseconds_a_step")
    columns += ("propose_microseconds_a_row", "propose_share")
    table = Table("workload", "concurrency", "method", *(name.replace("_", " ") for name in columns), "as without")
    for row in rows:
        values = (f"{row[name]:.3g}" for name in columns)
        table.add_row(row["workload"], str(row["concurrency"]), row["method"], *values, row["outputs_as_without"])
    console.print(table)


def best(names: list[str], parts: list[dict[str, Any]], workload: str, concurrency: int) -> list[str]:
    """The methods that go on after the first round: of `ngram`, the fastest setting."""
    speeds = {
        part["method"]: part["tokens_a_second"]
        for part in parts
        if (part["workload"], part["concurrency"], part["round"]) == (workload, concurrency, 0)
    }
    ngram = [name for name in names if METHODS[name].engine == "ngram"]
    fastest = max(ngram, key=lambda name: speeds.get(name, 0.0), default=None)
    return [name for name in names if name not in ngram or name == fastest]


def main() -> None:
    """Measure what is not measured yet, print and write."""
    parser = argparse.ArgumentParser(description="vLLM with hdraft, with its own drafters, and with none.")
    parser.add_argument("--model", metavar="FOLDER", required=True)
    parser.add_argument(
        "--json", metavar="FILE", type=Path, required=True, help="written after each round, and gone on from"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=160, help="of a round at a concurrency of 32; fewer at others")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8, help="num_speculative_tokens")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCY))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--blocks", type=int, default=1200, help="of the cache of keys and values")
    arguments = parser.parse_args()
    if not Path(arguments.model, "config.json").is_file():
        parser.error(f"{arguments.model} holds no model: `hdraft demo --prepare` makes one and prints where it is")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    names = [name for name in METHODS if name == "none" or name in arguments.methods]
    if not importlib.util.find_spec("arctic_inference"):
        print("suffix is left out: tools/suffix_decoding.sh puts it into this environment", file=sys.stderr)
        names = [name for name in names if name != "suffix"]
    settings = {key: getattr(arguments, key) for key in ("dtype", "prompts", "new_tokens", "tokens")}
    record: dict[str, Any] = {"settings": settings, "parts": []}
    if arguments.json.exists():
        record = json.loads(arguments.json.read_text(encoding="utf-8"))
        if record["settings"] != settings:
            parser.error(f"{arguments.json} was measured with other settings, {record['settings']}: give another file")
    record["machine"] = machine() | {
        "vllm-cpu": version("vllm-cpu"),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND"),  # vLLM's: which cores, None for all
    }
    parts, engines = record["parts"], Engines(arguments)
    done = {(part["workload"], part["concurrency"], part["round"]) for part in parts}
    for number in range(arguments.rounds):
        for workload in arguments.workloads:
            for concurrency in arguments.concurrency:
                if (workload, concurrency, number) in done:
                    continue
                count = arguments.prompts // SHARE.get(concurrency, 1)
                first = (number * len(CONCURRENCY) + arguments.concurrency.index(concurrency)) * arguments.prompts
                texts = prompts(workload, first, count)
                going_on = names if number == 0 else best(names, parts, workload, concurrency)
                for name, slices in measure(engines, going_on, texts, concurrency).items():
                    part = {"workload": workload, "concurrency": concurrency, "round": number, "method": name}
                    parts.append(part | together(slices))
                    print(parts[-1] | {"outputs": len(texts)}, flush=True)
                record["figures"] = figures(parts)
                files.replace(arguments.json, (json.dumps(record, indent=1) + "\n").encode())
    engines.close()
    show(figures(parts), Console())


if __name__ == "__main__":
    main()
