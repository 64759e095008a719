"""What drafting costs and gains in an engine that serves many requests at once, as the last steps tell."""

from hdraft.engines.delays import Delays

_FORGET = 0.98  # of a rate, from one step to the next
_LONGEST = 4  # times of the mean step, that a longer one counts as: the engine was held up
_TRIAL = 8  # steps that drafting is tried for, before it rests for …
_RESTS = (16, 256)  # … so many, and each time it fails again for twice as many, up to the second
_AS_A_STEP = 64  # draft tokens that take as long as the step, to begin with …
_AS_A_STEP_ON_PROCESSOR = 32  # … where a processor computes
_DEAREST = 0.5  # the highest price, to begin with
_LOOK = 64  # drafting steps, of which one goes by half the price, and one has no drafts, to see what drafts delay it by
_NEVER = 2.0  # a price above each probability


class Load:
    """The price of draft tokens and the gains of drafting, as the last steps tell.

    Tokens that are emitted at a rate of rho a second are worth 1 / rho seconds each, so a draft token is worth its
    place while its probability exceeds rho times the seconds that it adds. Drafting as a whole pays while what was
    accepted is worth more than the places that it took and the time that finding it took; where it is not, it rests,
    and is tried again later: soon at first, as a database that learns may know by then what it did not know. All that
    is kept for batches of about one size; one of a new size begins with what a token adds in the next one to it.

    Args:
        on_processor: whether the model runs on one.
    """

    def __init__(self, on_processor: bool = False) -> None:
        self._as_a_step = _AS_A_STEP_ON_PROCESSOR if on_processor else _AS_A_STEP
        self._batches: dict[int, Batches] = {}  # by their size, in powers of two

    def batches(self, rows: int) -> "Batches":
        """Those of about this size."""
        size = (rows - 1).bit_length()
        if size not in self._batches:
            self._batches[size] = Batches()
        return self._batches[size]

    def price(self, rows: int) -> float:
        """The probability from which on a draft token is worth its place, for a batch of so many rows."""
        batches = self.batches(rows)
        if not batches.rate:
            return self._first_price(rows)
        return min(batches.rate * batches.delays.token(self._believed(rows)), 1.0)

    def next_price(self, rows: int) -> float:
        """The price to draft by in the next step; now and then another than is right, so that steps tell more."""
        batches = self.batches(rows)
        turn, batches.turns = batches.turns % _LOOK, batches.turns + 1
        if turn == _LOOK // 2:
            return _NEVER
        return self.price(rows) / (1 if turn else 2)

    def record(self, rows: int, drafted: int, emitted: int, seconds: float, drafting: float | None) -> None:
        """Take in a step: the tokens drafted and emitted, its seconds, and those of `drafting`, if that was done."""
        batches = self.batches(rows)
        batches.delays.record(rows, drafted, seconds)
        batches.emitted(emitted, seconds + (drafting or 0.0))
        if drafting is not None:
            places = batches.delays.of(drafted, self._believed(rows))
            batches.gained((emitted - rows) / batches.rate - places - drafting)

    def _first_price(self, rows: int) -> float:
        return min(rows / self._as_a_step, _DEAREST)

    def _believed(self, rows: int) -> float:
        """The seconds that a draft token adds, before steps of such batches have told."""
        size = (rows - 1).bit_length()
        told = {
            abs(other - size): seconds
            for other, batches in self._batches.items()
            if other != size and (seconds := batches.delays.told) is not None
        }
        return told[min(told)] if told else self._first_price(rows) / self.batches(rows).rate


class Batches:
    """Batches of about one size, older steps counting less.

    Attributes:
        delays: what draft tokens delay their steps by.
        turns: steps that were drafted for, since drafting rested.
    """

    def __init__(self) -> None:
        self.delays = Delays()
        self.turns = 0
        self._tokens, self._seconds, self._steps = 0.0, 0.0, 0.0
        self._gain, self._tried = 0.0, 0
        self._rest, self._next_rest = 0, _RESTS[0]

    @property
    def rate(self) -> float:
        """Rho: tokens emitted a second; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def emitted(self, tokens: int, seconds: float) -> None:
        """Take in what a step emitted, and how long it took."""
        if self._steps > 1:
            seconds = min(seconds, _LONGEST * self._seconds / self._steps)
        self._tokens = _FORGET * self._tokens + tokens
        self._seconds = _FORGET * self._seconds + seconds
        self._steps = _FORGET * self._steps + 1

    def gained(self, seconds: float) -> None:
        """Take in what drafting for a step was worth."""
        self._gain = _FORGET * self._gain + seconds
        self._tried += 1
        if self._tried < _TRIAL:
            return
        if self._gain >= 0:
            self._next_rest = _RESTS[0]
            return
        self._gain, self._tried, self.turns = 0.0, 0, 0
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _RESTS[1])

    def drafts(self) -> bool:
        """Whether to draft in this step."""
        if self._rest:
            self._rest -= 1
            return False
        return True
