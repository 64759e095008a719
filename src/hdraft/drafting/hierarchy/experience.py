"""Experience: what requests have taught a drafter about mixing matches and about how much a step emits; no text.

A new drafter does not start from nothing: `experience.npz` is what some two thousand requests have learnt that were
made of openly licensed text (`tools/fit_experience.py`; the sources are in docs/drafting.md). It is for any model and
vocabulary, since all that is about single tokens is left out of it. What it says of matches counts for little, as the
drafter's databases are others, and soon gives way to what its own requests say; what it says of texts counts for more.
"""

import os
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hdraft.drafting.hierarchy import mixing
from hdraft.drafting.hierarchy.budget import BudgetRule
from hdraft.drafting.hierarchy.mixing import FACTORS_OF_DATABASES, FACTORS_OF_TOKENS, Weights, initial_weights

_SHIPPED = Path(__file__).with_name("experience.npz")
_SHIPPED_SAMPLED = Path(__file__).with_name("experience_sampled.npz")
_OF_DATABASES, _OF_TEXTS = 3.0, 100.0  # observations, or squared gradients, that what is saved counts for at most
_FORGET = 0.8  # of the running rate, from one request to the next


class Learnt(NamedTuple):
    """All of an experience, as it was at one moment."""

    weights: Weights
    tokens: float  # emitted …
    time: float  # … and the time of their steps in ordinary steps

    def sound(self) -> bool:
        """Whether it can have been learnt, where it was read from a file."""
        return mixing.sound(self.weights) and (self.time == 0 or 0 < self.tokens / self.time < 1e6)


class Experience:
    """Weights and factors, and the running rate; requests beside each other may start from it and add to it.

    Args:
        weights: to start from; what is shipped if there are none.
        sampled: whether that is to be what is shipped for requests whose tokens are drawn.
    """

    def __init__(self, weights: Weights | None = None, *, sampled: bool = False) -> None:
        self._lock = threading.Lock()
        self.weights = mixing.start(_shipped(sampled) if weights is None else weights)
        self._tokens, self._time = 0.0, 0.0

    def start(self) -> tuple[Weights, float]:
        """The weights that a request starts from, its own to learn in, and the rate."""
        with self._lock:
            rate = self._tokens / self._time if self._time else 1.0
            return mixing.start(self.weights), rate

    def finish(self, before: Weights, after: Weights, rule: BudgetRule | None) -> None:
        """Join what one request learnt; a request that ran beside it has not seen it, and adds its own."""
        with self._lock:
            mixing.join(self.weights, before, after)
            if rule is not None:
                self._tokens = _FORGET * self._tokens + rule.tokens
                self._time = _FORGET * self._time + rule.time

    def snapshot(self) -> Learnt:
        """All of it as it is now, in arrays of its own."""
        with self._lock:
            return Learnt(mixing.start(self.weights), self._tokens, self._time)

    def restore(self, learnt: Learnt) -> None:
        """Put what was learnt elsewhere in the place of all of it; requests that run add to that."""
        with self._lock:
            self.weights = mixing.start(learnt.weights)
            self._tokens, self._time = learnt.tokens, learnt.time

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write, to a path that ends in .npz, the weights and the factors that are about no single token.

        Also what each of them counts for, so that a drafter that starts from them goes on learning.
        """
        with self._lock:
            weights = mixing.start(self.weights)
        fewer = np.minimum(_OF_DATABASES / weights.reached, 1.0)
        most = np.full(len(weights.squares), _OF_TEXTS)
        most[FACTORS_OF_DATABASES] = _OF_DATABASES
        squares = np.minimum(weights.squares, most)
        np.savez_compressed(
            path,
            taken=(weights.taken * fewer).astype(np.float32),
            reached=(weights.reached * fewer).astype(np.float32),
            lasting=np.delete(weights.lasting, FACTORS_OF_TOKENS).astype(np.float32),
            squares=np.delete(squares, FACTORS_OF_TOKENS).astype(np.float32),
        )


def load(path: str | os.PathLike[str]) -> Weights:
    """The weights that `Experience.save` wrote; factors of single tokens start from 1.

    Raises:
        ValueError: the file is of another version of the mixture: `tools/fit_experience.py` makes it anew.
    """
    weights = initial_weights()
    everything = np.arange(len(weights.weight))
    general = np.delete(np.arange(len(weights.lasting)), FACTORS_OF_TOKENS)
    places = {"taken": everything, "reached": everything, "lasting": general, "squares": general}
    with np.load(path) as saved:
        for name, place in places.items():
            if name not in saved or saved[name].shape != place.shape:
                raise ValueError(f"{path} is of another version of the mixture: run tools/fit_experience.py")
            getattr(weights, name)[place] = saved[name]
    np.divide(weights.taken, weights.reached, out=weights.weight)
    weights.factor[:] = weights.lasting
    return weights


@cache
def _shipped(sampled: bool) -> Weights:
    return load(_SHIPPED_SAMPLED if sampled else _SHIPPED)
