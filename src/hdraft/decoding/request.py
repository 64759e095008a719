"""The arguments of `generate`, `stream` and `custom_generate` that are hdraft's own, in one object."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
from transformers.generation.streamers import BaseStreamer

from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.stats import GenerationStats
from hdraft.drafting.drafter import Drafter
from hdraft.drafting.hierarchy.budget import check_costs


@dataclass(frozen=True, eq=False)
class DecodingRequest:
    """The arguments of `generate` that `model.generate` does not know, as described there.

    Raises:
        ValueError: no such kind of step, or costs that are no times.
    """

    drafter: Drafter | None = None
    budget: int = 64
    costs: npt.NDArray[np.float64] | None = None
    step: StepKind | None = None
    statistics: GenerationStats | None = None
    streamer: BaseStreamer | None = None

    def __post_init__(self) -> None:
        if self.step is not None and self.step not in get_args(StepKind):
            raise ValueError(f"no step {self.step!r}: there are {', '.join(get_args(StepKind))}")
        if self.costs is not None:
            check_costs(self.costs)

    @property
    def active_drafter(self) -> Drafter | None:
        """The drafter, unless a budget of 0 switches it off."""
        return self.drafter if self.budget > 0 else None
