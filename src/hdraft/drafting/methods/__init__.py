"""The published methods, one file each, by the same protocol: the paper's hierarchy, REST, prompt lookup, Lookahead.

`published` is the paper's: `ngrams` are its D_c and D_m, `retrieval` is how it and REST ask D_s, and
`lookahead_branch` runs beside its drafts and those of Lookahead Decoding.
"""

from hdraft.drafting.methods.lookahead import LookaheadDrafter
from hdraft.drafting.methods.prompt_lookup import PromptLookupDrafter
from hdraft.drafting.methods.published import PublishedDrafter
from hdraft.drafting.methods.rest import RestDrafter

__all__ = ["LookaheadDrafter", "PromptLookupDrafter", "PublishedDrafter", "RestDrafter"]
