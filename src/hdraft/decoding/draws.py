"""The random numbers that sampling will draw tokens by, looked at before they are used, so that drafts can go by them.

`torch.multinomial` takes, of probabilities p, the token of the largest p / q, with q drawn from the exponential
distribution for each token of the vocabulary: the Gumbel-max trick. A copy of the generator, in the same state, gives
the same q before the model has given p. Nothing is changed by it: to look ahead leaves the generator as it is, and if
anybody else draws from it between two tokens, drafts are only worse.

    tokens emitted   1           2              3              4
    generator        state 0 ->  state 1   ->   state 2   ->   state 3 …      as sampling moves it
    the copy                     q of token 2   q of token 3   q of token 4   drawn when token 1 is emitted
"""

from collections import deque
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PATIENCE = 4
"""Times that others may draw between two tokens, one after the other, before nothing more is drawn beforehand."""


class UpcomingDraws:
    """See `Draws`: of the tokens that `torch.multinomial` will draw one by one on a device, by its default generator.

    Attributes:
        vocab_size: over how many tokens; None until it is known, and nothing is known of draws.
    """

    vocab_size: int | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = _default_generator(device)
        if self._generator is not None and not _draws_so(device):
            self._generator = None
        self._copy = None if self._generator is None else torch.Generator(device)
        self._states: deque[Tensor] = deque()  # of the generator before each row, and behind the last
        self._rows = np.empty((0, 0), np.float32)
        self._first = self._end = 0  # the rows that are to come
        self._patience = _PATIENCE

    def ahead(self, n: int) -> npt.NDArray[np.float32]:
        """See `Draws.ahead`."""
        if self._generator is None or self._copy is None or self.vocab_size is None or not self._patience:
            return self._rows[:0]
        self._catch_up(self._generator, self._copy)
        if self._first + n > len(self._rows):
            rows = np.empty((4 * n, self.vocab_size), np.float32)  # those handed out before stay as they are
            known = self._rows[self._first : self._end]
            if len(known):
                rows[: len(known)] = known
            self._rows, self._first, self._end = rows, 0, len(known)
        while self._end < self._first + n:
            self._rows[self._end] = self._draw(self._copy, self.vocab_size)
            self._states.append(self._copy.get_state())
            self._end += 1
        return self._rows[self._first : self._first + n]

    def choose(self, probabilities: Tensor) -> Tensor:
        """int[1], what `torch.multinomial` draws of float32[1, vocabulary]; the generator is then where that leaves it.

        A row that is known on a CPU is not drawn again, which would take as long as some layers of a small model.
        """
        known = self._first < self._end and self._rows.shape[1] == probabilities.shape[-1]
        if known and self._device.type == "cpu" and probabilities.dtype == torch.float32:
            assert self._generator is not None
            token = (probabilities / torch.from_numpy(self._rows[self._first])).argmax(-1)
            sound = probabilities[0, token] > 0  # of what is none, `multinomial` says so
            if sound and torch.equal(self._generator.get_state(), self._states[0]):
                self._states.popleft()
                self._first += 1
                self._generator.set_state(self._states[0])
                return token
        return torch.multinomial(probabilities, num_samples=1)[0]

    def _catch_up(self, generator: torch.Generator, copy: torch.Generator) -> None:
        """Leave out the rows that have been used; all of them, if the generator is somewhere else."""
        now = generator.get_state()
        begun = len(self._states) > 0
        while self._states and not torch.equal(self._states[0], now):
            self._states.popleft()
            self._first += 1
        if self._states:
            self._patience = min(self._patience + 1, _PATIENCE)
            return
        if begun:
            self._patience -= 1
        self._states.append(now)
        self._first = self._end
        copy.set_state(now)

    def _draw(self, copy: torch.Generator, vocab_size: int) -> npt.NDArray[np.float32]:
        # as `torch.multinomial` does, over a batch of one in float32
        row = torch.empty((1, vocab_size), device=self._device).exponential_(1, generator=copy)
        return row[0].numpy(force=True)


@cache
def _draws_so(device: torch.device) -> bool:
    """Whether this torch draws as is said above."""
    drawing, copy = torch.Generator(device).manual_seed(0), torch.Generator(device)
    p = torch.linspace(-2, 2, 5000, device=device).softmax(-1)[None]
    for _ in range(8):
        copy.set_state(drawing.get_state())
        q = torch.empty_like(p).exponential_(1, generator=copy)
        if int(torch.multinomial(p, 1, generator=drawing)) != int((p / q).argmax(-1)):
            return False
    return torch.equal(copy.get_state(), drawing.get_state())


def _default_generator(device: torch.device) -> torch.Generator | None:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return None
