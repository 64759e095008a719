"""Prompts for a chat model that serves many clients: mixed ones, and one kind of work again and again. All are our own.

`vllm_prompts.json` has templates and the words that they are filled with. No two prompts are the same: the first 160 of
a workload and the next 160 have none in common.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

WORKLOADS = ("mixed", "repeated")


def prompts(workload: str, first: int, count: int) -> list[str]:
    """The prompts `first` to `first + count` of a workload, the same each time."""
    rng = np.random.default_rng(0)
    templates = _DATA[workload]
    made: dict[str, None] = {}

    def word(place: re.Match[str]) -> str:
        words = _DATA["words"][place[1]]
        return str(words[int(rng.integers(len(words)))])

    for template in itertools.cycle(templates):
        if len(made) == first + count:
            break
        chosen = {name: re.sub(r"(\D+)\d*", word, name) for name in dict.fromkeys(re.findall(r"{(\w+)}", template))}
        made[template.format(**chosen)] = None
    return list(made)[first:]
