"""The published methods, one file each, by the same protocol: the paper's hierarchy, REST, prompt lookup, Lookahead."""

from hdraft.drafting.methods.baselines import LookaheadDrafter, PromptLookupDrafter, RestDrafter
from hdraft.drafting.methods.published import PublishedDrafter

__all__ = ["LookaheadDrafter", "PromptLookupDrafter", "PublishedDrafter", "RestDrafter"]
