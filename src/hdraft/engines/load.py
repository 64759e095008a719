"""What drafting costs and gains in an engine that serves many requests at once, as the last steps tell."""

from hdraft.drafting.costs import StepCosts

_FORGET = 0.98  # of a rate, from one step to the next
_TRIAL = 8  # steps that drafting is tried for, before it rests for …
_RESTS = (16, 256)  # … so many, and each time it fails again for twice as many, up to the second
_SIZES = (0, 1, 4, 8, 16, 32, 64, 256, 1024)  # numbers of tokens of a step, of which the costs are learnt …
_ON_PROCESSOR = (1.0, 1.02, 1.1, 1.5, 2.2, 4.0, 8.0, 32.0, 128.0)  # … which begin with these where a processor computes


class Load:
    """The costs of draft tokens and the gains of drafting, as the last steps tell.

    What steps over so many tokens of all rows take is learnt by `StepCosts`; to begin with, one over 64 more counts as
    twice as long, or on a processor one over 8. Tokens that are emitted at a rate of rho a second are worth 1 / rho
    seconds each, so a draft token is worth its place while its probability exceeds rho times the seconds that it adds.
    Drafting as a whole pays while what was accepted is worth more than the place that it took and the time that finding
    it took; where it is not, it rests, and is tried again later: soon at first, as a database that learns may know by
    then what it did not know. Rates and gains are kept for batches of about one size.

    Args:
        longest: the most draft tokens of a row.
        on_processor: whether the model runs on one.
    """

    def __init__(self, longest: int, on_processor: bool = False) -> None:
        self._longest = longest
        self._costs = StepCosts(_ON_PROCESSOR if on_processor else [1 + n / 64 for n in _SIZES], _SIZES)
        self._batches: dict[int, Rates] = {}  # by the size of the batch, in powers of two

    def batch(self, rows: int) -> "Rates":
        """The rates of batches of about this size."""
        return self._batches.setdefault((rows - 1).bit_length(), Rates())

    def terms(self, rows: int) -> tuple[float, int]:
        """How to draft for the next step of so many rows: by which price, and how many tokens for a row at most.

        Now and then, to see what a larger step takes, whatever there is to draft is drafted until it is about as large.
        """
        size = self._costs.explore(rows * (1 + self._longest))
        if size is not None and size > rows:
            return 0.0, min(-(-(size - rows) // rows), self._longest)
        return self.price(rows), self._longest

    def price(self, rows: int) -> float:
        """The probability from which on a draft token is worth its place, for a batch of so many rows."""
        most = rows * (1 + self._longest)
        costs, batch = self._costs.costs(most), self.batch(rows)
        rate = batch.rate * self._costs.ordinary or rows / costs[rows]
        # what a place costs among as many as are drafted, or twice that, and not where no draft comes
        reached = min(rows + max(rows, int(2 * batch.drafted)), most)
        return min(float(rate * (costs[reached] - costs[rows]) / (reached - rows)), 1.0)

    def record(self, rows: int, drafted: int, emitted: int, seconds: float, drafting: float | None) -> None:
        """Take in a step: the tokens drafted and emitted, its seconds, and those of `drafting`, if that was done."""
        self._costs.record(rows + drafted, seconds)
        batch = self.batch(rows)
        batch.emitted(emitted, seconds + (drafting or 0.0))
        if drafting is not None:
            batch.drafted += (1 - _FORGET) * (drafted - batch.drafted)
            costs = self._costs.costs(rows + drafted)
            place = self._costs.ordinary * float(costs[-1] - costs[rows])
            batch.gained((emitted - rows) / batch.rate - place - drafting)


class Rates:
    """Rates for batches of about one size, older steps counting less.

    Attributes:
        drafted: draft tokens of a step that drafting was done for.
    """

    def __init__(self) -> None:
        self.drafted = 0.0
        self._tokens, self._seconds = 0.0, 0.0
        self._gain, self._tried = 0.0, 0
        self._rest, self._next_rest = 0, _RESTS[0]

    @property
    def rate(self) -> float:
        """Rho: tokens emitted a second; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def emitted(self, tokens: int, seconds: float) -> None:
        """Take in what a step emitted, and how long it took."""
        self._tokens = _FORGET * self._tokens + tokens
        self._seconds = _FORGET * self._seconds + seconds

    def gained(self, seconds: float) -> None:
        """Take in what drafting for a step was worth."""
        self._gain = _FORGET * self._gain + seconds
        self._tried += 1
        if self._tried < _TRIAL:
            return
        if self._gain >= 0:
            self._next_rest = _RESTS[0]
            return
        self._gain, self._tried = 0.0, 0
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _RESTS[1])

    def drafts(self) -> bool:
        """Whether to draft in this step."""
        if self._rest:
            self._rest -= 1
            return False
        return True
