"""The embedded model, its databases, and the demonstration."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""A 12-million-parameter Llama, trained for this project; its card is the folder's README."""

MODEL_DATABASE = Path(__file__).parent / "database"
"""Its D_m: what it has written before."""

PROMPTS = Path(__file__).parent / "prompts.jsonl"
"""The beginnings that the demonstration continues."""
