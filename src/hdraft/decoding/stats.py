"""Counters of a request: its steps, its tokens, where they came from, and the time that each part took."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from hdraft.drafting.tree import Source

Part = Literal["drafting", "inputs", "model", "verification", "cache"]
"""The parts of a step whose time is counted."""


@dataclass
class GenerationStats:
    """Counts and seconds of a request; pass one to `generate` or `stream`, which add to it while they run.

    Attributes:
        steps: forward passes of the target, those over the prompt included.
        tokens: tokens emitted.
        drafted: draft tokens verified.
        accepted: draft tokens emitted, by the database they came from.
        accepted_lengths: draft tokens emitted, by step.
        kinds: forward passes by how they were run, see `StepKind`; those over the prompt are "dynamic".
        seconds_drafting: in the drafter.
        seconds_inputs: making masks and positions and moving them to the device.
        seconds_model: in the target's forward passes, until the result can be read.
        seconds_verification: finding the path that the target takes, logits processors included.
        seconds_cache: keeping that path in the cache; on a GPU, which works on its own, only asking for it.
        seconds: in all, without the time that the consumer of a stream takes.
    """

    steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))
    accepted_lengths: list[int] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    seconds_drafting: float = 0.0
    seconds_inputs: float = 0.0
    seconds_model: float = 0.0
    seconds_verification: float = 0.0
    seconds_cache: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: list[int], sources: list[Source], drafted: int, kind: str) -> None:
        """Count a step that emitted `tokens`, the first of them drafted by `sources` in a tree of `drafted` nodes."""
        self.steps += 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.tokens += len(tokens)
        self.drafted += drafted
        self.accepted_lengths.append(len(sources))
        for source in sources:
            self.accepted[source] += 1

    @property
    def mean_accepted_tokens(self) -> float:
        """Tokens emitted a step (tau): 1.0 is ordinary decoding. NaN before the first step."""
        return self.tokens / self.steps if self.steps else float("nan")

    def __str__(self) -> str:
        accepted = ", ".join(f"{source.name.lower()} {count}" for source, count in self.accepted.items())
        return (
            f"{self.tokens} tokens in {self.steps} steps ({self.mean_accepted_tokens:.2f} a step),"
            f" {self.drafted} drafted, accepted: {accepted};"
            f" {self.seconds:.2f} s: drafting {self.seconds_drafting:.2f}, model {self.seconds_model:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what `hdraft generate --json` prints."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "mean_accepted_tokens": self.mean_accepted_tokens,
            "drafted": self.drafted,
            "accepted": {source.name.lower(): count for source, count in self.accepted.items()},
            "seconds": self.seconds,
            "seconds_model": self.seconds_model,
            "seconds_drafting": self.seconds_drafting,
        }

Statistics = GenerationStats
"""Its name before, which stays."""


class Stopwatch:
    """Adds the time from lap to lap to the counters: to the total, and to the part that it was spent on."""

    def __init__(self, stats: GenerationStats) -> None:
        self.stats = stats
        self.last = perf_counter()

    def lap(self, part: Part | None = None, until: float | None = None) -> None:
        """End a lap.

        Args:
            part: what the time since the last lap was spent on; None counts it in the total alone.
            until: when the lap ended, as `perf_counter` tells it; None for now.
        """
        now = perf_counter() if until is None else until
        seconds, self.last = now - self.last, now
        self.stats.seconds += seconds
        if part is not None:
            counter = f"seconds_{part}"
            setattr(self.stats, counter, getattr(self.stats, counter) + seconds)

    def skip(self) -> None:
        """Leave out the time since the last lap."""
        self.last = perf_counter()
