"""What draft tokens delay a step by, told by the differences between steps that follow each other."""

from collections import deque
from statistics import median

import numpy as np

_KEPT = 256  # differences between steps with drafts …
_KEPT_ANY = 32  # … and between one with and one without any
_WEIGHT = 64.0  # of what was believed before: as if steps had told it that differ by so many tokens
_SOON = 4  # differences, after which a token's delay is told anew


class Delays:
    """The seconds that draft tokens add to a step: so many for each, and some for any at all.

    The machine's speed drifts, and now and then a step takes twice its time. So a step is set against the one before
    it alone, if that had as many rows; and what a token adds is the slope from which those differences deviate least,
    in absolute values: the median of seconds by tokens, weighted by tokens. Here each adds 2 ms, any at all 5 more, and
    the last step is disturbed:

        tokens               4     8     0     6     5
        milliseconds        23    31    10    27    55
        differences            8/4   -21/-8  17/6  28/-1     a token: 2 (weight 4) rather than -28 (weight 1)
                                                             any: 21 - 8 * 2 = 5, and 17 - 6 * 2 = 5

    >>> delays = Delays()
    >>> for drafted, seconds in [(4, 0.023), (8, 0.031), (0, 0.010), (6, 0.027), (5, 0.055)]:
    ...     delays.record(1, drafted, seconds)
    >>> round(delays.token(believed=0.002), 4)
    0.002
    """

    def __init__(self) -> None:
        self._some: deque[tuple[int, float]] = deque(maxlen=_KEPT)  # of tokens and seconds, where both steps had drafts
        self._any: deque[tuple[int, float]] = deque(maxlen=_KEPT_ANY)  # where one had none
        self._before: tuple[int, int, float] | None = None
        self._token: float | None = None
        self._new = 0

    @property
    def told(self) -> float | None:
        """What a token adds, as was last asked for; None as long as no step has told anything."""
        return self._token

    def record(self, rows: int, drafted: int, seconds: float) -> None:
        """Take in a step: its rows, the draft tokens of all of them, and what it took."""
        before, self._before = self._before, (rows, drafted, seconds)
        if before is None or before[0] != rows or before[1] == drafted:
            return
        tokens, difference = drafted - before[1], seconds - before[2]
        self._new += 1
        if drafted and before[1]:
            self._some.append((tokens, difference))
        else:
            self._any.append((tokens, difference) if drafted else (-tokens, -difference))

    def token(self, believed: float) -> float:
        """Seconds that a draft token adds, where `believed` is what is known from elsewhere."""
        if not self._some and not self._any:
            return believed
        if self._token is None or self._new >= _SOON:
            self._new = 0
            differences = [*self._some]
            if sum(abs(tokens) for tokens, _ in differences) < _WEIGHT:  # else any at all would count as of the token
                differences += self._any
            tokens, seconds = np.array(differences).T
            slopes = np.append(seconds / tokens, believed)
            order = np.argsort(slopes)
            weights = np.cumsum(np.append(np.abs(tokens), _WEIGHT)[order])
            self._token = max(float(slopes[order][np.searchsorted(weights, weights[-1] / 2)]), 0.0)
        return self._token

    def of(self, drafted: int, believed: float) -> float:
        """Seconds that so many draft tokens add."""
        if not drafted:
            return 0.0
        token = self.token(believed)
        return token * drafted + max(median([0.0, 0.0, *(seconds - token * n for n, seconds in self._any)]), 0.0)
