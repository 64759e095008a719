"""The embedded model, its databases, and the demonstration: on it, and on a real model of an installed package."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""A 12-million-parameter Llama, trained for this project; its card is the folder's README."""

MODEL_DATABASE = Path(__file__).parent / "database"
"""Its D_m: what it has written before."""

PROMPTS = Path(__file__).parent / "prompts.jsonl"
"""The beginnings that the demonstration continues."""

SMOLLM2 = Path(__file__).parent / "smollm2"
"""Of the real model: its D_m, in the folder `database`, and what it is asked, `prompts.jsonl`."""
