"""The cost of a step over n tokens, in ordinary steps, learnt from the steps that are taken anyway.

A step's time is the product of two: how fast the machine is at the moment, which a text that grows or another process
changes within steps, and what n tokens take more than none, which hardly changes. Each step is set against the two
before it and the two after it. Beliefs are 1, 1.2 and 1.4 for 0, 8 and 16 tokens; here the machine slows down to half:

    tokens           16    8   16 |  0   16   16
    milliseconds     56   48   56 | 80  128  112
    / what believed  40   40   40 | 80   91   80     -> the 0 took 80 of 80: as believed, though twice its time before
                                                     -> the 16 of 128 took 91 of 80: a little more than believed

Only a few sizes, the knots, have a belief: the median of the last of what was seen of it. Between them it is
interpolated. What is known of sizes that are not taken goes stale, so each of them is tried now and then by a single
step, the dearer the more seldom.

A busy moment leaves beliefs behind that are far too high. What was seen when the machine was much slower is forgotten
as soon as it is faster again; and where a size turns out much cheaper than believed twice in a row, so is what is
believed of all others: they start again from the shape that they had at first.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

KNOTS = (0, 1, 4, 16, 64)
"""The sizes that a belief is kept of, unless told."""

_AROUND = 2  # steps before a step, and after it, that it is set against
_KEPT = 5  # observations of a size
_FASTER = 1.6  # a factor by which steps become faster, so that what was seen before counts no more
_MUCH = 1.25  # a factor by which a size differs much from what was believed
_NEAR = 1.4  # a factor of the first shape within which it may be true
_AGAIN = 4  # steps in a row, at most, in which a size is tried that surprises
_ZERO = 64  # steps between two ordinary ones
_SOONEST = 32  # steps between two trials of the next larger size …
_SLOWLY = 8  # trials that told nothing new, after which twice as many
_SHARE = 0.005  # of the time, for trials of one size …
_SHARE_OF_NEXT = 0.04  # … of the next larger one at first …
_SHARE_OF_UNSEEN = 0.02  # … and of one that was never seen


class _Step(NamedTuple):
    drafted: int
    knot: int
    seconds: float
    trial: bool


class _Seen(NamedTuple):
    ratio: float
    told: bool  # by ordinary steps around it, and not by what was believed of others

    def over(self, unit: float) -> "_Seen":
        """It, where an ordinary step turns out to take `unit` times of what was believed."""
        return self if self.told else _Seen(self.ratio / unit, False)


class StepCosts:
    """What steps cost, as those taken lately tell; threads may share it.

    A drafter asks `explore`, then `costs`, before each step; whoever runs the steps tells `record` what they took.

    Args:
        prior: what a step over each of `knots` costs to begin with, in steps over the first.
        knots: sizes, ascending.
        padded: whether a step of a size between two knots is one of the larger.

    >>> costs = StepCosts([1.0, 1.0, 1.1, 1.5, 3.0])
    >>> costs.costs(4).round(3).tolist()
    [1.0, 1.0, 1.033, 1.067, 1.1]
    """

    def __init__(self, prior: npt.ArrayLike, knots: tuple[int, ...] = KNOTS, padded: bool = False) -> None:
        self.knots = knots
        self.padded = padded
        self._prior: list[float] = np.array(prior, np.float64).tolist()
        self._lock = threading.Lock()
        self._ratios = self._prior  # in plain numbers: NumPy would take longer than all else for so few
        self._reach(knots[-1])
        self._seen: list[list[_Seen]] = [[] for _ in knots]
        self._around: deque[_Step] = deque(maxlen=2 * _AROUND + 1)
        self._before: deque[tuple[int, float]] = deque(maxlen=64)  # sizes and seconds of steps before those
        self._usual = deque([0], maxlen=5)  # knots of steps that were no trials
        self._ordinary = 0.0
        self._steps = 0
        self._last = [-_ZERO, *(0 for _ in knots[1:])]  # when each knot was seen or tried
        self._surprises = [0 for _ in knots]  # in a row
        self._agreed = [0 for _ in knots]  # trials in a row that told nothing new
        self._tried = 0
        self._trial: int | None = None

    def costs(self, budget: int) -> npt.NDArray[np.float64]:
        """The costs of steps over 0, 1, … `budget` tokens, never falling: float64[budget + 1], the first is 1."""
        with self._lock:
            self._reach(budget)
            return np.array(self._costs[: budget + 1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.float64]:
        """The costs at this moment, up to the last knot, for who wants an array."""
        return self.costs(self.knots[-1]).astype(np.float64 if dtype is None else dtype)

    @property
    def ordinary(self) -> float:
        """The seconds that a step over the first knot takes at the moment; 0 as long as that is unknown."""
        return self._ordinary

    def explore(self, budget: int) -> int | None:
        """The size, at most `budget`, that the next step should have to be learnt about; mostly None, for any.

        It is asked for once: whoever is told a size tries to fill a tree of it, whatever that is worth.
        """
        with self._lock:
            if self._steps - self._tried <= _AROUND + 1 or len(self._around) < _AROUND:
                return None
            patience = self._patience()
            age = [
                (self._steps - last) / patience[knot] if self.knots[knot] <= budget else 0.0
                for knot, last in enumerate(self._last)
            ]
            knot = age.index(max(age))
            if age[knot] < 1.0:
                return None
            self._last[knot] = self._tried = self._steps
            self._trial = self.knots[knot]
            return self._trial

    def record(self, drafted: int, seconds: float) -> None:
        """Take in a step: what it was over, and its time."""
        if not (seconds > 0.0 and np.isfinite(seconds)):
            return
        with self._lock:
            self._reach(drafted)
            knot = self._nearest[drafted]
            trial, self._trial = self._trial is not None, None
            if not trial:
                self._usual.append(knot)
            if len(self._around) == 2 * _AROUND + 1:
                self._before.append((self._around[0].drafted, self._around[0].seconds))
            self._around.append(_Step(drafted, knot, seconds, trial))
            self._steps += 1
            if len(self._around) == 2 * _AROUND + 1:
                self._judge(self._around[_AROUND])

    def _reach(self, budget: int) -> None:
        """Have costs, and the nearest knot, of sizes up to this one."""
        if budget >= len(getattr(self, "_costs", ())):
            self._rows = self._interpolation(budget)
            self._nearest: list[int] = self._rows.argmax(1).tolist()
            self._costs: list[float] = (self._rows @ self._ratios).tolist()

    def _interpolation(self, budget: int) -> npt.NDArray[np.float64]:
        """float64[budget + 1, knots]: how much each size's cost is each knot's; behind the last it is in proportion."""
        sizes, knots = np.arange(budget + 1), np.array(self.knots)
        each = np.eye(len(knots))
        if self.padded:
            rows = each[np.minimum(np.searchsorted(knots, sizes), len(knots) - 1)]
        else:
            rows = np.stack([np.interp(sizes, knots, one) for one in each], axis=1)
        weights: npt.NDArray[np.float64] = rows * np.maximum(1.0, sizes / knots[-1])[:, None]
        return weights

    def _patience(self) -> list[float]:
        """For each knot, the steps after which it is to be seen again. Smaller ones than the usual are, by use."""
        usual = sorted(self._usual)[len(self._usual) // 2]
        patience = [float(_ZERO), *(float("inf") for _ in self.knots[1:])]
        for knot in range(usual + 1, len(self.knots)):
            dearer = self._ratios[knot] - self._ratios[usual]
            share = _SHARE if self._seen[knot] else _SHARE_OF_UNSEEN
            soon = max(dearer / (_SHARE_OF_NEXT * 0.5 ** (knot - usual - 1)), _SOONEST)
            patience[knot] = min(max(dearer / share, _SOONEST), soon * (1 + self._agreed[knot] / _SLOWLY))
        for knot, surprises in enumerate(self._surprises):
            if 0 < surprises < _AGAIN:
                patience[knot] = _AROUND + 1
        if usual == 0:
            patience[0] = float("inf")
        return patience

    def _judge(self, step: _Step) -> None:
        """Learn from a step, given those around it."""
        believed = self._believed([(each.drafted, each.seconds) for each in self._around])
        self._ordinary, knot = median(believed), step.knot
        self._last[knot] = max(self._last[knot], self._steps - _AROUND)
        is_first = not self._seen[knot]
        tells = sum(each.knot == knot for each in self._around) <= _AROUND  # else it is set against itself
        if is_first:  # the first of what is seen is what was believed
            self._seen[knot] = [_Seen(self._ratios[knot], False)]
        if tells:
            self._take_in(step, believed[_AROUND] / self._ordinary)
        if is_faster := self._is_faster(believed):
            self._seen = [[] for _ in self.knots]
            self._before.clear()
        if is_first or tells or is_faster:
            self._conclude()

    def _believed(self, steps: Sequence[tuple[int, float]]) -> list[float]:
        """The seconds of an ordinary step, as each of these tells: sizes and seconds."""
        return [seconds / self._costs[size] for size, seconds in steps]

    def _conclude(self) -> None:
        """Believe what was seen."""
        if self._seen[0]:
            unit = median(each.ratio for each in self._seen[0])
            self._seen = [[each.over(unit) for each in seen] for seen in self._seen]
        ratios = [1.0, *self._prior[1:]]
        for k, seen in enumerate(self._seen[1:], 1):
            if seen:
                ratios[k] = median(each.ratio for each in seen)
        self._ratios = _never_falling(ratios, [len(seen) for seen in self._seen])
        self._costs = (self._rows @ self._ratios).tolist()

    def _take_in(self, step: _Step, surprise: float) -> None:
        """Note a step that took `surprise` times of what was believed."""
        knot = step.knot
        told = sum(each.knot == 0 for each in self._around) > _AROUND
        seen = _Seen(self._ratios[knot] * surprise, told)
        self._seen[knot] = [*self._seen[knot], seen][-_KEPT:]
        changed = surprise < 1 / _MUCH or (knot == 0 and surprise > _MUCH)
        self._surprises[knot] = self._surprises[knot] + 1 if changed else 0
        if step.trial:
            self._agreed[knot] = 0 if changed else self._agreed[knot] + 1
        if self._surprises[knot] == 2 and knot > 0 and seen.ratio < _NEAR * self._prior[knot]:
            self._surprises, self._agreed = [0 for _ in self.knots], [0 for _ in self.knots]
            self._seen = [self._seen[0], *([] for _ in self.knots[1:])]
            self._seen[knot] = [seen]

    def _is_faster(self, believed: list[float]) -> bool:
        """Whether the last steps, but one at most, took much less than those before them."""
        if len(self._before) <= _AROUND:
            return False
        return sorted(believed)[-2] < median(self._believed(self._before)) / _FASTER


Costs = npt.NDArray[np.floating] | StepCosts
"""What steps cost: measured and frozen, float[m], or learnt while they run."""


def _never_falling(ratios: list[float], counts: list[int]) -> list[float]:
    """The nearest ratios that never fall, and begin with 1: those that contradict each other are pooled.

    What was never seen gives way to what was.
    """
    pools: list[tuple[float, float, int]] = []  # of neighbours: logarithm, weight, how many
    for ratio, count in zip(ratios, counts, strict=True):
        pool = math.log(max(ratio, 1.0)), count + 0.3, 1
        while pools and pools[-1][0] >= pool[0]:
            (low, weight, many), (high, other, more) = pools.pop(), pool
            pool = (low * weight + high * other) / (weight + other), weight + other, many + more
        pools.append(pool)
    pooled = [math.exp(logarithm) for logarithm, _, many in pools for _ in range(many)]
    return [1.0, *pooled[1:]]
