"""The draft-verify loop for Hugging Face models."""

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.costs import measure_costs
from hdraft.decoding.generate import custom_generate, generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.models.support import UnsupportedError
from hdraft.decoding.stats import GenerationStats, Statistics
from hdraft.decoding.stream import StreamedStep, StreamedToken, stream, stream_steps

__all__ = [
    "GenerationStats",
    "GrowingCache",
    "Statistics",
    "StepKind",
    "StreamedStep",
    "StreamedToken",
    "UnsupportedError",
    "custom_generate",
    "generate",
    "measure_costs",
    "stream",
    "stream_steps",
]
