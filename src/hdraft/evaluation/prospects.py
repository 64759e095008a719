"""Whether a database will pay: measured against text like that to come, or guessed from its own text.

`measure` replays the text with the database and without it. `foresee` needs no text: it asks how well the database
foresees itself, at places drawn at random whose last tokens stand elsewhere in it too, and so says how much its text
repeats itself. That bounds what it can do for text of the same kind, and says nothing of text of another.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hdraft.drafting.databases import storage
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import narrow, occurrences
from hdraft.drafting.databases.vocabulary import Tokenizer
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.evaluation.costs import BUDGET, CURVES, cost_curve
from hdraft.evaluation.replay import ALL, replay
from hdraft.evaluation.traces import Request, TraceError, read_trace
from hdraft.text import decode_text

PLACES, CONTEXT, LOOKED_AT = 1000, 3, 64
"""Places that `foresee` looks at, the tokens before each, and the other occurrences of these that it looks at."""

TOKENS = 12_000
"""The most tokens of output that `measure` replays: seconds."""

PROMPT, OUTPUT = 128, 256  # tokens of the requests that a plain text is cut into
_MUCH, _SOME = 0.35, 0.15  # of the places foreseen
_PAYS = 1.03  # times the MAT without it

Named = str | os.PathLike[str]


class Foresight(NamedTuple):
    """How well a database foresees its own text.

    Attributes:
        places: looked at.
        known: the share of them whose last tokens stand elsewhere in it too.
        right: of those, the share where what follows most often elsewhere is what follows.
        bits: of those, the mean entropy of what follows elsewhere.
    """

    places: int
    known: float
    right: float
    bits: float

    def __str__(self) -> str:
        if not self.places:
            return "it is too small to say whether it will pay"
        foreseen = self.known * self.right
        verdict = (
            "it repeats itself much: text of its kind will be foreseen well"
            if foreseen >= _MUCH
            else "it repeats itself somewhat: text of its kind will gain"
            if foreseen >= _SOME
            else "it hardly repeats itself: it pays only where outputs quote it"
        )
        return (
            f"{verdict}. Of {self.places:,} places in it, {self.known:.0%} have {CONTEXT} tokens before them that stand"
            f" elsewhere too, where what follows most often is right in {self.right:.0%} ({self.bits:.1f} bits)."
        )


def foresee(database: ModelDatabase | StatisticsDatabase, seed: int = 0) -> Foresight:
    """How well a database foresees its own text, at places drawn at random, each without its own occurrence."""
    array, draw = database.array, np.random.default_rng(seed)
    tokens = array.tokens
    if len(tokens) <= CONTEXT:
        return Foresight(0, 0.0, 0.0, 0.0)
    known = right = looked_at = 0
    bits = 0.0
    for place in draw.integers(CONTEXT, len(tokens), PLACES).tolist():
        context = tokens[place - CONTEXT : place].tolist()
        if database.separator in context:
            continue
        looked_at += 1
        low, high = occurrences(array, context[0])
        for length, token in enumerate(context[1:], 1):
            low, high = narrow(array, low, high, length, token)
        ranks = np.unique(np.linspace(low, high - 1, min(high - low, LOOKED_AT)).astype(np.int64))
        following = array.suffixes[ranks].astype(np.int64) + CONTEXT
        following = following[(following != place) & (following < len(tokens))]
        if not len(following):
            continue
        counts = Counter(tokens[following].tolist())
        shares = np.array(list(counts.values())) / len(following)
        known += 1
        right += counts.most_common(1)[0][0] == tokens[place]
        bits -= float(shares @ np.log2(shares))
    return Foresight(looked_at, known / max(looked_at, 1), right / max(known, 1), bits / max(known, 1))


def measure(database: Named, against: Path, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """What drafting from a database gains on a text, beside drafting without it; seconds.

    Args:
        database: D_m or D_s: a folder, or a name on the Hub.
        against: a trace, `.jsonl` or `.jsonl.gz`, or a plain text, of which each piece is written after the one before.
        tokenizer: the database's, for a plain text.

    Returns:
        `tokens` replayed; `with` and `without` the database: `mat` at a budget of 64, and `speedups`, those predicted
        by each built-in cost curve.

    Raises:
        DatabaseError, TraceError, ValueError: a file that cannot be read, or does not fit the database.
    """
    kind = storage.inspect(database)["kind"]
    cls: Any = ModelDatabase if kind == "model" else StatisticsDatabase
    opened = cls.from_pretrained(database, tokenizer)
    requests = _requests(against, tokenizer, opened.vocab_size)
    figures: dict[str, Any] = {"tokens": sum(len(request.output_ids) for request in requests)}
    for name, given in (("with", {f"{kind}_database": opened}), ("without", {})):

        def drafter(given: dict[str, Any] = given) -> HierarchyDrafter:
            return HierarchyDrafter.for_model(opened.vocab_size, **given)

        speedups = {}
        for curve in CURVES:
            costs = cost_curve(curve, BUDGET)
            speedups[curve] = replay(requests, drafter(), BUDGET, costs=costs).scores[ALL].speedup(costs)
        figures[name] = {"mat": replay(requests, drafter(), BUDGET).scores[ALL].mat, "speedups": speedups}
    return figures


def verdict(figures: dict[str, Any]) -> str:
    """Whether it pays, in words."""
    gain = figures["with"]["mat"] / figures["without"]["mat"]
    if math.isclose(gain, 1, abs_tol=_PAYS - 1):
        return "with this text it makes no difference"
    return f"with this text it pays: {gain - 1:+.0%} tokens a step" if gain > 1 else f"it costs {1 - gain:.0%}"


def _requests(against: Path, tokenizer: Tokenizer | None, vocab_size: int) -> list[Request]:
    """The first requests of a trace, or those that a plain text is cut into, up to `TOKENS` tokens of output."""
    if against.name.endswith((".jsonl", ".jsonl.gz")):
        found = read_trace(against)
    elif tokenizer is None:
        raise ValueError(f"{against} is text: give --tokenizer")
    else:
        encode: Any = tokenizer
        try:
            ids = encode(decode_text(against.read_bytes()), add_special_tokens=False)["input_ids"]
        except ValueError as error:
            raise TraceError(f"{against} is {error}") from None
        found = list(_cut(np.array(ids, np.int32)))
    requests: list[Request] = []
    for request in found:
        if sum(len(each.output_ids) for each in requests) + len(request.output_ids) > TOKENS and requests:
            break
        requests.append(request)
    if not requests:
        raise TraceError(f"{against} holds no text to measure against")
    largest = max(request.largest_id for request in requests)
    if largest >= vocab_size:
        raise ValueError(f"{against}: token id {largest} is outside the database's vocabulary of {vocab_size}")
    return requests


def _cut(ids: np.ndarray[Any, np.dtype[np.int32]]) -> Sequence[Request]:
    """Pieces of a text, each to be written after those before it."""
    starts = range(min(PROMPT, len(ids) // 2), len(ids), OUTPUT)
    return [
        Request(str(start), "text", ids[max(start - PROMPT, 0) : start], ids[start : start + OUTPUT])
        for start in starts
    ]
