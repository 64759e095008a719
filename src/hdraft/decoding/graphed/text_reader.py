"""Passes over text of many tokens, a prompt's, by fused layers: into the buffers that static steps go on in.

transformers' layers take the host as long to launch, for a prompt of some hundred tokens, as several steps take. A pass
over text is a step whose draft begins with the text and is accepted as far as that goes:

    text 5 6 7, tree 8 9 behind it  |  the step over the token 5 with the chain 6 7 and below it the tree 8 9

It is padded to one of ten numbers of rows. When one is met for the second time, its pass is captured.
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hdraft.decoding.graphed.capture import Program, StreamEvent, capture, graph_pool
from hdraft.decoding.graphed.fused import fused_forward
from hdraft.decoding.graphed.static_step import StaticStepper, StepKind, difference
from hdraft.decoding.logs import in_short, logger
from hdraft.drafting.tree import DraftTree

TEXT_ROWS = (64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
"""The numbers of rows that a pass is padded to. Over more, the device computes for longer than the host takes to launch
transformers' layers."""


class TextReader:
    """Prepares passes over text and a tree behind it, which a `StaticStepper` with fused layers then runs.

    The first pass for a stepper is run by transformers' layers as well. Where they do not agree, or a kernel fails,
    text is left to those for good.

    Attributes:
        stepper: has the sequence, and runs what was prepared.
        kind: how that is run: "captured", or "static".
        works: whether fused layers agree with transformers'; None until that has been tried.
        captures: whether passes can be captured, as far as is known.
    """

    kind: StepKind = "static"

    def __init__(self, stepper: StaticStepper) -> None:
        self.stepper = stepper
        self.works: bool | None = None
        self.captures = True
        self.host, self.there = stepper.make_inputs(TEXT_ROWS[-1])
        self.copied = StreamEvent(stepper.device)
        self.numbers = torch.arange(stepper.rows, device=stepper.device)
        self.met: set[int] = set()
        self.programs: dict[int, Program] = {}

    def fits(self, length: int, rows: int) -> bool:
        """Whether a pass over so many rows, no more than `TEXT_ROWS` has, can be run behind `length` tokens."""
        return self.works is not False and self.stepper.cache.fits(length, _padded(rows))

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, text: npt.NDArray[np.int64], tree: DraftTree, length: int, position: int) -> float:
        """Take in the inputs of a pass, for `stepper.run`: see `StaticStepper.prepare`; `text` is all that follows."""
        stepper, whole, asked = self.stepper, behind(text, tree), 1 + len(tree)
        rows = _padded(1 + len(whole))
        columns = stepper.cache.prepare(length, rows)
        self.copied.wait()
        stepper.fill(self.host, rows, int(text[0]), whole, length, position)
        self.host.first_asked[0] = len(text) - 1
        self.there.buffer.copy_(self.host.buffer, non_blocking=True)
        self.copied.record()
        program, seconds = self.programs.get(rows), 0.0
        if program is None:
            began = perf_counter()
            program = self._program(rows, columns, asked)
            seconds = perf_counter() - began
        self.kind = "captured" if rows in self.programs else "static"
        return seconds + stepper.take(program, asked)

    def _program(self, rows: int, columns: tuple[int, ...], asked: int) -> Program:
        """The pass for so many rows, captured if it was met before; tried on the inputs that are there."""
        fused = partial(self._run, fused_forward, rows, columns)
        unfused = partial(self._run, self.stepper.unfused, rows, columns)
        if rows in self.met:
            return self._captured(fused, rows, asked) if self.captures and self.stepper.kind == "captured" else fused
        reason = None
        try:
            if self.works is None:
                unfused()
                reason = self._differs(fused, asked)
            else:
                fused()
        except torch.OutOfMemoryError:
            return unfused
        except Exception as error:  # whatever a kernel may raise means that it does not work
            reason = in_short(error)
        self.works = reason is None
        if reason is not None:
            logger.warning("prompts are read by transformers' layers and not by fused ones: %s", reason)
            return unfused
        self.met.add(rows)
        return fused

    def _captured(self, fused: Program, rows: int, asked: int) -> Program:
        """A pass as a graph, or as it is where that cannot be had."""
        try:
            fused()
            program = capture(fused, self.stepper.device, self.stepper.pool)
            reason = self._differs(program, asked)
        except Exception as error:  # whatever a capture may raise means that there is none
            self.stepper.pool = graph_pool(self.stepper.device)
            self.captures = isinstance(error, torch.OutOfMemoryError)  # there may be room another time
            reason = in_short(error)
        else:
            self.captures = reason is None
        if reason is not None:
            logger.warning("a pass over a prompt is not captured: %s", reason)
            return fused
        self.programs[rows] = program
        return program

    def _run(self, forward: Callable[..., Tensor], rows: int, columns: tuple[int, ...]) -> None:
        asked = (self.there.first_asked + self.numbers[:rows]).clamp_max(rows - 1)  # and those behind, as many as fit
        self.stepper.hold(self.stepper.forward(partial(forward, asked=asked), self.there, rows, columns))

    def _differs(self, program: Program, asked: int) -> str | None:
        """What is wrong with a program that should give the logits that are there; None if nothing is."""
        expected = self.stepper.logits_of(asked).clone()
        program()
        far = difference(self.stepper.logits_of(asked), expected)
        return None if far is None else f"logits differ by {far:.1g} of their spread"


def behind(text: npt.NDArray[np.int64], tree: DraftTree) -> DraftTree:
    """The tree of m - 1 + n nodes behind the first of m tokens of text: the others, and `tree` below the last.

    >>> whole = behind(np.array([5, 6, 7]), DraftTree(tokens=[8, 9], parents=[-1, 0]))
    >>> whole.tokens.tolist(), whole.parents.tolist(), whole.depths.tolist()
    ([6, 7, 8, 9], [-1, 0, 1, 2], [1, 2, 3, 4])
    """
    chain = len(text) - 1
    return DraftTree(
        tokens=np.concatenate((text[1:], tree.tokens)),
        parents=np.concatenate((np.arange(-1, chain - 1), tree.parents + chain)),
        depths=np.concatenate((np.arange(1, chain + 1), tree.depths + chain)),
    )


def _padded(rows: int) -> int:
    return next(size for size in TEXT_ROWS if rows <= size)
