"""Corpora and generations in, databases out."""

from hdraft.building.databases import build_model, build_statistics
from hdraft.building.generating import generate_outputs
from hdraft.building.reading import BuildError, Progress

__all__ = ["BuildError", "Progress", "build_model", "build_statistics", "generate_outputs"]
