"""The draft-verify loop: draft a tree, forward it, keep the path that the target itself takes.

The loop is a generator that yields after every step, so that one piece of code serves `generate`, which drains it, and
`stream`, which hands its tokens on.
"""

from collections.abc import Generator
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.generation.streamers import BaseStreamer

from hdraft.decoding.drafts import NO_DRAFT, Drafts
from hdraft.decoding.stats import Statistics
from hdraft.decoding.target import Target
from hdraft.decoding.verification import Choice, most_likely, verify
from hdraft.drafting.drafter import Drafter
from hdraft.drafting.tree import Source


class Step(NamedTuple):
    """What one forward pass emitted."""

    tokens: list[int]
    sources: list[Source | None]
    """For each token, the database that had drafted it; None for the target's own."""
    finished: bool


@torch.no_grad()  # on a generator: set at every resumption, never while the consumer runs
def draft_and_verify(
    target: Target,
    choice: Choice,
    drafter: Drafter | None,
    budget: int,
    costs: npt.NDArray[np.float64] | None,
    max_length: int,
    prefill_chunk: int | None,
    streamer: BaseStreamer | None,
    statistics: Statistics,
    keep_cache: bool,
) -> Generator[Step, None, None]:
    """Emit tokens until `choice` stops, a `Step` for each forward pass.

    Args:
        target: at the start of the sequence, or after a part of it.
        choice: holds the prompt, chooses tokens, and says when to stop.
        drafter: None for ordinary decoding.
        budget: the most draft tokens in one step; 0 for ordinary decoding.
        costs: for the drafter, see `Drafter.session`.
        max_length: the length of the sequence at which `choice` stops at the latest.
        prefill_chunk: the most tokens of the prompt in one forward pass; None for all.
        streamer: is given each token.
        statistics: filled in.
        keep_cache: whether the target's cache is to hold the sequence at the end.
    """
    resumed = perf_counter()
    prompt = choice.sequence()[0].numpy(force=True)
    target.resume(prompt)
    text, length = prompt[target.length :], len(prompt)
    while prefill_chunk is not None and len(text) > prefill_chunk:
        target.forward(text[:prefill_chunk])
        text = text[prefill_chunk:]
        statistics.seconds_model += perf_counter() - target.called
        statistics.steps += 1
        statistics.accepted_lengths.append(0)
    started = perf_counter()
    drafts = Drafts(drafter if budget > 0 else None, prompt, costs)
    statistics.seconds_drafting += perf_counter() - started
    finished = False
    try:
        while not finished:
            if target.restarts(choice.sequence):
                text = choice.sequence()[0].numpy(force=True)
            started = perf_counter()
            deepest = target.deepest_draft(len(text))
            depth = min(max_length - length - 1, deepest)
            tree = window = NO_DRAFT
            if depth > 0:
                tree = target.ranks.tree(drafts.propose(budget, depth), budget)
                window = drafts.window(deepest)
            if target.own_masks and len(tree):
                tree = tree.best_chain(budget)
            drafted = perf_counter()
            logits = target.forward(text, tree.beside(window) if len(window) else tree)
            if target.preparing:
                choice.put_off(target.preparing)
            choice.read(logits[: 1 + len(tree)])
            forwarded = perf_counter()
            tokens, nodes, finished = verify(tree, choice, streamer)
            verified = perf_counter()
            target.keep(nodes[: len(tokens) - 1])
            kept = perf_counter()
            following = most_likely(logits[-drafts.columns :]) if len(window) else None
            drafts.extend(tokens, None if following is None else target.ranks.tokens(following))
            statistics.seconds_drafting += drafted - started + perf_counter() - kept
            text, length = np.array(tokens[-1:]), length + len(tokens)

            sources = [Source(source) for source in tree.sources[nodes].tolist()]
            statistics.add(tokens, sources, len(tree))
            statistics.seconds_inputs += target.called - drafted
            statistics.seconds_model += forwarded - target.called
            statistics.seconds_verification += verified - forwarded
            statistics.seconds_cache += kept - verified
            statistics.seconds += perf_counter() - resumed
            yield Step(tokens, [*sources, *[None] * (len(tokens) - len(nodes))], finished)
            resumed = perf_counter()
    finally:
        target.close(choice.sequence()[0].numpy(force=True) if keep_cache else None)
        started = perf_counter()
        drafts.close()
        statistics.seconds_drafting += perf_counter() - started
        statistics.seconds += perf_counter() - started
