"""hdraft: the same text from a language model, faster, by Hierarchy Drafting.

Names are imported when they are first used, so that `import hdraft.drafting` never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdraft.decoding.costs import measure_costs
    from hdraft.decoding.generate import custom_generate, generate
    from hdraft.decoding.models.support import UnsupportedError
    from hdraft.decoding.stats import GenerationStats, Statistics
    from hdraft.decoding.stream import StreamedToken, stream
    from hdraft.drafting import Drafter, DraftSession, DraftTree, Source
    from hdraft.drafting.databases.model import ModelDatabase
    from hdraft.drafting.databases.statistics import StatisticsDatabase
    from hdraft.drafting.databases.storage import DatabaseError
    from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
    from hdraft.drafting.methods import LookaheadDrafter, PromptLookupDrafter, PublishedDrafter, RestDrafter

__version__ = "0.1.0"

_MODULES = {
    "DatabaseError": "hdraft.drafting.databases.storage",
    "DraftSession": "hdraft.drafting",
    "DraftTree": "hdraft.drafting",
    "Drafter": "hdraft.drafting",
    "GenerationStats": "hdraft.decoding",
    "HierarchyDrafter": "hdraft.drafting.hierarchy.drafter",
    "LookaheadDrafter": "hdraft.drafting.methods",
    "ModelDatabase": "hdraft.drafting.databases.model",
    "PromptLookupDrafter": "hdraft.drafting.methods",
    "PublishedDrafter": "hdraft.drafting.methods",
    "RestDrafter": "hdraft.drafting.methods",
    "Source": "hdraft.drafting",
    "Statistics": "hdraft.decoding",
    "StatisticsDatabase": "hdraft.drafting.databases.statistics",
    "StreamedToken": "hdraft.decoding",
    "UnsupportedError": "hdraft.decoding",
    "custom_generate": "hdraft.decoding",
    "generate": "hdraft.decoding",
    "measure_costs": "hdraft.decoding",
    "stream": "hdraft.decoding",
}

__all__ = [
    "DatabaseError",
    "DraftSession",
    "DraftTree",
    "Drafter",
    "GenerationStats",
    "HierarchyDrafter",
    "LookaheadDrafter",
    "ModelDatabase",
    "PromptLookupDrafter",
    "PublishedDrafter",
    "RestDrafter",
    "Source",
    "Statistics",
    "StatisticsDatabase",
    "StreamedToken",
    "UnsupportedError",
    "__version__",
    "custom_generate",
    "generate",
    "measure_costs",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
