"""One prompt decoded both ways: by `model.generate` and by `hdraft.stream`."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.decoding import Statistics, StreamedToken, stream
from hdraft.drafting import Drafter, Source
from hdraft.files import json_lines
from hdraft.loading import encode_prompt


@dataclass(frozen=True)
class Prompt:
    """A text to continue; the fields are those of a line of `prompts.jsonl`.

    Attributes:
        id: its name.
        kind: what it is an example of.
        prompt: the text.
        max_new_tokens: the most tokens to write.
        chat: whether it is a message, to be sent through the model's chat template.
        temperature: that tokens are drawn at; None to take the likeliest.
        seed: of the draws.
    """

    id: str
    kind: str
    prompt: str
    max_new_tokens: int
    chat: bool = False
    temperature: float | None = None
    seed: int = 0


def read_prompts(path: Path, ids: Collection[str] | None = None) -> list[Prompt]:
    """Read a file of prompts: all, or those with these ids.

    Raises:
        ValueError: there is none of such an id.
    """
    prompts = [Prompt(**record) for _, record, _ in json_lines(path)]
    if unknown := set(ids or ()) - {prompt.id for prompt in prompts}:
        known = ", ".join(prompt.id for prompt in prompts)
        raise ValueError(f"no prompt {', '.join(sorted(unknown))}: there are {known}")
    return [prompt for prompt in prompts if not ids or prompt.id in ids]


@dataclass(frozen=True)
class Parting:
    """Where two outputs part: after how many tokens, and the next one of each with the model's probability for it."""

    position: int
    texts: tuple[str, str]
    probabilities: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """The outcome of decoding a prompt both ways.

    Attributes:
        prompt: what was continued.
        parting: the first difference between both outputs; None where they are the same.
        tokens: emitted by `model.generate`.
        seconds_generate: of `model.generate`.
        seconds_hdraft: of `hdraft.stream`, without the time that its consumer took.
        statistics: of `hdraft.stream`.
        sources: its tokens by source; None is the model itself.
    """

    prompt: Prompt
    parting: Parting | None
    tokens: int
    seconds_generate: float
    seconds_hdraft: float
    statistics: Statistics
    sources: dict[Source | None, int]

    @property
    def identical(self) -> bool:
        """Whether both gave the same tokens."""
        return self.parting is None

    @property
    def speedup(self) -> float:
        """How many times as fast hdraft was."""
        return self.seconds_generate / self.seconds_hdraft

    @property
    def overhead(self) -> float:
        """The part of hdraft's time that is not in the model's forward passes."""
        return 1 - self.statistics.seconds_model / self.seconds_hdraft

    def share(self, source: Source | None) -> float:
        """The part of hdraft's tokens that came from `source`."""
        return self.sources[source] / sum(self.sources.values())


def compare(
    prompt: Prompt,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: Drafter,
    half_time: Callable[[float], None] = lambda seconds: None,
    show: Callable[[StreamedToken], None] = lambda token: None,
) -> Comparison:
    """Continue a prompt with `model.generate`, then with hdraft, from the same seed.

    Args:
        prompt: what to continue.
        model: the target.
        tokenizer: its tokenizer.
        drafter: what drafts for hdraft.
        half_time: called between the two, with the seconds that `model.generate` took.
        show: called with each of hdraft's tokens.
    """
    input_ids = encode_prompt(tokenizer, prompt.prompt, "auto" if prompt.chat else None)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": prompt.max_new_tokens}
    if prompt.temperature is not None:
        options |= {"do_sample": True, "temperature": prompt.temperature}

    torch.manual_seed(prompt.seed)
    started = perf_counter()
    ordinary = model.generate(input_ids, **options)  # type: ignore[operator]
    seconds_generate = perf_counter() - started
    expected = ordinary[0, input_ids.shape[1] :].tolist()
    half_time(seconds_generate)

    statistics = Statistics()
    emitted: list[int] = []
    sources: dict[Source | None, int] = dict.fromkeys((*Source, None), 0)
    showing = 0.0
    torch.manual_seed(prompt.seed)
    started = perf_counter()
    for token in stream(model, input_ids, drafter, tokenizer=tokenizer, statistics=statistics, **options):
        received = perf_counter()
        emitted.append(token.id)
        sources[token.source] += 1
        show(token)
        showing += perf_counter() - received
    seconds_hdraft = perf_counter() - started - showing

    parting = None if emitted == expected else _parting(model, tokenizer, input_ids, expected, emitted)
    return Comparison(prompt, parting, len(expected), seconds_generate, seconds_hdraft, statistics, sources)


@torch.no_grad()
def _parting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    expected: list[int],
    emitted: list[int],
) -> Parting:
    pairs = enumerate(zip_longest(expected, emitted))
    position, pair = next((position, pair) for position, pair in pairs if pair[0] != pair[1])
    text = torch.cat([input_ids, torch.tensor([expected[:position]], dtype=torch.long)], dim=1)
    probabilities = model(text).logits[0, -1].float().softmax(-1)
    texts = ["the end" if token is None else str(tokenizer.decode([token])) for token in pair]
    chances = [0.0 if token is None else float(probabilities[token]) for token in pair]
    return Parting(position, (texts[0], texts[1]), (chances[0], chances[1]))
