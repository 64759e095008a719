"""Passes over text of many tokens, a prompt's, by fused layers: into the buffers that static steps go on in.

transformers' layers take the host as long to launch, for a prompt of some hundred tokens, as several steps take. A pass
over text is a step whose draft begins with the text and is accepted as far as that goes:

    text 5 6 7, tree 8 9 behind it  |  the step over the token 5 with the chain 6 7 and below it the tree 8 9

Its length differs each time, so it is run one kernel after the other, and not captured.
"""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hdraft.decoding.graphed.fused import fused_forward
from hdraft.decoding.graphed.static_step import StaticStepper, StepKind, difference
from hdraft.decoding.likeliest import FromLogits
from hdraft.decoding.logs import logger
from hdraft.drafting.tree import DraftTree

LONGEST = 1024
"""Rows of a pass; over more the device computes for longer than the host takes to launch transformers' layers."""


class TextReader(FromLogits):
    """Runs passes over text and a tree behind it, for a `StaticStepper` with fused layers, which has the sequence.

    The first pass for a stepper is run by transformers' layers as well. Where they do not agree, or a kernel fails,
    text is left to those for good.
    """

    kind: StepKind = "static"

    def __init__(self, stepper: StaticStepper) -> None:
        self.stepper = stepper

    def prepare(self, text: npt.NDArray[np.int64], tree: DraftTree, length: int, position: int) -> float:
        """Take in the inputs of a pass, for `run`: see `StaticStepper.prepare`; `text` is all that follows."""
        stepper, whole = self.stepper, behind(text, tree)
        stepper.settle()
        self.rows, self.asked = 1 + len(whole), 1 + len(tree)
        self.columns = stepper.cache.prepare(length, self.rows)
        host, self.inputs = stepper.make_inputs(self.rows)
        stepper.fill(host, self.rows, int(text[0]), whole, length, position)
        self.inputs.buffer.copy_(host.buffer, non_blocking=True)
        return 0.0

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, select: bool = False) -> Tensor:
        """Run the pass: float[1 + n, vocabulary], the logits after the last text token and after each node."""
        stepper = self.stepper
        step = self.inputs, self.rows, self.columns
        if stepper.reads:
            return stepper.forward(partial(fused_forward, asked=self.asked), *step)
        logits = stepper.forward(stepper.unfused, *step)[-self.asked :]
        try:
            found = stepper.forward(partial(fused_forward, asked=self.asked), *step)
            far = difference(found, logits)
            stepper.reads = far is None
            reason = f"logits differ by {far or 0:.1g} of their spread"
        except Exception as error:  # whatever a kernel may raise means that it does not work
            stepper.reads = False
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        if not stepper.reads:
            logger.warning("prompts are read by transformers' layers and not by fused ones: %s", reason)
            logits = stepper.forward(stepper.unfused, *step)[-self.asked :]  # with its keys and values
        return logits

    def keep(self, length: int, path: list[int]) -> None:
        """Keep the first `length` tokens and, of the tree just forwarded, the nodes on `path`."""
        self.stepper.keep(length, path)


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
