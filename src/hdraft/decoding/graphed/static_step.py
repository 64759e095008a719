"""A decoding step that is the same program every time: same buffers, same addresses, one of a few shapes.

A model in eager PyTorch spends most of a step on launching its many small kernels. Here a step is padded to one of a
few numbers of rows, what changes is copied into one buffer, and all else that is read and written stays where it is. So
a step can be captured as a CUDA graph, which one launch replays, and compiled once for texts of any length:

    rows    | last token | the tree's nodes | padding |     1, 4, 8, 16, 32, 48, 64 and further multiples of 16
    slots   | the text so far | rows | not used yet   |     a bucket of the cache, see `static_cache`

Padding looks at the last token alone, and no row looks at padding.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from time import perf_counter
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes
from transformers import PreTrainedModel

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.graphed.capture import (
    Program,
    ReadBack,
    StreamEvent,
    capture,
    compiled,
    graph_pool,
    without_cudnn_attention,
)
from hdraft.decoding.graphed.fused import Views, can_fuse, fused_forward
from hdraft.decoding.graphed.model_state import State, model_state
from hdraft.decoding.graphed.static_cache import Layout, StaticCache, StaticLayer, bucket
from hdraft.decoding.likeliest import likeliest, most_likely
from hdraft.decoding.logs import in_short, logger, say_once
from hdraft.decoding.masks import Span, padded_rows
from hdraft.decoding.models.compiling import is_compiled
from hdraft.decoding.models.experts import decoding_kernels, most_rows
from hdraft.decoding.models.names import cache_argument
from hdraft.decoding.models.support import apart, tolerance
from hdraft.drafting.tree import DraftTree

if TYPE_CHECKING:
    from hdraft.decoding.graphed.text_reader import TextReader

StepKind = Literal["compiled", "captured", "static", "dynamic", "exact"]
"""How a decoding step is run: a static step compiled by torch and captured as a CUDA graph; captured alone; run one
operation after the other; or a step whose cache and inputs grow. Where one does not work, the next is taken.

An exact step is captured, has `EXACT_ROWS` rows with drafts and without, and gives a row the same logits, to the bit,
however it was drafted. Nothing takes its place."""

ROWS = (1, 4, 8, 16, 32)
"""The numbers of rows that a step is padded to, by the tiles of matrix products; beyond are multiples of 16."""

EXACT_ROWS = 64
"""The rows of every exact step: a matrix product of another shape may be added up in another order."""

PROGRAMS = 128
"""The most programs, and graphs, kept for a sequence; of more, the one not used for longest is dropped."""

MOVED = 8
"""The most accepted nodes that a step moves to their slots before it begins; longer paths are moved by themselves."""

TOKENS, BUDGET = 2048, 64
"""Buffers are made for at least so many tokens of a sequence, and draft tokens of a step: larger ones, new graphs."""


def default_step(model: PreTrainedModel) -> StepKind:
    """How steps are run by default: "captured" on a GPU, where launching small kernels costs; elsewhere "dynamic".

    Compiled steps are faster still, but compiling takes minutes, for which the user should have asked. A model that the
    user has compiled takes "static" ones, which have few shapes.
    """
    if model.device.type == "cuda":
        return "captured"
    return "static" if is_compiled(model) else "dynamic"


def padded(rows: int) -> int:
    """The number of rows that so many are padded to."""
    return next((size for size in ROWS if rows <= size), -(-rows // 16) * 16)


def step_rows(rows: int, kind: StepKind) -> int:
    """The rows of a static step over so many, at most `EXACT_ROWS` where steps are exact."""
    return EXACT_ROWS if kind == "exact" else padded(rows)


def static_budget(budget: int, kind: StepKind) -> int:
    """The draft tokens of a static step, of so many: no tile of sixteen rows is there for its last draft token alone.

    >>> [static_budget(budget, "captured") for budget in (0, 63, 64, 100)], static_budget(100, "exact")
    ([0, 63, 63, 100], 63)
    """
    if kind == "exact":
        return min(budget, EXACT_ROWS - 1)
    return budget - 1 if budget and budget % 16 == 0 else budget


class Inputs(NamedTuple):
    """The inputs that change from step to step: views of one buffer, which one copy takes to the device."""

    buffer: Any
    length: Any  # int64[1], tokens before the step
    starts: Any  # int64[layouts], the slot of the step's first row
    moves: Any  # int64[2, MOVED], slots to be copied from and to before, counted from there
    first_asked: Any  # int64[1], the first row whose logits are asked for: of a step, row 0
    tokens: Any  # int64[rows]
    positions: Any  # int64[rows]
    earliest: Any  # int64[masks, rows], see `padded_rows` …
    among: Any  # bool[masks, rows * rows]; a step of fewer rows uses the first of each


def _inputs(buffer: Any, numbers: Any, flags: Any, rows: int, masks: int, layouts: int) -> Inputs:
    begin = 2 + layouts + 2 * MOVED
    end = begin + 2 * rows
    return Inputs(
        buffer,
        length=numbers[:1],
        starts=numbers[1 : 1 + layouts],
        moves=numbers[1 + layouts : begin - 1].reshape(2, MOVED),
        first_asked=numbers[begin - 1 : begin],
        tokens=numbers[begin : begin + rows],
        positions=numbers[begin + rows : end],
        earliest=numbers[end:].reshape(masks, rows),
        among=flags.reshape(masks, rows * rows),
    )


class StaticStepper:
    """Runs the static steps of a model, over the one sequence that is in its buffers.

    Attributes:
        capacity: the most tokens of a sequence, an unverified tree's included.
        rows: the most rows of a step.
        fused: whether steps run `fused_forward` in the place of the model's own.
        reader: prepares passes over text of many tokens, see `TextReader`; None until there has been one.
    """

    program: Program
    logits: Tensor | None = None
    best: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        growing: GrowingCache,
        spans: dict[str, Span] | Span,
        capacity: int,
        rows: int,
        kind: StepKind,
        state: State,
    ) -> None:
        """Take the memory for a sequence.

        Args:
            model: the target.
            growing: a cache of the model that holds text, so that shapes are known.
            spans: how far back layers look, see `layer_spans`.
            capacity, rows: see above.
            kind: not "dynamic".
            state: the model's.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        self.model = ref(model)
        self.device = model.device
        self.cache_name = cache_argument(model)
        self.state = state
        self.spans = _by_type(spans)
        self.capacity, self.rows = bucket(max(capacity, TOKENS)), padded(max(rows, 1 + BUDGET))
        self.kind = kind
        self.fused = kind == "exact" or (kind != "compiled" and _unfused.get(model) != state and can_fuse(model))
        self.reader: TextReader | None = None
        self.most_rows = most_rows(model)
        self.cache = StaticCache(growing, self.capacity, self.rows)
        self.programs: OrderedDict[tuple[int, ...], Program] = OrderedDict()
        self.selections: dict[int, Program] = {}  # by rows, of `likeliest`, which not every drafter asks for …
        self.selected: dict[int, tuple[Tensor, Tensor]] = {}  # … and what they have found
        self.queues = self.device.type == "cuda"  # the host goes on while what it has asked for is done
        self.read_best, self.read_selected = ReadBack(self.device), ReadBack(self.device)
        self.kept: tuple[int, list[int]] | None = None  # a path that is still to be moved, and what it begins behind
        self.pool = graph_pool(self.device)
        self.copied, self.queued = StreamEvent(self.device), StreamEvent(self.device)
        self.host, self.there = self.make_inputs(self.rows)

    @torch.inference_mode(False)
    def make_inputs(self, rows: int) -> tuple[Inputs, Inputs]:
        """Buffers for the inputs of steps of up to so many rows: the host's, in NumPy's arrays, and the device's."""
        layouts, masks = len(self.cache.layouts), len(self.spans)
        split = 8 * (2 + layouts + 2 * MOVED + (2 + masks) * rows)
        size = split + masks * rows**2
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        there = torch.zeros(size, dtype=torch.uint8, device=self.device)
        array, shape = host.numpy(), (rows, masks, layouts)
        return (
            _inputs(host, array[:split].view(np.int64), array[split:].view(np.bool_), *shape),
            _inputs(there, there[:split].view(torch.int64), there[split:].view(torch.bool), *shape),
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, growing: GrowingCache, padding: int) -> None:
        """Take in the text so far, of which the first `padding` tokens are never looked at."""
        self.cache.load(growing)
        self.padding, self.kept = padding, None

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, text: npt.NDArray[np.int64], tree: DraftTree, length: int, position: int) -> float:
        """Take in the inputs of a step, for `run`.

        Args:
            text: int64[1], what follows the `length` tokens that the cache holds.
            tree: fewer nodes than `rows`.
            position: the token's, as the model counts.

        Returns:
            The seconds that it took to compile and capture what had not been met before.
        """
        rows = step_rows(1 + len(tree), self.kind)
        if self.kept and (rows == 1 or len(self.kept[1]) > MOVED or self.cache.crowded(length, rows)):
            self.settle()
        columns = self.cache.prepare(length, rows)
        self.copied.wait()  # mostly over already: whoever has read the last step's logits has waited for more
        self.fill(self.host, rows, int(text[0]), tree, length, position)
        self.host.moves[:] = 0
        if self.kept:
            start, path = self.kept
            self.host.moves[:, : len(path)] = path, range(len(path))
            self.host.moves[:, : len(path)] += start - length
        self.there.buffer.copy_(self.host.buffer, non_blocking=True)
        self.copied.record()
        if (program := self.programs.get(self._key(rows, columns))) is not None:
            self.programs.move_to_end(self._key(rows, columns))
            return self.take(program, 1 + len(tree))
        began = perf_counter()
        if len(self.programs) == PROGRAMS:
            self.programs.popitem(last=False)
        program = self._program(rows, columns)
        self.programs[self._key(rows, columns)] = program
        self.take(program, 1 + len(tree))
        return perf_counter() - began

    def take(self, program: Program, rows: int) -> float:
        """Take in what `run` is to run, and of how many rows logits are asked for; the seconds of a first such time."""
        self.program, self.taken = program, rows
        if padded(rows) in self.selections:
            return 0.0
        began = perf_counter()
        self.selections[padded(rows)] = self._selection(padded(rows))
        return perf_counter() - began

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, select: bool = False) -> Tensor:
        """Run the step: float[1 + n, vocabulary], the logits after the token and each node, until the next step.

        With `select`, `likeliest` will be asked for.
        """
        self.program()
        self.kept = None
        self.read_selected.drop()
        if self.queues:
            self.read_best.begin(self.best[: self.taken])
            if select:
                with suppress(Exception):  # raised again where they are asked for: there it costs drafts, here the text
                    self._begin_selection()
        return self.logits_of(self.taken)

    def most_likely(self, logits: Tensor, rows: slice) -> list[int]:
        """The most likely token of each of those rows of the step just run; waits for it."""
        if not self.queues:
            return most_likely(logits[rows])
        tokens: list[int] = self.read_best.wait()[0][rows].tolist()
        return tokens

    def likeliest(self, logits: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The likeliest tokens of each row of the step just run, see `likeliest`; waits for them."""
        if not self.read_selected.begun:
            self._begin_selection()
        tokens, scores = self.read_selected.wait()
        return tokens, scores

    @torch.inference_mode(False)
    @torch.no_grad()
    def _begin_selection(self) -> None:
        rows = padded(self.taken)
        self.selections[rows]()
        self.read_selected.begin(*(each[: self.taken] for each in self.selected[rows]))

    def keep(self, length: int, path: list[int]) -> None:
        """Keep the first `length` tokens and, of the tree just forwarded, the nodes on `path`.

        They are moved to the slots behind those by the next step, or by `settle`.
        """
        if path and path[-1] != len(path) - 1:
            self.kept = length, path

    @torch.inference_mode(False)
    @torch.no_grad()
    def settle(self) -> None:
        """Move what was kept to its slots now."""
        if self.kept:
            self.cache.keep(*self.kept)
            self.kept = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def end(self, growing: GrowingCache, length: int, copy: bool = True) -> None:
        """Give the text, of `length` tokens, back: a copy of it, or with the buffers that it is in."""
        self.settle()
        self.cache.store(growing, length, copy)

    def drop(self) -> None:
        """Let go of graphs and buffers now; by itself the collector would have to find them. Of no more use then."""
        self.queued.wait()
        self.__dict__.clear()

    def fits(self, length: int, rows: int) -> bool:
        """Whether a step of so many rows behind `length` tokens fits."""
        padded_to = step_rows(rows, self.kind)
        return rows <= padded_to <= self.rows and self.cache.fits(length, padded_to)

    def fill(self, inputs: Inputs, rows: int, token: int, tree: DraftTree, length: int, position: int) -> None:
        """Fill in the host's inputs of a step over a token and the tree behind it, padded to so many rows."""
        n = len(tree)
        inputs.length[0] = length
        inputs.tokens[:rows] = token
        inputs.tokens[1 : 1 + n] = tree.tokens
        inputs.positions[:rows] = position
        inputs.positions[1 : 1 + n] += tree.depths
        inputs.starts[:] = [length - layout.dropped for layout in self.cache.layouts.values()]
        for earliest, among, span in zip(inputs.earliest, inputs.among, self.spans.values(), strict=True):
            dropped = self.cache.layouts[span.window].dropped
            square = among[: rows * rows].reshape(rows, rows)
            padded_rows(earliest[:rows], square, length, dropped, tree, span, self.padding)

    def _key(self, rows: int, columns: tuple[int, ...]) -> tuple[int, ...]:
        """What a program is for; a fused one reads the length of its text from a buffer, and is for all lengths."""
        return (rows,) if self.fused else (rows, *columns)

    def _program(self, rows: int, columns: tuple[int, ...]) -> Program:
        """The step for such inputs, as far as it can be compiled and captured; tried on the inputs that are there."""
        eager = partial(self._run, self.unfused, rows, columns)
        fused = partial(fused_forward, ordered=True) if self.kind == "exact" else fused_forward
        eager()
        self.there.moves.zero_()  # they are done, and the step will be run again
        if self.kind == "compiled" and not self.programs:
            name = type(self.model()).__name__
            say_once(f'{name}: compiling its step, which takes seconds to minutes; step="captured" does without')
        while self.fused or self.kind != "static":
            expected = self.logits_of(rows).clone()
            try:
                unfused = partial(self._masked, self._compiled) if self.kind == "compiled" else self.unfused
                run = partial(self._run, fused if self.fused else unfused, rows, columns)
                run()  # what is compiled is compiled before it is captured
                program = run if self.kind == "static" else capture(run, self.device, self.pool)
                program()
                if (far := difference(self.logits_of(rows), expected)) is not None:
                    reason = f"logits differ by {far:.1g} of their spread"
                elif self.kind == "exact" and not self._is_exact(program, rows):
                    reason = "a token comes to other logits in a draft than in text"
                else:
                    return program
            except torch.OutOfMemoryError:
                self.pool = graph_pool(self.device)
                if self.kind == "exact":
                    raise
                say_once(f"{type(self.model()).__name__}: no memory to have all steps {self.kind}: some are static")
                break
            except Exception as error:  # whatever compilation and capture may raise means that they do not work
                reason = in_short(error)
            self._fall_back(reason)
            eager()
        return eager

    def _is_exact(self, program: Program, rows: int) -> bool:
        """Whether a token comes to the same bits in a draft and, in every row, behind text; runs the step after that.

        Before it in the draft are as many tokens as a block of `ordered_attention` has, so that it is in another block.
        """
        inputs, last, every = self.there, rows // 2, slice(rows)
        square, ones = slice(rows * rows), torch.ones((rows, rows), dtype=torch.bool, device=self.device)
        inputs.tokens[every] = inputs.tokens[0].clone()
        inputs.positions[every] = inputs.positions[0] + torch.arange(rows, device=self.device)
        inputs.earliest[:, every] = inputs.earliest[:, :1].clone()
        inputs.among[:, square] = ones.tril().flatten()
        program()
        drafted = self.logits_of(rows)[last].clone()
        inputs.length.add_(last)
        inputs.starts.add_(last)
        inputs.positions[every] = inputs.positions[last].clone()
        inputs.among[:, square] = (ones.tril() & ones.triu()).flatten()
        program()
        same = torch.equal(self.logits_of(rows), drafted.expand(rows, -1))
        inputs.buffer.copy_(self.host.buffer)
        inputs.moves.zero_()
        program()
        return same

    def _selection(self, rows: int) -> Program:
        """`_select` for so many rows, captured where steps are."""
        select = partial(self._select, rows)
        try:
            select()
            return select if self.kind == "static" else capture(select, self.device, self.pool)
        except Exception as error:  # where drafts ask for it, it costs them, and here it would cost the text
            self.pool = graph_pool(self.device)
            logger.warning("likeliest tokens of %d rows are not captured: %s: %s", rows, type(error).__name__, error)
            return select

    def _select(self, rows: int) -> None:
        self.selected[rows] = likeliest(self.logits_of(rows))

    def _fall_back(self, reason: str) -> None:
        model = cast(PreTrainedModel, self.model())
        if self.kind == "exact":
            self.pool = graph_pool(self.device)
            raise RuntimeError(f"{type(model).__name__}: no exact steps here, take another kind: {reason}")
        if self.fused:
            self.fused, _unfused[model] = False, self.state
            self.pool = graph_pool(self.device)
            logger.warning("%s: layers are run by transformers and not fused: %s", type(model).__name__, reason)
            return
        failed, (then, others) = self.kind, _failed.get(model, (self.state, set[StepKind]()))
        _failed[model] = self.state, {*others, failed} if then == self.state else {failed}
        self.kind = _best(model, self.state, failed)
        self.pool = graph_pool(self.device)
        logger.warning("%s: steps are %s and not %s: %s", type(model).__name__, self.kind, failed, reason)

    def logits_of(self, rows: int) -> Tensor:
        """Of the last pass, those of the first rows that were asked for."""
        return cast(Tensor, self.logits)[:rows]

    def _run(self, forward: Callable[..., Tensor], rows: int, columns: tuple[int, ...]) -> None:
        self.hold(self.forward(forward, self.there, rows, columns))

    def hold(self, logits: Tensor) -> None:
        """Write float[rows, vocabulary] to where `run` and what comes after it look for them."""
        rows = len(logits)
        if self.logits is None:
            self.best = torch.empty(self.rows, dtype=torch.int64, device=logits.device)
            self.logits = logits.new_empty((self.rows, logits.shape[-1]))
        self.logits_of(rows).copy_(logits)
        if self.queues:  # on a CPU torch's is slow
            torch.argmax(self.logits_of(rows), -1, out=self.best[:rows])

    def forward(self, forward: Callable[..., Tensor], inputs: Inputs, rows: int, columns: tuple[int, ...]) -> Tensor:
        """The logits of a step, by `fused_forward` or in its place; for `columns` see `StaticCache.prepare`."""
        for start, layout, width in zip(inputs.starts, self.cache.layouts.values(), columns, strict=True):
            layout.slots = layout.numbers[:rows] + start
            layout.ramp = layout.numbers[:width]
            layout.start = start
            layout.length = inputs.length
        if rows > 1:
            self.cache.move(inputs.moves, inputs.starts)
            self.kept = None  # whatever befalls the rest of the step, they are not to be moved again
        views = {
            layer_type: (earliest[:rows], among[: rows * rows].view(rows, rows))
            for layer_type, earliest, among in zip(self.spans, inputs.earliest, inputs.among, strict=True)
        }
        model = cast(PreTrainedModel, self.model())
        kernels = decoding_kernels(model) if rows <= self.most_rows else nullcontext()
        with kernels, torch.cuda.device_of(inputs.tokens):  # type: ignore[no-untyped-call]  # Triton's is the current one
            return forward(model, self.cache, inputs.tokens[:rows], inputs.positions[:rows], views)

    def unfused(
        self,
        model: PreTrainedModel,
        cache: StaticCache,
        ids: Tensor,
        positions: Tensor,
        views: Views,
        asked: Tensor | None = None,
    ) -> Tensor:
        """What `fused_forward` does, by the model's own layers."""
        logits = self._masked(_forward, model, cache, ids, positions, views)
        return logits if asked is None else logits[asked]

    def _masked(
        self,
        forward: Callable[..., Tensor],
        model: PreTrainedModel,
        cache: StaticCache,
        ids: Tensor,
        positions: Tensor,
        views: Views,
    ) -> Tensor:
        """By a forward of the model's own layers, which take masks."""
        masks = {
            layer_type: self._mask(self.cache.layouts[span.window], *views[layer_type])
            for layer_type, span in self.spans.items()
        }
        with without_cudnn_attention(self.device):
            return forward(model, self.cache_name, cache, ids[None], positions[None], masks.get("", masks))[0]

    def _mask(self, layout: Layout, earliest: Tensor, among: Tensor) -> Tensor:
        mask = (layout.ramp >= earliest[:, None]) & (layout.ramp < layout.start)
        mask = mask.index_copy_(1, layout.slots, among)[None, None]
        # to be added: every layer would have to make that of a boolean one; of the keys' number format, as SDPA asks
        zeros = torch.zeros(mask.shape, dtype=layout.buffers[0].dtype, device=mask.device)
        return zeros.masked_fill_(~mask, torch.finfo(zeros.dtype).min)

    def _compiled(
        self, model: PreTrainedModel, cache_name: str, cache: StaticCache, ids: Tensor, positions: Tensor, mask: Any
    ) -> Tensor:
        """As `_forward`; compiled twice, for one row and for more, and with that for all sizes and lengths."""
        masks = mask.values() if isinstance(mask, dict) else (mask,)
        varying = [(ids, 1), (positions, 1), *((each, 2) for each in masks), *((each, 3) for each in masks)]
        for layout in cache.layouts.values():
            varying += [(layout.slots, 0), (layout.ramp, 0)]
        for layer in cache.layers:
            if isinstance(layer, StaticLayer):
                varying += [(layer.keys, 2), (layer.values, 2)]
        for tensor, dimension in varying:
            if tensor.shape[dimension] > 1:
                torch._dynamo.mark_dynamic(tensor, dimension)
        with _lock:
            if model not in _compiled:
                _compiled[model] = compiled(cast(FunctionType, _forward), self.device)
        # sizes that are equal now need not be so later
        with symbolic_shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return _compiled[model](model, cache_name, cache, ids, positions, mask)


def _forward(
    model: PreTrainedModel, cache_name: str, cache: StaticCache, ids: Tensor, positions: Tensor, mask: Any
) -> Tensor:
    inputs = {cache_name: cache, "input_ids": ids, "position_ids": positions, "attention_mask": mask}
    logits: Tensor = model(**inputs, use_cache=True, return_dict=True).logits
    return logits


def difference(logits: Tensor, expected: Tensor) -> float | None:
    """How far logits are `apart` from what they should be; None if no further than rounding goes."""
    far = apart(logits, expected)
    return None if far < tolerance(expected.dtype) else far


# One idle stepper a model, so that a request finds the memory, the graphs and the compiled code of the one before. A
# request that begins while another runs makes its own.
_idle: WeakKeyDictionary[PreTrainedModel, StaticStepper] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[PreTrainedModel, Callable[..., Tensor]] = WeakKeyDictionary()
_failed: WeakKeyDictionary[PreTrainedModel, tuple[State, set[StepKind]]] = WeakKeyDictionary()
_unfused: WeakKeyDictionary[PreTrainedModel, State] = WeakKeyDictionary()
_lock = threading.Lock()


def acquire(
    model: PreTrainedModel,
    growing: GrowingCache,
    spans: dict[str, Span] | Span,
    capacity: int,
    rows: int,
    kind: StepKind,
    make: bool = True,
) -> StaticStepper | None:
    """The idle stepper of a model if it will do, else a new one if it may be made; for the others see `StaticStepper`.

    It will not do if the model has changed since: graphs hold addresses and what was true when they were captured.
    """
    with _lock:
        idle = _idle.pop(model, None)
    state = model_state(model)
    kind = _best(model, state, kind)
    if idle is not None:
        wanted = (kind, _by_type(spans), state)
        if (idle.kind, idle.spans, idle.state) == wanted and idle.capacity >= capacity and idle.rows >= rows:
            idle.queued.follow()
            return idle
        idle.drop()
    return StaticStepper(model, growing, spans, capacity, rows, kind, state) if make else None


def release(stepper: StaticStepper) -> None:
    """Leave a stepper to the next request."""
    model = stepper.model()
    if model is not None:
        stepper.queued.record()
        with _lock:
            _idle[model] = stepper


def _best(model: PreTrainedModel, state: State, kind: StepKind) -> StepKind:
    """The first kind from `kind` on that has not failed for the model as it is."""
    then, failed = _failed.get(model, (state, set[StepKind]()))
    kinds = get_args(StepKind)
    return next(each for each in kinds[kinds.index(kind) :] if then != state or each not in failed)


def _by_type(spans: dict[str, Span] | Span) -> dict[str, Span]:
    return {"": spans} if isinstance(spans, Span) else spans
