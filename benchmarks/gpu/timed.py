"""Replay recorded requests through a real model: the time of every step, and of each of its parts.

The model does all the work of decoding: the prompt, drafting, the forward pass over the tree, reading its logits,
moving the cache. Only the choice of the next token is the recorded one instead of that of the logits. What a step takes
does not depend on the values of the weights, so random ones take the time of those that are not at hand.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from timing import PARTS, Seconds, Timing
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from hdraft.decoding.graphed.static_step import StepKind, default_step
from hdraft.decoding.loop import draft_and_verify
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.request import DecodingRequest
from hdraft.decoding.stats import GenerationStats
from hdraft.decoding.target import LONG_TEXT, Target
from hdraft.decoding.verification import Argmax
from hdraft.drafting import Drafter, DraftSession, DraftTree
from hdraft.drafting.costs import Costs
from hdraft.drafting.drafter import UNLIMITED, TokenIds
from hdraft.evaluation.traces import Request


class Recorded(Argmax):
    """Reads the logits as greedy decoding does, then takes the recorded token."""

    def __init__(self, input_ids: Tensor, output_ids: npt.NDArray[np.integer]) -> None:
        super().__init__(input_ids, frozenset(), input_ids.shape[1] + len(output_ids))
        self.recorded: list[int] = output_ids.tolist()

    def next_token(self, row: int) -> int:
        """See `Choice.next_token`."""
        super().next_token(row)
        self.tokens[-1] = self.recorded[len(self.tokens) - 1]
        return self.tokens[-1]


def time_decoding(
    model: PreTrainedModel,
    request: Request,
    drafter: Drafter | None,
    budget: int = 64,
    costs: Seconds | None = None,
    step: StepKind | None = None,
) -> Timing:
    """Decode a recorded request with our loop; `drafter` None is ordinary decoding.

    Args:
        model: the target; its vocabulary holds the request's ids.
        request: what is emitted is its `output_ids`, all of them.
        drafter, budget, costs, step: as `hdraft.generate` takes them.
    """
    choice = Recorded(_prompt(model, request), request.output_ids)
    length = len(request.prompt_ids) + len(request.output_ids)
    statistics = GenerationStats()
    drafted, marks, parts = [0], [_now(model)], [_parts(statistics)]
    emitted: list[int] = []
    kind: StepKind = "dynamic"
    step = default_step(model) if step is None else step
    target = Target(model, draft_shape(model), step=step, budget=budget, max_length=length)
    asked = DecodingRequest(drafter, budget, costs, step, statistics)
    for each in draft_and_verify(target, choice, asked):
        marks.append(perf_counter())
        parts.append(_parts(statistics))
        drafted.append(statistics.drafted)
        emitted.append(len(each.tokens))
        kind = target.kind
    marks[-1], parts[-1] = _now(model), _parts(statistics)
    assert choice.tokens == choice.recorded
    return Timing(np.array(emitted), np.diff(drafted), np.diff(marks), np.diff(parts, axis=0), kind)


def time_generate(model: PreTrainedModel, request: Request, **options: Any) -> Timing:
    """Let `model.generate` emit as many tokens, greedily. They are the model's own: time does not depend on them."""
    prompt, tokens = _prompt(model, request), len(request.output_ids)
    clock = _Clock(model)
    start = _now(model)
    output = cast(Any, model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        logits_processor=[clock],
        **options,
    )
    marks = [start, *clock.marks[:-1], _now(model)] if tokens > 1 else [start, _now(model)]
    assert output.shape[1] - prompt.shape[1] == tokens == len(clock.marks)
    return Timing(np.ones(tokens, np.int64), np.zeros(tokens, np.int64), np.diff(marks))


class _Clock(LogitsProcessor):
    """Notes when each step's logits have been asked for: of the first, when they are there."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.marks: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.marks.append(perf_counter() if self.marks else _now(self.model))
        return scores


class AskedAsDecoding:
    """Asks a drafter for drafts only when decoding does: not behind too long a prompt, nor for the last token."""

    def __init__(self, drafter: Drafter, most_text: int = LONG_TEXT) -> None:
        self.drafter, self.most_text = drafter, most_text
        self.vocab_size = drafter.vocab_size

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> DraftSession:
        """See `Drafter.session`."""
        return _SessionAskedAsDecoding(self.drafter.session(prompt_ids, costs), len(prompt_ids) > self.most_text)


class _SessionAskedAsDecoding:
    def __init__(self, session: DraftSession, waits: bool) -> None:
        self.session = session
        self.extend, self.close = session.extend, session.close
        self.waits = waits

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        waits, self.waits = self.waits, False
        return DraftTree.empty() if waits or max_depth < 1 else self.session.propose(budget, max_depth)


class FixedSizeDrafter:
    """Drafts the same `size` tokens side by side, none of which is ever right: to time steps of one size."""

    def __init__(self, vocab_size: int, size: int) -> None:
        self.vocab_size = vocab_size
        self.tree = DraftTree(np.arange(size), np.full(size, -1))
        self.tree.check(vocab_size, size, 1)  # compiled now, if need be: a request would go without drafts

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> "FixedSizeDrafter":
        """See `Drafter.session`."""
        return self

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """See `DraftSession.propose`."""
        return self.tree

    def extend(self, token_ids: TokenIds, ngrams: Any = None, candidates: Any = None) -> None:
        """See `DraftSession.extend`."""

    def close(self) -> None:
        """See `DraftSession.close`."""


def time_sizes(
    model: PreTrainedModel,
    sizes: tuple[int, ...],
    cached: int,
    steps: int = 8,
    rounds: int = 5,
    step: StepKind | None = None,
) -> dict[int, tuple[Seconds, Seconds]]:
    """Time steps that verify so many draft tokens behind `cached` tokens of text and the few after them.

    Sizes take turns, round by round.

    Returns:
        For each size: float64[rounds * steps], the seconds of each step, and float64[rounds * steps, 5], its parts.
    """
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    random = np.random.default_rng(0)
    prompt = random.integers(max(sizes) + 1, vocab_size, cached, np.int32)
    output = np.full(steps + 2, vocab_size - 1, np.int32)  # no draft in the last step
    request = Request("", "", prompt, output)
    timings: dict[int, list[Timing]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            drafter = FixedSizeDrafter(vocab_size, size) if size else None
            timings[size].append(time_decoding(model, request, drafter, max(sizes), step=step))
    assert all(each.drafted[1:-1].tolist() == [size] * steps for size in sizes for each in timings[size])
    return {
        size: (
            np.concatenate([each.seconds[1:-1] for each in own]),
            np.concatenate([cast(Seconds, each.parts)[1:-1] for each in own]),
        )
        for size, own in timings.items()
    }


def _prompt(model: PreTrainedModel, request: Request) -> Tensor:
    return torch.from_numpy(request.prompt_ids.astype(np.int64))[None].to(model.device)


def _now(model: PreTrainedModel) -> float:
    """The time, once the device has done all that it was asked."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter()


def _parts(statistics: GenerationStats) -> list[float]:
    return [getattr(statistics, f"seconds_{part}") for part in PARTS]


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
