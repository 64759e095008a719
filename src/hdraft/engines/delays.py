"""What draft tokens delay a step by, told by the differences between steps that follow each other."""

import numpy as np

_KEPT = 256  # differences …
_STEPS = 2048  # … of the last so many steps
_WEIGHT = 64.0  # of what was believed before: as if steps had told it that differ by so many tokens
_SOON, _LATE = 4, 256  # differences, and steps, after which delays are told anew
_FITS = 2


class Delays:
    """The seconds that draft tokens add to a step: so many for each, and some for any at all.

    The machine's speed drifts, and now and then a step takes twice its time. So a step is set against the last one
    alone, if that had as many rows; and what a token adds is the slope from which those differences deviate least, in
    absolute values: the median of seconds by tokens, weighted by tokens. Here each token adds 2 ms, any at all 5 more,
    and the last step is disturbed:

        tokens           4     8     0    60     5
        milliseconds    23    31    10   135    99
        differences       8/4  21/8 125/60 36/55    2, 2.6, 2.1 and 0.7 ms, with weights 4, 8, 60, 55: a token adds 2.1

    What any draft at all adds is the median of what is then left of the differences to steps without, 4.3 and 0 here;
    it is taken off those, and the slope is found again.

    >>> delays = Delays()
    >>> for drafted, seconds in [(4, 0.023), (8, 0.031), (0, 0.010), (60, 0.135), (5, 0.099)]:
    ...     delays.record(1, drafted, seconds)
    >>> round(delays.token(believed=0.5), 4)
    0.0021
    """

    def __init__(self) -> None:
        # From a step with fewer draft tokens to one with more: when, tokens, whether from none, seconds.
        self._differences = np.zeros((_KEPT, 4))
        self._count = self._steps = 0
        self._last: tuple[int, int, float] | None = None
        self._told_at = 0, 0  # of differences, of steps
        self._token: float | None = None
        self._any = self._weight = 0.0

    @property
    def told(self) -> float | None:
        """What a token adds, if steps have told more of that than was believed before; else None."""
        return self._token if self._weight > _WEIGHT else None

    def record(self, rows: int, drafted: int, seconds: float) -> None:
        """Take in a step: its rows, the draft tokens of all of them, and what it took."""
        last, self._last = self._last, (rows, drafted, seconds)
        self._steps += 1
        if last is None or last[0] != rows or last[1] == drafted:
            return
        sign = 1 if drafted > last[1] else -1
        tokens, from_none = sign * (drafted - last[1]), not drafted or not last[1]
        self._differences[self._count % _KEPT] = self._steps, tokens, from_none, sign * (seconds - last[2])
        self._count += 1

    def token(self, believed: float) -> float:
        """Seconds that a draft token adds, where `believed` is what is known from elsewhere."""
        if not self._count:
            return believed
        count, steps = self._told_at
        if self._token is None or self._count - count >= _SOON or self._steps - steps >= _LATE:
            self._told_at = self._count, self._steps
            self._token = self._fit(believed)
        return self._token

    def of(self, drafted: int, believed: float) -> float:
        """Seconds that so many draft tokens add."""
        return self.token(believed) * drafted + self._any if drafted else 0.0

    def _fit(self, believed: float) -> float:
        kept = self._differences[: self._count]
        _, tokens, from_none, seconds = kept[kept[:, 0] > self._steps - _STEPS].T
        weights, self._weight = np.append(tokens, _WEIGHT), float(tokens.sum())
        token = believed
        for _ in range(_FITS):
            slopes = np.append((seconds - self._any * from_none) / tokens, believed)
            order = np.argsort(slopes)
            reached = np.cumsum(weights[order])
            token = max(float(slopes[order][np.searchsorted(reached, reached[-1] / 2)]), 0.0)
            left = (seconds - token * tokens)[from_none > 0]
            self._any = max(float(np.median(np.append(left, (0.0, 0.0)))), 0.0)
        return token
