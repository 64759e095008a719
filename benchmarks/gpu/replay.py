"""Speed-up at full size without the weights: recorded requests, decoded by a random model of the true shape.

    python benchmarks/gpu/replay.py --shape llama-2-7b --dtype float16 --traces FOLDER --json FILE --markdown FILE

The model does all the work of every step; only the choice of the next token is the recorded one, see
`timed.py`. `--traces` holds the trace, the generations for D_m and the corpus for D_s, as recorded or as
`tools/pack_replay.py` packs them; both databases are built first. `docs/gpu.md` says what every figure means.

Methods take turns within each request, so that a machine whose speed drifts slows them all alike. Every MAT is compared
with that of a replay without a model, and must be the same.
"""

import argparse
import gzip
import io
import json
import logging
import lzma
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from timed import AskedAsDecoding, Seconds, Timing, time_decoding, time_generate, time_sizes
from timed_report import by_part, figures, markdown, parts, score
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hdraft import ModelDatabase, StatisticsDatabase, measure_costs
from hdraft.building.reading import Vocabulary, read_tokens
from hdraft.decoding.costs import STATIC_SIZES
from hdraft.decoding.graphed.static_cache import LEAST
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.drafting import Drafter
from hdraft.evaluation.machine import accelerator, machine
from hdraft.evaluation.methods import method_options, open_drafter
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, read_traces, vocabulary_of
from hdraft.loading import quieten

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-2-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""As published; `tiny` is no model's, and is there to try this script on a CPU."""

METHODS = ("transformers", "transformers-static", "vanilla", "pld", "published", "hd-27", "hd-64", "hd-adaptive")
"""`model.generate`, the same with its static cache (which it compiles), our loop without drafts, and with them; hd-N
has a fixed budget of N draft tokens."""

SIZES = tuple(sorted(STATIC_SIZES))
"""Draft tokens of the steps that are timed by size; with the text's last token a step has one row more."""

CACHED = 512
"""Tokens of text before those steps."""


def read_folder(folder: Path, vocabulary: Vocabulary) -> tuple[list[Request], npt.NDArray[Any], npt.NDArray[Any]]:
    """The trace, the generations and the corpus of a folder, see `tools/pack_replay.py`.

    Raises:
        ValueError, OSError: one of them is not there, or cannot be read.
    """
    lines = sorted(path for path in folder.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
    traces = [path for path in lines if _holds_prompts(path)]
    generations = [path for path in lines if path not in traces]
    arrays = sorted(path for path in folder.iterdir() if path.name.endswith((".npy", ".npy.xz")))
    for found, what in ((traces, "trace"), (generations, "generations"), (arrays, "corpus")):
        if not found:
            raise ValueError(
                f"{folder} holds no {what}: it takes .jsonl[.gz] files of both, and .npy[.xz] of the corpus"
            )
    corpus = np.concatenate([_read_array(path) for path in arrays])
    return read_traces(traces), read_tokens(generations, vocabulary), corpus


def _holds_prompts(path: Path) -> bool:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return b'"prompt_ids"' in next(iter(file), b"")


def _read_array(path: Path) -> npt.NDArray[Any]:
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def select(trace: Sequence[Request], turns: int, tokens: int) -> list[Request]:
    """So many requests, as evenly of each category as can be, cut off after so many tokens; categories take turns.

    Of a category those with enough tokens, evenly spread over the trace; where there are too few, the longest.
    """
    categories: dict[str, list[Request]] = {}
    for request in trace:
        categories.setdefault(request.category, []).append(request)
    chosen = []
    for index, requests in enumerate(categories.values()):
        share = turns // len(categories) + (index < turns % len(categories))
        long = [request for request in requests if len(request.output_ids) >= tokens]
        if len(long) >= share:
            chosen.append([long[i * len(long) // share] for i in range(share)])
        else:
            chosen.append(sorted(requests, key=lambda request: -len(request.output_ids))[:share])
    turned = [request for each in zip_longest(*chosen) for request in each if request is not None]
    return [replace(request, output_ids=request.output_ids[:tokens]) for request in turned]


def random_model(shape: str, dtype: str, device: str) -> PreTrainedModel:
    """A Llama of that shape, its weights drawn on the device; its logits are finite."""
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(device):
        model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # it goes on for as long as it is asked to
    model.generation_config.pad_token_id = 0
    logits = model(torch.arange(64, device=device)[None]).logits
    if not bool(logits.isfinite().all()):
        raise RuntimeError("the random model's logits are not finite: its times would not be those of a real one")
    return cast(PreTrainedModel, model)


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy within the device's memory reads and writes; a median."""
    size, copies = (1 << 30, 10) if device.startswith("cuda") else (1 << 28, 1)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    def seconds() -> float:
        begin = perf_counter()
        for _ in range(copies):
            target.copy_(source)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return perf_counter() - begin

    return 2 * size * copies / float(np.median([seconds() for _ in range(11)][1:]))


def bytes_read(model: PreTrainedModel, cached: int) -> tuple[int, int]:
    """The bytes that a step must read: of weights (all but the embeddings, of which a few rows do), and of cache."""
    config = model.config
    weights = sum(
        weight.numel() * weight.element_size()
        for name, weight in model.named_parameters()
        if "embed_tokens" not in name
    )
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return weights, 2 * config.num_hidden_layers * heads * cached * model.dtype.itemsize


@dataclass
class Method:
    """A way to decode, and its timings so far."""

    name: str
    budget: int = 0
    adaptive: bool = False
    timings: list[Timing] = field(default_factory=list)
    warm_up_seconds: float = 0.0
    peak_memory: int = 0

    @classmethod
    def of(cls, name: str) -> "Method":
        """By its name; raises ValueError where there is none."""
        kind, _, number = name.partition("-")
        if kind == "hd" and number.isdecimal() and 1 <= int(number) <= 64:
            return cls(name, int(number))
        if name not in METHODS:
            raise ValueError(f"no method {name}: there are {', '.join(METHODS)}, and hd-1 to hd-64")
        return cls(name, 64 if name in ("pld", "published", "hd-adaptive") else 0, name == "hd-adaptive")

    def drafter(self, databases: Path) -> Drafter | None:
        """A new one, which has learnt nothing yet."""
        if not self.budget:
            return None
        kind = self.name.partition("-")[0]
        folders: dict[str, Any] = {"model_database": databases / "D_m", "statistics_database": databases / "D_s"}
        options = method_options(kind, window=0, **(folders if kind != "pld" else {}))
        return open_drafter(kind, options, vocab_size=StatisticsDatabase.from_pretrained(databases / "D_s").vocab_size)


def build_databases(generations: npt.NDArray[Any], corpus: npt.NDArray[Any], of: Vocabulary, folder: Path) -> None:
    """D_m and D_s, unless they are there."""
    if not (folder / "D_m").exists():
        ModelDatabase.from_tokens(generations, of.vocab_size, of.eos_token_id).save_pretrained(folder / "D_m")
    if not (folder / "D_s").exists():
        StatisticsDatabase.from_tokens(corpus, of.vocab_size, of.eos_token_id).save_pretrained(folder / "D_s")


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return next(iter(answer.stdout.split()), None) if answer.returncode == 0 else None


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """The lines that hdraft logs meanwhile: which kinds of step could not be had, and why."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Lines()
    logging.getLogger("hdraft").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("hdraft").removeHandler(handler)


class Run:
    """One run of the benchmark: its settings, and its measurements so far."""

    def __init__(self, arguments: argparse.Namespace, requests: list[Request], databases: Path, log: list[str]) -> None:
        self.arguments = arguments
        self.requests = requests
        self.databases = databases
        self.methods = [Method.of(name) for name in dict.fromkeys(arguments.methods)]
        self.model = random_model(arguments.shape, arguments.dtype, arguments.device)
        self.bandwidth = copy_bandwidth(arguments.device)
        self.costs: Seconds = np.ones(1)
        self.warm_up_seconds = 0.0
        self.sizes: dict[int, tuple[Seconds, Seconds]] = {}
        self.mat_checked = False
        self.missing: list[str] = []
        self.log = log
        if not arguments.device.startswith("cuda"):
            self.missing += [
                f"no GPU was at hand: nothing was measured on one, every time here is of the {arguments.device}",
                "peak memory: it is measured on a GPU only",
            ]
            if any(method.name == "transformers-static" for method in self.methods):
                self.missing.append("transformers-static: transformers compiles it on a GPU only")
            self.methods = [method for method in self.methods if method.name != "transformers-static"]
        if arguments.shape == "tiny":
            self.missing.append("speed: the tiny shape is no model's; it proves the accounting and nothing else")

    def time(self, method: Method, request: Request, drafter: Drafter | None) -> Timing:
        """Decode a request."""
        if method.name.startswith("transformers"):
            static = {"cache_implementation": "static"} if method.name == "transformers-static" else {}
            return time_generate(self.model, request, **static)
        costs = self.costs if method.adaptive else None
        return time_decoding(self.model, request, drafter, method.budget, costs, self.arguments.step)

    def warm_up(self) -> None:
        """Everything once, with drafters of its own: compile, capture, load kernels.

        The longest request first, so that buffers are as large as any will have to be, and `model.generate` before our
        loop: what its static cache leaves in the model would have steps captured anew.
        """
        longest = max(self.requests, key=lambda request: len(request.prompt_ids) + len(request.output_ids))
        length = len(longest.prompt_ids) + len(longest.output_ids)
        theirs = [method for method in self.methods if method.name.startswith("transformers")]
        for method in theirs:
            self.warm_up_method(method, longest)
        begin = perf_counter()
        # in every bucket of lengths, so that what is captured or compiled for it is so then
        for cached in range(-(-length // LEAST) * LEAST - LEAST // 2, 0, -LEAST):
            time_sizes(self.model, SIZES, cached, steps=2, rounds=1, step=self.arguments.step)
        self.costs = measure_costs(self.model, self.arguments.step)
        self.warm_up_seconds = perf_counter() - begin
        self.say(f"steps of every size and length warmed up in {self.warm_up_seconds:.1f} s")
        for method in self.methods:
            if method not in theirs:
                self.warm_up_method(method, longest)

    def warm_up_method(self, method: Method, request: Request) -> None:
        """Decode a request; a `transformers-static` that cannot is left out and named."""
        begin = perf_counter()
        try:
            self.time(method, request, method.drafter(self.databases))
        except Exception as error:  # whatever another's compiler may raise
            if method.name != "transformers-static":
                raise
            self.methods.remove(method)
            reason = next(iter(str(error).splitlines()), "")
            self.missing.append(f"transformers-static: {type(error).__name__}: {reason}")
        method.warm_up_seconds = perf_counter() - begin
        self.say(f"{method.name} warmed up in {method.warm_up_seconds:.1f} s")

    def measure(self, until: float, report: Callable[[], None]) -> None:
        """Steps by size, then every method on every request as long as there is time; `report` after each."""
        self.sizes = time_sizes(self.model, SIZES, CACHED, step=self.arguments.step)
        report()
        drafters = {method.name: method.drafter(self.databases) for method in self.methods}
        for number, request in enumerate(self.requests):
            if perf_counter() > until:
                self.missing.append(
                    f"{len(self.requests) - number} of {len(self.requests)} turns: "
                    f"the {self.arguments.seconds:.0f} seconds given were over"
                )
                self.requests = self.requests[:number]
                break
            first = number % len(self.methods)
            for method in self.methods[first:] + self.methods[:first]:
                if self.model.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.model.device)
                method.timings.append(self.time(method, request, drafters[method.name]))
                if self.model.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(self.model.device)
                    method.peak_memory = max(method.peak_memory, peak)
            self.say(f"turn {number + 1} of {len(self.requests)}: {request.id} ({request.category})")
            report()

    def check_mat(self) -> None:
        """Make sure that every drafting method drafted and emitted what it does in a replay without a model.

        Raises:
            RuntimeError: it did not.
        """
        for method in self.methods:
            drafter = method.drafter(self.databases)
            if drafter is None:
                continue
            costs = self.costs if method.adaptive else None
            expected = replay(self.requests, AskedAsDecoding(drafter), method.budget, costs=costs).scores
            for category in expected:
                measured = score(self.timings(category)[method.name])
                if (measured.tokens, measured.sizes) != (expected[category].tokens, expected[category].sizes):
                    raise RuntimeError(
                        f"{method.name}, {category}: MAT {measured.mat} with the model and {expected[category].mat} "
                        "without: one of the two is wrong"
                    )
        self.mat_checked = True

    def timings(self, category: str) -> dict[str, list[Timing]]:
        """Of each method, those of the requests of a category that every method has decoded."""
        done = self.requests[: len(self.methods[0].timings)]
        chosen = [index for index, request in enumerate(done) if category in (ALL, request.category)]
        return {method.name: [method.timings[index] for index in chosen] for method in self.methods}

    def say(self, line: str) -> None:
        """Progress, on the standard error."""
        print(line, file=sys.stderr, flush=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, see docs/gpu.md."""
        arguments, done = self.arguments, self.requests[: len(self.methods[0].timings)]
        categories = [ALL, *dict.fromkeys(request.category for request in done)] if done else []
        by_category = {category: figures(self.timings(category)) for category in categories}
        weights, cache = bytes_read(self.model, CACHED)
        floor = 1000 * (weights + cache) / self.bandwidth
        return {
            "machine": machine()
            | {"accelerator": accelerator(arguments.device), "driver": driver(), "cuda": torch.version.cuda},
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "shape": arguments.shape,
            "dtype": arguments.dtype,
            "step": arguments.step,
            "warm_up_seconds": self.warm_up_seconds,
            "log": self.log,
            "not_measured": self.missing,
            "mat_equals_replay": self.mat_checked,
            "categories": categories,
            "methods": {
                method.name: {
                    "budget": method.budget,
                    "steps_are": " and ".join(sorted({each.kind for each in method.timings if each.kind})) or None,
                    "warm_up_seconds": method.warm_up_seconds,
                    "peak_memory_bytes": method.peak_memory or None,
                    "categories": {category: by_category[category][method.name] for category in categories},
                    "parts_milliseconds": parts(method.timings),
                }
                for method in self.methods
            },
            "bandwidth": {
                "copy_bytes_per_second": self.bandwidth,
                "cached_tokens": CACHED,
                "weight_bytes": weights,
                "cache_bytes": cache,
                "floor_milliseconds": floor,
            },
            "sizes": [self.size(size, floor) for size in self.sizes],
            "costs_milliseconds": [1000 * float(cost) for cost in self.costs],
            "requests": [
                {
                    "id": request.id,
                    "category": request.category,
                    "prompt_tokens": len(request.prompt_ids),
                    "tokens": len(request.output_ids),
                    "seconds": {method.name: float(method.timings[i].seconds.sum()) for method in self.methods},
                    "steps": {method.name: len(method.timings[i].seconds) for method in self.methods},
                }
                for i, request in enumerate(done)
            ],
        }

    def size(self, size: int, floor: float) -> dict[str, Any]:
        """The time of a step over so many draft tokens, and how far it is from the floor, in milliseconds."""
        seconds, parts = self.sizes[size]
        milliseconds = 1000 * float(np.median(seconds))
        return {
            "drafted": size,
            "rows": size + 1,
            "milliseconds": milliseconds,
            "to_one_row": milliseconds / (1000 * float(np.median(self.sizes[SIZES[0]][0]))),
            "share_of_floor": floor / milliseconds,
            "parts_milliseconds": by_part(np.median(parts, axis=0)),
        }


def main() -> None:
    """Measure and write everything."""
    parser = argparse.ArgumentParser(description="Recorded requests through a random model of the true shape.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--step", choices=get_args(StepKind), help="how a step is run, as hdraft.generate takes it")
    parser.add_argument("--traces", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--databases", type=Path, metavar="FOLDER", help="D_m and D_s, built there if they are not")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128, help="of each turn, at most")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no turn after so many")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    begin = perf_counter()
    for file in (arguments.json, arguments.markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise SystemExit(f"cannot write {file}: there is no folder {file.parent}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU: give --device cpu --shape tiny --dtype float32 to try the script without one"
        )
    if arguments.turns < 1 or arguments.tokens < 2:
        raise SystemExit("--turns must be at least 1 and --tokens at least 2")
    quieten()
    vocabulary = Vocabulary(32000, 2)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), log_lines() as log:
        databases = arguments.databases or Path(scratch)
        try:
            for name in arguments.methods:
                Method.of(name)
            if set(arguments.methods) == {"transformers-static"} and not arguments.device.startswith("cuda"):
                raise ValueError("transformers-static is for a GPU: name other methods")
            trace, generations, corpus = read_folder(arguments.traces, vocabulary)
            if vocabulary_of(trace) > vocabulary.vocab_size:
                raise ValueError(
                    f"{arguments.traces}: ids of {vocabulary.vocab_size} and more, not Llama 2's tokenizer"
                )
            build_databases(generations, corpus, vocabulary, databases)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from None
        print(f"databases ready after {perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
        run = Run(arguments, select(trace, arguments.turns, arguments.tokens), databases, log)
        run.warm_up()

        def write() -> None:
            record = run.to_dict()
            if arguments.json:
                arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if arguments.markdown:
                arguments.markdown.write_text(markdown(record), encoding="utf-8")

        run.measure(begin + arguments.seconds, write)
        run.check_mat()
        write()
        print(markdown(run.to_dict()), end="")


if __name__ == "__main__":
    main()
