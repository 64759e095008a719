"""The arguments of `generate`, `stream` and `custom_generate` that are hdraft's own, in one object."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.models.drafters import kept_drafter
from hdraft.decoding.stats import GenerationStats
from hdraft.drafting.costs import Costs, StepCosts
from hdraft.drafting.drafter import Drafter, TokenIds, is_drafter
from hdraft.drafting.hierarchy.budget import check_costs

AnyDrafter = Drafter | Literal["auto"] | None
"""What drafts: one of the caller's own, the model's own ("auto"), or nothing."""


@dataclass(frozen=True, eq=False)
class DecodingRequest:
    """The arguments of `generate` that `model.generate` does not know, as described there.

    Raises:
        ValueError: no such drafter or kind of step, or costs that are no times.
    """

    drafter: AnyDrafter = "auto"
    budget: int = 64
    costs: Costs | None = None
    step: StepKind | None = None
    statistics: GenerationStats | None = None
    streamer: BaseStreamer | None = None
    references: Sequence[str | TokenIds] = ()
    """Token ids, once `with_ids` has made them so."""
    learnt: StepCosts | None = None
    """Who is told what steps take; filled in when the request is prepared."""

    def __post_init__(self) -> None:
        _check_drafter(self.drafter)
        if self.step is not None and self.step not in get_args(StepKind):
            raise ValueError(f"no step {self.step!r}: there are {', '.join(get_args(StepKind))}")
        if isinstance(self.references, str) or not isinstance(self.references, Sequence):
            raise ValueError("references must be a list of texts or of token ids")
        if self.costs is not None and not isinstance(self.costs, StepCosts):
            check_costs(self.costs)

    def with_ids(self, tokenizer: Any) -> "DecodingRequest":
        """Itself, with references that are texts as token ids.

        Raises:
            ValueError: there is no tokenizer to make ids of a text.
        """
        if tokenizer is None and any(isinstance(each, str) for each in self.references):
            raise ValueError("references that are texts need the model's tokenizer: pass tokenizer=, or token ids")
        ids = [
            tokenizer(each, add_special_tokens=False)["input_ids"] if isinstance(each, str) else each
            for each in self.references
        ]
        return replace(self, references=ids)

    def drafter_for(self, model: PreTrainedModel) -> Drafter | None:
        """The drafter; for "auto" the one that is kept with the model, which is not made for a budget of 0."""
        if isinstance(self.drafter, str):
            return kept_drafter(model) if self.budget > 0 else None
        return self.drafter

    @property
    def active_drafter(self) -> Drafter | None:
        """The drafter, which is "auto" no longer, unless a budget of 0 switches it off."""
        assert not isinstance(self.drafter, str), "drafter_for finds it"
        return self.drafter if self.budget > 0 else None


def _check_drafter(drafter: object) -> None:
    if drafter is None or (isinstance(drafter, str) and drafter == "auto"):
        return
    if not is_drafter(drafter):
        what = repr(drafter[:40]) if isinstance(drafter, str) else f"a {type(drafter).__name__}"
        raise ValueError(
            f'the drafter is {what}: it must be "auto", None for ordinary decoding, or a drafter such as'
            " HierarchyDrafter.for_model(model)"
        )
