"""The counters of a request: its cost, and the worth of its drafts."""

from dataclasses import dataclass, field
from typing import Any

from hdraft.drafting.tree import Source


@dataclass
class Statistics:
    """Counts and seconds of a request; pass one to `generate` or `stream`, which add to it while they run.

    Attributes:
        steps: forward passes of the target, those over the prompt included.
        tokens: tokens emitted.
        drafted: draft tokens verified.
        accepted: draft tokens emitted, by the database they came from.
        accepted_lengths: draft tokens emitted, by step.
        seconds_drafting: in the drafter.
        seconds_inputs: on masks, positions and their way to the device.
        seconds_model: in the target's forward passes, until their result is there.
        seconds_verification: on the path that the target takes, and logits processors.
        seconds_cache: on keeping that path; on a device that works on its own, on asking for it.
        seconds: from the first step to the last, without the time that the consumer of a stream takes.
    """

    steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))
    accepted_lengths: list[int] = field(default_factory=list)
    seconds_drafting: float = 0.0
    seconds_inputs: float = 0.0
    seconds_model: float = 0.0
    seconds_verification: float = 0.0
    seconds_cache: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: list[int], sources: list[Source], drafted: int) -> None:
        """Count a step that emitted `tokens`, the first of them drafted by `sources` in a tree of `drafted` nodes."""
        self.steps += 1
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
