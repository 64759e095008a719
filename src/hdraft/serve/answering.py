"""One answer of the model, step by step, with what clients may want to know of each step."""

import secrets
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.decoding import GenerationStats, GrowingCache, StepKind, StreamedStep, stream_steps
from hdraft.drafting import Source
from hdraft.serve.conversations import Conversations
from hdraft.serve.preparing import Job
from hdraft.serve.stops import Stops
from hdraft.serve.texts import TokenTexts

_LEAST = -9999.0  # stands for the logarithm of 0, which JSON does not hold


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a token was, to the target itself: before temperature, penalties and grammars.

    Attributes:
        token: its id.
        logprob: the logarithm of its probability.
        top: the likeliest tokens there, and theirs.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to an answer.

    Attributes:
        texts: of its tokens; '' where a character is incomplete, or may begin a text that ends the answer.
        sources: of its tokens; None for the target's own.
        step: its number, from 1; passes over parts of a long prompt do not count.
        finish: why the answer ends here, "stop" or "length"; None where it does not.
        seconds: since the model began with the request.
        likelihoods: of its tokens, where they are asked for, but for one that ends the answer.
        tree: what the step verified, where steps are asked for; see docs/serve.md.
    """

    texts: list[str]
    sources: list[Source | None]
    step: int
    finish: str | None
    seconds: float
    likelihoods: list[Likelihood] | None = None
    tree: dict[str, Any] | None = None


@dataclass(slots=True)
class Figures:
    """What a request costs, counted while it runs."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_prediction_tokens: int = 0
    finish: str = ""
    seconds_queued: float = 0.0
    seconds: float = 0.0
    statistics: GenerationStats = field(default_factory=GenerationStats)


class Answerer:
    """Runs requests on a model, one after another. For one thread.

    Args:
        model, tokenizer: the target.
        budget: the most draft tokens of a step.
        step: how steps are run, see `StepKind`.
        cache_bytes: the most memory for keys and values of conversations, between their turns.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: int,
        step: StepKind | None,
        cache_bytes: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.texts = TokenTexts(tokenizer)
        self.budget = budget
        self.step = step
        self.conversations = Conversations(model.config, cache_bytes)

    def answer(self, job: Job, figures: Figures, stopped: Event) -> Generator[Piece, None, None]:
        """Yield the answer, until its end or until it is stopped, which is looked at between steps.

        Raises:
            UnsupportedError, ValueError: as `generate` does.
        """
        asked, started = job.asked, perf_counter()
        figures.prompt_tokens = len(job.ids)
        if asked.cache:
            cache, figures.cached_tokens = self.conversations.take(job.tenant, job.ids)
        else:
            cache = GrowingCache(self.model.config)
        if job.options["do_sample"]:
            torch.manual_seed(secrets.randbits(63) if asked.sampling.seed is None else asked.sampling.seed)
        prompt = torch.tensor([job.ids], device=self.model.device)
        failed = True  # and the cache half written
        try:
            steps = stream_steps(
                self.model,
                prompt,
                job.drafter,
                tokenizer=self.tokenizer,
                budget=self.budget if asked.budget is None else asked.budget,
                statistics=figures.statistics,
                step=self.step,
                references=job.references,
                attention_mask=torch.ones_like(prompt),
                past_key_values=cache,
                **job.options,
            )
            with closing(steps):
                yield from self._pieces(job, steps, figures, stopped, started)
            failed = False
        except GeneratorExit:
            failed = False
            raise
        finally:
            figures.seconds = perf_counter() - started
            if asked.cache and not failed:
                self.conversations.give(job.tenant, cache)

    def _pieces(
        self,
        job: Job,
        steps: Generator[StreamedStep, None, None],
        figures: Figures,
        stopped: Event,
        started: float,
    ) -> Generator[Piece, None, None]:
        asked, stops, number = job.asked, Stops(job.asked.stop), 0
        for step in steps:
            if stopped.is_set():
                return
            if not step.tokens:  # a part of the prompt
                continue
            number += 1
            texts: list[str] = []
            for token in step.tokens:
                is_last = step.finished and len(texts) == len(step.tokens) - 1
                texts.append(stops.add(token.text, last=is_last))
                if stops.found:
                    break
            tokens = step.tokens[: len(texts)]
            figures.completion_tokens += len(tokens)
            if job.references:
                figures.drafted_prediction_tokens += int((step.tree.sources == Source.REFERENCE).sum())
            ended = stops.found or step.finished
            by_itself = stops.found or tokens[-1].id in self._ends()
            if ended:
                figures.finish = "stop" if by_itself else "length"
            likelihoods = None
            if asked.top_logprobs is not None:
                told = len(tokens) - (step.finished and by_itself and not stops.found)
                likelihoods = _likelihoods(step, told, asked.top_logprobs)
            yield Piece(
                texts,
                [token.source for token in tokens],
                number,
                figures.finish or None,
                perf_counter() - started,
                likelihoods,
                self._tree(step) if asked.steps else None,
            )
            if ended:
                return

    def _tree(self, step: StreamedStep) -> dict[str, Any]:
        tree = step.tree
        return {
            "texts": [self.texts[token] for token in tree.tokens.tolist()],
            "parents": tree.parents.tolist(),
            "sources": [Source(source).name.lower() for source in tree.sources.tolist()],
            "probabilities": [round(each, 4) for each in tree.probabilities.tolist()],
            "accepted": list(step.accepted),
        }

    def _ends(self) -> list[int]:
        ends: Any = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]


def _likelihoods(step: StreamedStep, count: int, top: int) -> list[Likelihood]:
    """Of the first tokens of a step, with the `top` likeliest at each."""
    rows = step.logits()[:count].float().log_softmax(-1)
    ids = [token.id for token in step.tokens[:count]]
    own = rows[range(count), ids].clamp(min=_LEAST).tolist() if count else []
    best = rows.topk(top) if top else None
    tops: list[list[tuple[int, float]]] = [[] for _ in ids]
    if best is not None:
        values, indices = best.values.clamp(min=_LEAST).tolist(), best.indices.tolist()
        tops = [list(zip(*pair, strict=True)) for pair in zip(indices, values, strict=True)]
    return [Likelihood(*each) for each in zip(ids, own, tops, strict=True)]
