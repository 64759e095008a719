"""Train the small language model that hdraft ships for its demonstrations and tests.

The model is a 12-million-parameter Llama trained from scratch on openly licensed text: the
source of Python's standard library, Python's documentation, grade-school word problems (GSM8K)
and coffee orders (Taskmaster-4).  One run prepares the corpus, trains a byte-level BPE
tokenizer, trains the model for a given number of minutes and writes a folder that
``AutoModelForCausalLM`` and ``AutoTokenizer`` load, with a model card made from the measurements.

    python tools/train_demo_model.py --corpus CORPUS --docs DOCS --minutes 80

A run that was killed continues from its newest checkpoint when the same command is given again.
``--export-only`` writes the model folder from the newest checkpoint, and ``--write-prompts N``
writes prompts cut from the training documents; neither of the two trains.  Training needs
PyTorch 2.9 or newer (for ``torch.optim.Muon``).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import math
import os
import platform
import random
import re
import shutil
import signal
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("train_demo_model")

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"

# Kind of text -> (title, licence, how often a document is seen in one pass over the corpus).
KINDS: dict[str, tuple[str, str, int]] = {
    "code": ("Python standard library, source without its tests", "PSF-2.0", 1),
    "documentation": ("Python documentation, reStructuredText sources", "PSF-2.0", 1),
    "word problem": ("GSM8K, training split", "MIT", 2),
    "coffee order": ("Taskmaster-4, coffee-order dialogs", "CC-BY-4.0", 2),
}

# GPT-4's splitting rule with single digits: a line break is its own piece, and the indentation
# after it is one piece less the blank that belongs to the next word.
SPLIT_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + '\n\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'Question: ' + message['content'] + '\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ 'Answer: ' + message['content'] + '\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer:' }}{%- endif -%}"
)


# --------------------------------------------------------------------------------------- corpus


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    kind: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the document belongs to the 2 % that are never trained on."""
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % 50 == 0


def read_json_lines(path: Path) -> Iterator[Any]:
    """Yield the objects of a gzip-compressed JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def format_problem(row: dict[str, str]) -> str:
    """Write a word problem as text, without GSM8K's ``<<48/2=24>>`` annotations."""
    answer = re.sub(r"<<.*?>>", "", row["response"])
    return f"Question: {row['prompt'].strip()}\nAnswer: {answer.strip()}"


def format_order(row: dict[str, list[list[str]]]) -> str:
    """Write a coffee-order dialog as one line for each turn."""
    names = {"user": "Customer", "assistant": "Barista"}
    return "\n".join(f"{names[speaker]}: {' '.join(text.split())}" for speaker, text in row["turns"])


def standard_library_files(folder: Path) -> list[Path]:
    """Return the modules of the standard library that are worth learning from.

    Left out are tests, installed packages, files generated for one machine, the character
    tables of ``encodings`` and ``pydoc_data``, which repeats the documentation.
    """
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    skipped |= {"pydoc_data", "lib-dynload"}
    files = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if skipped.intersection(parts[:-1]) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        files.append(path)
    return files


def read_source(path: Path) -> str | None:
    """Return a module's text, or None if it is empty, undecodable or a character table."""
    try:
        with tokenize.open(path) as source:
            text = source.read()
    except (SyntaxError, UnicodeDecodeError):
        return None
    if not text.strip() or "### Decoding Table" in text or "### Decoding Mapping" in text:
        return None
    return text


def load_documents(corpus: Path, docs: Path, library: Path | None = None) -> list[Document]:
    """Read all documents, in a fixed order and without repetitions."""
    library = library or Path(sysconfig.get_path("stdlib"))
    found: list[Document] = []
    found += [Document("code", t) for p in standard_library_files(library) if (t := read_source(p))]
    found += [
        Document("documentation", text)
        for path in sorted(docs.rglob("*.rst.txt"))
        if (text := path.read_text(encoding="utf-8")).strip()
    ]
    problems = read_json_lines(corpus / "gsm8k_train.jsonl.gz")
    found += [Document("word problem", format_problem(row)) for row in problems]
    orders = read_json_lines(corpus / "taskmaster4_dialogs.jsonl.gz")
    found += [Document("coffee order", format_order(row)) for row in orders]
    return list(dict.fromkeys(found))


def fingerprint(documents: Iterable[Document]) -> str:
    """Return a digest that changes with any change of the documents."""
    digest = hashlib.sha256(SPLIT_PATTERN.encode())
    for document in documents:
        digest.update(document.kind.encode() + b"\0")
        digest.update(document.text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------ tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; it adds no tokens and loses no characters."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass
class EncodedKind:
    """The token ids of all documents of one kind, each document ended by end-of-text."""

    train: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    held_out_bytes: int = 0


def encode_documents(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> dict[str, EncodedKind]:
    """Tokenize the documents, by kind and by part (trained on or held out)."""
    encoded = {kind: EncodedKind() for kind in KINDS}
    end = tokenizer.eos_token_id
    rows = tokenizer.backend_tokenizer.encode_batch([d.text for d in documents])
    for document, row in zip(documents, rows, strict=True):
        ids = np.asarray([*row.ids, end], dtype=np.uint16)
        part = encoded[document.kind]
        if document.held_out:
            part.held_out.append(ids)
            part.held_out_bytes += len(document.text.encode())
        else:
            part.train.append(ids)
    return encoded


class WindowSampler:
    """Endless, reproducible stream of training windows; its place is (epoch, index).

    In each epoch the documents of every kind are put in a new order and joined, the joined text
    is cut into windows of ``length + 1`` tokens, and the windows of all kinds are mixed.
    """

    def __init__(self, encoded: dict[str, EncodedKind], length: int, seed: int, epoch: int, index: int) -> None:
        self.encoded, self.length, self.seed = encoded, length, seed
        self.epoch, self.index = epoch, index
        self.windows = self._windows(epoch)

    def _windows(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        rows: list[np.ndarray] = []
        for kind, (_, _, repeats) in KINDS.items():
            documents = self.encoded[kind].train
            if not documents:
                continue
            orders = [rng.permutation(len(documents)) for _ in range(repeats)]
            stream = np.concatenate([documents[i] for order in orders for i in order])
            start = int(rng.integers(self.length)) if len(stream) > 2 * self.length + 1 else 0
            for at in range(start, len(stream) - self.length, self.length):
                rows.append(stream[at : at + self.length + 1])
        if not rows:
            raise ValueError("the corpus is shorter than one training window")
        return np.stack(rows)[rng.permutation(len(rows))]

    def take(self, count: int) -> torch.Tensor:
        """Return the next ``count`` windows as a (count, length + 1) tensor."""
        rows: list[np.ndarray] = []
        while len(rows) < count:
            if self.index >= len(self.windows):
                self.epoch, self.index = self.epoch + 1, 0
                self.windows = self._windows(self.epoch)
            rows.append(self.windows[self.index])
            self.index += 1
        return torch.from_numpy(np.stack(rows).astype(np.int64))


# ---------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Settings:
    """The model's shape and how it is trained."""

    vocab_size: int = 8192
    hidden_size: int = 384
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 960
    positions: int = 8192
    sequence_length: int = 1024
    sequences: int = 8
    micro_sequences: int = 2
    matrix_lr: float = 4e-3
    vector_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.015
    decay: float = 0.3
    seed: int = 20


def build_model(settings: Settings) -> LlamaForCausalLM:
    """Return a freshly initialised model."""
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        head_dim=settings.head_dim,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(settings.seed)
    model: LlamaForCausalLM = LlamaForCausalLM(config)  # float32, PyTorch's default
    with torch.no_grad():  # residual branches start small, as in GPT-2
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.div_(math.sqrt(2 * settings.layers))
    return model


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of an output head, with the logits of a few tokens at a time.

    The gradient is found in the forward pass, so that logits are neither kept nor computed twice
    and stay in the processor's cache.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        inputs, head = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
        grad_inputs = torch.empty_like(inputs)
        grad_head = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        scale = 1.0 / len(targets)
        with torch.autocast(hidden.device.type, enabled=False):
            for at in range(0, len(targets), chunk):
                part, labels = inputs[at : at + chunk], targets[at : at + chunk, None]
                log_p = torch.log_softmax((part @ head.T).float(), dim=-1)
                total -= log_p.gather(1, labels).sum()
                probs = log_p.exp_()
                probs.scatter_add_(1, labels, probs.new_full(labels.shape, -1.0))
                grad = probs.mul_(scale).to(torch.bfloat16)
                grad_inputs[at : at + chunk] = grad @ head
                grad_head += grad.T @ part
        ctx.save_for_backward(grad_inputs.to(hidden.dtype), grad_head)
        return total * scale

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grads[0], grad_head * grads[0], None, None


def hidden_states(body: torch.nn.Module, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Run the transformer without its output head, in bfloat16 where that is safe."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden: torch.Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def head_weight(model: LlamaForCausalLM) -> torch.Tensor:
    """Return the matrix that is both the embedding and the output head."""
    weight: torch.Tensor = model.model.embed_tokens.weight
    return weight


def make_optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of each layer, AdamW for the embedding and the norms."""
    muons: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [parameter for parameter in layer.parameters() if parameter.ndim == 2],
            lr=settings.matrix_lr,
            weight_decay=settings.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        for layer in model.model.layers
    ]
    embedding = [head_weight(model)]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    adam = torch.optim.AdamW(
        [
            {"params": embedding, "weight_decay": settings.weight_decay / 5},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.vector_lr,
        betas=(0.9, 0.95),
        eps=1e-10,
    )
    optimizers = [*muons, adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def schedule(progress: float, settings: Settings) -> float:
    """Return the learning-rate factor when ``progress`` (0 to 1) of the time has passed."""
    if progress < settings.warmup:
        return max(progress / settings.warmup, 0.01)
    if progress < 1 - settings.decay:
        return 1.0
    return max((1 - progress) / settings.decay, 0.0)


def evaluate(
    model: LlamaForCausalLM,
    encoded: dict[str, EncodedKind],
    length: int,
    device: torch.device,
    pool: ThreadPoolExecutor,
) -> dict[str, dict[str, float]]:
    """Measure the loss on the held-out documents by kind, in windows that do not overlap."""
    head = head_weight(model).detach().to(torch.bfloat16)

    def measure(window: torch.Tensor) -> float:
        with torch.no_grad():
            window = window.to(device)
            hidden = hidden_states(model.model, window[None, :-1], device)
            logits = (hidden.to(torch.bfloat16) @ head.T).float()
            return float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))

    results = {}
    for kind, part in encoded.items():
        if not part.held_out:
            continue
        stream = torch.from_numpy(np.concatenate(part.held_out).astype(np.int64))
        count = len(stream) - 1
        total = sum(pool.map(measure, [stream[at : at + length + 1] for at in range(0, count, length)]))
        results[kind] = {
            "nats_per_token": round(total / count, 4),
            "bits_per_byte": round(total / math.log(2) / part.held_out_bytes, 4),
            "tokens": count,
            "documents": len(part.held_out),
        }
    return results


# ----------------------------------------------------------------------------------- checkpoints


@dataclass
class Progress:
    """How far the training has come; part of every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    epoch: int = 0
    index: int = 0


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the processor's memory."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@dataclass
class Workplace:
    """The folder of one run: tokenizer, checkpoint, logs and the prepared corpus."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    documents: list[Document]
    encoded: dict[str, EncodedKind]

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint's place."""
        return self.folder / "checkpoint.pt"


def prepare(folder: Path, documents: list[Document], vocab_size: int) -> Workplace:
    """Train the tokenizer, or load the one of an earlier start, and tokenize the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    place, mark = folder / "tokenizer", folder / "corpus.sha256"
    digest = fingerprint(documents)
    if (place / "tokenizer_config.json").exists() and mark.exists():
        if mark.read_text().strip() != digest:
            raise SystemExit(f"{folder} belongs to another corpus; give another --work folder")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    else:
        tokenizer = train_tokenizer((d.text for d in documents if not d.held_out), vocab_size)
        tokenizer.save_pretrained(place)
        mark.write_text(digest + "\n")
    encoded = encode_documents(documents, tokenizer)
    for kind, part in encoded.items():
        LOG.info(
            "%s: %d documents, %d tokens; held out %d documents, %d bytes",
            kind,
            len(part.train),
            sum(map(len, part.train)),
            len(part.held_out),
            part.held_out_bytes,
        )
    return Workplace(folder, tokenizer, documents, encoded)


# -------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Limits:
    """When to stop and how often to save, in seconds; ``steps`` ends a run early for tests."""

    total: float
    checkpoint: float = 180.0
    evaluation: float = 1200.0
    steps: int | None = None


def start_pool(device: torch.device, workers: int) -> ThreadPoolExecutor:
    """Start the worker threads, with one thread for each operation; one worker feeds a GPU."""
    torch.set_num_threads(1)
    count = workers if device.type == "cpu" else 1
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def train(work: Workplace, settings: Settings, limits: Limits, workers: int = 1) -> Progress:
    """Train from the newest checkpoint, or from the start, until the time is used up.

    On a processor every worker thread runs its own micro-batches, with one thread for each
    operation, and the gradients add up in the shared parameters.  This costs nothing when the
    machine is free; on a shared one it is many times faster than two threads in each operation,
    which wait for each other thousands of times in a step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = start_pool(device, workers)
    model = build_model(settings)
    progress = Progress()
    state = load_checkpoint(work.checkpoint) if work.checkpoint.exists() else None
    if state is not None:
        model.load_state_dict(state["model"])
        progress = Progress(**state["progress"])
        LOG.info("continuing at step %d, minute %.1f", progress.step, progress.seconds / 60)
    model.train()
    torch.nn.Module.to(model, device)
    optimizers = make_optimizers(model, settings)
    if state is not None:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    sampler = WindowSampler(work.encoded, settings.sequence_length, settings.seed, progress.epoch, progress.index)
    parameters = list(model.parameters())
    head = head_weight(model)
    micro = min(settings.micro_sequences, settings.sequences)
    pieces = settings.sequences // micro
    stop = False

    def backward(batch: torch.Tensor) -> float:
        batch = batch.to(device)
        hidden = hidden_states(model.model, batch[:, :-1], device)
        targets = batch[:, 1:].flatten()
        loss = ChunkedCrossEntropy.apply(hidden, head, targets, 256)  # type: ignore[no-untyped-call]
        (loss / pieces).backward()
        return float(loss.detach())

    def update(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ask_to_stop(number: int, frame: Any) -> None:
        nonlocal stop
        stop = True

    handlers = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}

    def save() -> None:
        progress.epoch, progress.index = sampler.epoch, sampler.index
        save_checkpoint(
            work.checkpoint,
            {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "progress": asdict(progress),
                "settings": asdict(settings),
                "hardware": hardware(device, workers),
            },
        )

    log_file = (work.folder / "log.jsonl").open("a", encoding="utf-8", buffering=1)
    earlier, started = progress.seconds, time.monotonic()
    last_save = last_log = last_eval = started
    loss_sum, loss_count, logged_tokens, steps_now = 0.0, 0, progress.tokens, 0
    try:
        while True:
            now = time.monotonic()
            progress.seconds = earlier + now - started
            if stop or progress.seconds >= limits.total:
                break
            if limits.steps is not None and steps_now >= limits.steps:
                break
            factor = schedule(progress.seconds / limits.total, settings)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
            batches = [sampler.take(micro) for _ in range(pieces)]
            losses = list(pool.map(backward, batches))
            loss_sum, loss_count = loss_sum + sum(losses), loss_count + pieces
            progress.tokens += pieces * micro * settings.sequence_length
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            list(pool.map(update, optimizers))
            progress.step, steps_now = progress.step + 1, steps_now + 1
            now = time.monotonic()
            progress.seconds = earlier + now - started
            if progress.step % 20 == 0 or now - last_log > 60:
                entry = {
                    "step": progress.step,
                    "minutes": round(progress.seconds / 60, 2),
                    "epoch": round(sampler.epoch + sampler.index / len(sampler.windows), 3),
                    "loss": round(loss_sum / loss_count, 4),
                    "lr_factor": round(factor, 4),
                    "grad_norm": round(float(norm), 3),
                    "tokens_per_second": round((progress.tokens - logged_tokens) / (now - last_log)),
                }
                LOG.info("%s", json.dumps(entry))
                log_file.write(json.dumps(entry) + "\n")
                loss_sum, loss_count, logged_tokens, last_log = 0.0, 0, progress.tokens, now
            if now - last_eval >= limits.evaluation:
                results = evaluate(model, work.encoded, settings.sequence_length, device, pool)
                LOG.info("held out: %s", json.dumps(results))
                log_file.write(json.dumps({"step": progress.step, "held_out": results}) + "\n")
                last_eval = last_log = time.monotonic()
                loss_sum, loss_count, logged_tokens = 0.0, 0, progress.tokens
            if now - last_save >= limits.checkpoint:
                save()
                last_save = time.monotonic()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        log_file.close()
        pool.shutdown()
    save()
    LOG.info("stopped at step %d, minute %.1f", progress.step, progress.seconds / 60)
    return progress


def hardware(device: torch.device, threads: int) -> str:
    """Name the machine that trains, for the model card."""
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text(errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = found.group(1).strip() if found else name
        name += " (AMX)" if "amx_bf16" in text else ""
    return f"{threads} CPU threads, {name}"


# ---------------------------------------------------------------------------------------- export


def export(work: Workplace, output: Path, workers: int = 1) -> dict[str, Any]:
    """Write the model folder from the newest checkpoint; measure what was written."""
    state = load_checkpoint(work.checkpoint)
    settings = Settings(**state["settings"])
    progress = Progress(**state["progress"])
    model = build_model(settings)
    model.load_state_dict(state["model"])
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    staging = work.folder / "export"
    shutil.rmtree(staging, ignore_errors=True)
    model.bfloat16().save_pretrained(staging, max_shard_size="14MB")
    work.tokenizer.save_pretrained(staging)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    written: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(staging, dtype=torch.float32)
    torch.nn.Module.to(written, device)
    with start_pool(device, workers) as pool:
        held_out = evaluate(written, work.encoded, settings.sequence_length, device, pool)
    weights = sorted(staging.glob("*.safetensors"))
    metrics: dict[str, Any] = {
        "parameters": sum(p.numel() for p in written.parameters()),
        "weight_bytes": sum(path.stat().st_size for path in weights),
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "tokens_seen": progress.tokens,
        "passes": round(progress.epoch + _epoch_part(work, settings, progress), 2),
        "hardware": state["hardware"],
        "settings": asdict(settings),
        "python": platform.python_version(),
        "corpus": {
            kind: {
                "documents": len(part.train),
                "tokens": sum(map(len, part.train)),
                "weight": KINDS[kind][2],
            }
            for kind, part in work.encoded.items()
        },
        "held_out": held_out,
    }
    (staging / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (staging / "README.md").write_text(model_card(metrics))
    output.mkdir(parents=True, exist_ok=True)
    for old in output.iterdir():
        if old.is_file():
            old.unlink()
    for path in sorted(staging.iterdir()):
        shutil.copyfile(path, output / path.name)
    LOG.info("wrote %s: %s", output, json.dumps(metrics["held_out"]))
    return metrics


def _epoch_part(work: Workplace, settings: Settings, progress: Progress) -> float:
    sampler = WindowSampler(work.encoded, settings.sequence_length, settings.seed, 0, 0)
    return progress.index / len(sampler.windows)


def model_card(metrics: dict[str, Any]) -> str:
    """Return the model card, every number of it taken from the metrics."""
    shape = metrics["settings"]
    corpus = "\n".join(
        f"| {kind} | {KINDS[kind][0]} | {KINDS[kind][1]} | {part['documents']:,} "
        f"| {part['tokens']:,} | {part['weight']}x |"
        for kind, part in metrics["corpus"].items()
    )
    held_out = "\n".join(
        f"| {kind} | {part['documents']} | {part['tokens']:,} | {part['nats_per_token']:.3f} "
        f"| {part['bits_per_byte']:.3f} |"
        for kind, part in metrics["held_out"].items()
    )
    return f"""---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, speculative-decoding, demo]
---

# hdraft demo model

A language model of {metrics["parameters"] / 1e6:.2f} million parameters, trained from scratch for
the demonstrations and tests of `hdraft`, so that they need no download.

## Intended use and limits

It is made to be *decoded*, not to be asked: it writes text with the regularities of real text
(code, documentation, worked problems, dialogs), which is what a drafting method needs to be
shown and tested on. It is far too small to be right. Its code may not run, its documentation
describes things that do not exist, and its sums are often wrong. It may repeat parts of
its small training text and knows only English and Python. Do not use it for answers, and do not
take speeds measured on it for speeds of a large model: a forward pass of a model this small costs
little, so there is less to save.

## Training text

| kind | source | licence | documents | tokens | weight |
| --- | --- | --- | ---: | ---: | ---: |
{corpus}

The weight is how often a document is seen in one pass. Of each kind about 2 % of the documents
(chosen by a hash of their text) were held out.

- GSM8K: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021; MIT licence,
  copyright (c) 2021 OpenAI. The calculator annotations were removed.
- Taskmaster-4: Google LLC; Creative Commons Attribution 4.0
  (https://creativecommons.org/licenses/by/4.0/). The turns were rewritten as
  `Customer:` and `Barista:` lines.
- The standard library (of Python {metrics["python"]}) and documentation of Python: copyright (c) 2001
  Python Software Foundation, all rights reserved; PSF License Agreement. Left out: tests, the
  character tables of `encodings`, generated files.

## Architecture

`LlamaForCausalLM`: hidden size {shape["hidden_size"]}, {shape["layers"]} layers, \
{shape["heads"]} attention heads with {shape["key_value_heads"]} key/value heads of \
{shape["head_dim"]}, SwiGLU of {shape["intermediate_size"]},
tied embeddings, rotary positions (theta 10000), stored as bfloat16 \
({metrics["weight_bytes"] / 1e6:.1f} MB).
`max_position_embeddings` is {shape["positions"]:,}, but the model was trained on
{shape["sequence_length"]:,} tokens at a time: longer texts are outside what it has seen.
The tokenizer is a byte-level BPE of {shape["vocab_size"]:,} entries that gives every text back
exactly and adds no tokens. A document ends with `{END_OF_TEXT}`.

## Training

{metrics["steps"]:,} steps of {shape["sequences"]} x {shape["sequence_length"]:,} tokens, \
{metrics["tokens_seen"] / 1e6:.1f} million tokens in all
({metrics["passes"]:.1f} passes), in {metrics["minutes"]:.0f} minutes on {metrics["hardware"]}.
Muon (learning rate {shape["matrix_lr"]}) for the layers' matrices, AdamW ({shape["vector_lr"]}) for
the rest, weight decay {shape["weight_decay"]}, bfloat16 arithmetic with float32 weights; the rate
is constant and falls to zero over the last {shape["decay"]:.0%} of the time.

## Loss on held-out documents

Measured on the exported weights.

| kind | documents | tokens | nats/token | bits/byte |
| --- | ---: | ---: | ---: | ---: |
{held_out}

Made by `tools/train_demo_model.py`; the numbers are those of `metrics.json`.
"""


# --------------------------------------------------------------------------------------- prompts


def cut_code(text: str, rng: random.Random) -> str | None:
    """Return the lines up to the head of a random function, with its docstring's first line."""
    lines = text.splitlines(keepends=True)
    heads = [i for i, line in enumerate(lines) if re.match(r"\s*(async )?def \w+\(.*:\s*$", line)]
    if not heads:
        return None
    head = rng.choice(heads)
    end = head + 1
    if end < len(lines) and '"""' in lines[end] and rng.random() < 0.7:
        end += 1
    start = max(0, head - rng.randint(0, 30))
    while start < head and lines[start][:1].isspace():
        start += 1
    if start == head and lines[head][:1].isspace():  # keep some of the class around a method
        start = max(0, head - rng.randint(3, 30))
    return "".join(lines[start:end])


def cut_documentation(text: str, rng: random.Random) -> str | None:
    """Return up to three paragraphs, the last one broken off in its first words."""
    paragraphs = re.split(r"(?<=\n)\n+", text)
    good = [i for i, p in enumerate(paragraphs) if len(p.split()) >= 20]
    if not good:
        return None
    last = rng.choice(good)
    before = paragraphs[max(0, last - rng.randint(0, 2)) : last]
    words = list(re.finditer(r"\S+", paragraphs[last]))
    cut = words[rng.randint(4, min(14, len(words) - 1))].end()
    return "\n".join([*before, paragraphs[last][:cut]])


def cut_problem(text: str, rng: random.Random) -> str | None:
    """Return the question."""
    del rng
    return text[: text.index("\nAnswer:")] + "\nAnswer:"


def cut_order(text: str, rng: random.Random) -> str | None:
    """Return a dialog's start, up to one of the barista's turns."""
    places = [m.end() for m in re.finditer(r"\nBarista:", text)][:3]
    return text[: rng.choice(places)] if places else None


CUTTERS: dict[str, tuple[float, Callable[[str, random.Random], str | None]]] = {
    "code": (0.40, cut_code),
    "documentation": (0.20, cut_documentation),
    "word problem": (0.25, cut_problem),
    "coffee order": (0.15, cut_order),
}


def make_prompts(documents: list[Document], count: int, seed: int) -> list[dict[str, str]]:
    """Cut prompts from training documents, without repetitions and in a mixed order."""
    rng = random.Random(seed)
    prompts: dict[str, str] = {}
    for kind, (share, cut) in CUTTERS.items():
        texts = [d.text for d in documents if d.kind == kind and not d.held_out]
        # Long documents give more prompts, else every page of one paragraph counts as a book.
        weights = [len(text) for text in texts]
        wanted, tries = len(prompts) + round(count * share), 0
        while texts and len(prompts) < wanted and tries < 20 * count:
            tries += 1
            prompt = cut(rng.choices(texts, weights)[0], rng)
            if prompt and len(prompt) <= 3000:
                prompts.setdefault(prompt, kind)
    rows = [{"prompt": prompt, "kind": kind} for prompt, kind in prompts.items()]
    rng.shuffle(rows)
    return rows


def write_prompts(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write prompts as JSON Lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------ main


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--docs", type=Path, required=True, help="folder of Python's *.rst.txt")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo_model")
    parser.add_argument("--output", type=Path, default=ROOT / "src" / "hdraft" / "demo" / "model")
    parser.add_argument("--minutes", type=float, default=80.0, help="training time, all starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-sequences", type=int, default=Settings.micro_sequences)
    parser.add_argument("--steps", type=int, help="stop (and checkpoint) after so many steps")
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--write-prompts", type=int, metavar="N")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(micro_sequences=options.micro_sequences)
    documents = load_documents(options.corpus, options.docs)
    if options.write_prompts:
        rows = make_prompts(documents, options.write_prompts, settings.seed)
        options.work.mkdir(parents=True, exist_ok=True)
        write_prompts(options.work / "generation_prompts.jsonl", rows)
        LOG.info("wrote %d prompts", len(rows))
        return
    work = prepare(options.work, documents, settings.vocab_size)
    if not options.export_only:
        limits = Limits(total=options.minutes * 60, steps=options.steps)
        progress = train(work, settings, limits, options.threads)
        if progress.seconds < limits.total:
            return  # stopped on request; the same command continues
    export(work, options.output, options.threads)


if __name__ == "__main__":
    main()
