"""bfloat16 or float32: whichever decodes faster on this machine, measured once for a model's folder."""

import json
from contextlib import suppress
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from hdraft import files
from hdraft.decoding.drafts import NO_DRAFT
from hdraft.decoding.target import Target
from hdraft.drafting.tree import DraftTree
from hdraft.evaluation.machine import machine
from hdraft.text import parse_json

_DTYPES = ("bfloat16", "float32")
_TEXT = 64  # tokens before a step
_DRAFT = 16  # draft tokens, as many as are common
_ROUNDS = 10
_SECONDS = 5.0  # after which no further round begins


def faster_dtype(folder: Path, console: Console) -> str:
    """The number format whose steps are shorter here, one ordinary step and one over a draft; says so in a line."""
    file = folder / "dtype.json"
    here = {**machine(), "threads": torch.get_num_threads()}
    figures: dict[str, list[float]] = {}
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = parse_json(file.read_bytes())
        if kept["machine"] == here:
            figures = {name: [float(each) for each in kept["milliseconds"][name]] for name in _DTYPES}
    if not figures:
        begin = perf_counter()
        figures = _milliseconds(folder)
        if perf_counter() - begin < _SECONDS:  # else of a busy machine, perhaps, and measured again the next time
            with suppress(OSError):
                files.replace(file, json.dumps({"machine": here, "milliseconds": figures}, indent=1).encode())
    best, other = sorted(_DTYPES, key=lambda name: sum(figures[name]))
    (plain, draft), (other_plain, other_draft) = figures[best], figures[other]
    console.print(
        f"dtype  {best}, the faster one here: {plain:.0f} ms a step, {draft:.0f} ms over {_DRAFT} draft tokens;"
        f" {other}: {other_plain:.0f} and {other_draft:.0f} ms",
        highlight=False,
    )
    return best


@torch.no_grad()
def _milliseconds(folder: Path) -> dict[str, list[float]]:
    """Of an ordinary step and one over a draft: the shortest of each, taken in turn, so that busy moments drop out."""
    shortest = {name: [inf, inf] for name in _DTYPES}
    targets = {name: _target(folder, name) for name in _DTYPES}
    drafts = [NO_DRAFT, DraftTree(np.zeros(_DRAFT), np.arange(-1, _DRAFT - 1, dtype=np.int32))]
    end = perf_counter() + _SECONDS
    for round in range(_ROUNDS):
        if round and perf_counter() > end:
            break
        for name, target in targets.items():
            for index, draft in enumerate(drafts):
                begin = perf_counter()
                target.forward(np.zeros(1, np.int64), draft)
                shortest[name][index] = min(shortest[name][index], 1000 * (perf_counter() - begin))
                target.forget(_TEXT)
    return shortest


def _target(folder: Path, dtype: str) -> Target:
    """The model, with some text behind it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    most = _TEXT + 1 + _DRAFT
    target = Target(model, "chain", step="dynamic", budget=_DRAFT, max_length=most, device=model.device)
    target.forward(np.zeros(_TEXT, np.int64))
    return target
