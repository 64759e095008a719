"""Token ids in, draft tree out: NumPy and Numba only, so that it runs inside any engine."""

from hdraft.drafting.drafter import UNLIMITED, Drafter, DraftSession, TokenIds
from hdraft.drafting.tree import DraftTree, Source

__all__ = ["UNLIMITED", "DraftSession", "DraftTree", "Drafter", "Source", "TokenIds"]
