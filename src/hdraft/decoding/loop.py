"""The draft-verify loop: draft a tree, forward it, keep the path that the target itself takes.

The loop is a generator that yields after every step, so that one piece of code serves `generate`, which takes all steps
at once, and `stream`, which hands their tokens on.
"""

from collections.abc import Generator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hdraft.decoding.drafts import NO_DRAFT, Drafts
from hdraft.decoding.request import DecodingRequest
from hdraft.decoding.stats import GenerationStats, Stopwatch
from hdraft.decoding.target import Target
from hdraft.decoding.verification import Choice, verify
from hdraft.drafting.drafter import lookahead_nodes
from hdraft.drafting.hierarchy.chains import ChainRule
from hdraft.drafting.tree import DraftTree, Source

Ids = npt.NDArray[np.int64]


class Emitted(NamedTuple):
    """The tokens that one step emitted, and the tree that it verified."""

    tokens: list[int]
    """No token after a chunk of the prompt that is not its last."""
    sources: list[Source | None]
    """For each token, the database that had drafted it; None for the target's own."""
    finished: bool
    tree: DraftTree
    nodes: list[int]
    """Those of the tree that hold the tokens, one short if the last token was not drafted."""
    logits: Tensor | None
    """float[1 + n, vocabulary], the target's own after the text and after each node; until the next step."""


@torch.no_grad()  # on a generator: set at every resumption, never while the consumer runs
def draft_and_verify(
    target: Target,
    choice: Choice,
    request: DecodingRequest,
    prefill_chunk: int | None = None,
    keep_cache: bool = False,
) -> Generator[Emitted, None, None]:
    """Emit tokens until `choice` stops, those of one forward pass at a time.

    Args:
        target: at the start of the sequence, or after a part of it; `choice` stops at its `max_length` at the latest.
        choice: holds the prompt, chooses tokens, and says when to stop.
        request: the drafter, its budget and costs, and who is told of the tokens.
        prefill_chunk: the most tokens of the prompt in one forward pass; None for all.
        keep_cache: whether the target's cache is to hold the sequence at the end.
    """
    stats = GenerationStats() if request.statistics is None else request.statistics
    watch = Stopwatch(stats)
    prompt = _ids(choice)
    text = yield from _prefill(target, target.resume(prompt), prefill_chunk, watch)
    watch.lap()
    drafts = Drafts(request.active_drafter, target.readable(prompt), request.costs, request.references, choice.draws)
    chains = ChainRule(request.costs) if request.costs is not None and len(target.cache.states) else None
    watch.lap("drafting")
    finished = False
    try:
        while not finished:
            if target.restarts(choice.sequence):
                text = _ids(choice)
            watch.lap()
            tree, branch = _draft(drafts, target, len(text), request, chains)
            watch.lap("drafting")
            began = watch.last
            logits = target.forward(text, tree.beside(branch) if len(branch) else tree, drafts.recycles)
            watch.lap("inputs", until=target.inputs_ready)
            if target.seconds_preparing:
                choice.set_clock_back(target.seconds_preparing)
            choice.read(logits[: 1 + len(tree)], partial(target.most_likely, logits, slice(1 + len(tree))))
            watch.lap("model")
            if request.learnt is not None and len(text) == 1 and not target.seconds_preparing:
                request.learnt.record(target.rows - 1 - len(branch), watch.last - began)
            tokens, nodes, finished = verify(tree, choice, request.streamer)
            watch.lap("verification")
            target.keep(nodes[: len(tokens) - 1])
            watch.lap("cache")
            beside = slice(-len(branch), None)
            predicted = target.ranks.tokens(target.most_likely(logits, beside)) if len(branch) else None
            drafts.extend(tokens, predicted, partial(target.candidates, tree, logits))
            watch.lap("drafting")

            text = np.array(tokens[-1:])
            sources = [Source(source) for source in tree.sources[nodes].tolist()]
            stats.add(tokens, sources, len(tree), target.kind)
            if chains is not None:
                chains.record(target.rows - 1, len(tokens))
            watch.lap()
            yield Emitted(
                tokens, [*sources, *[None] * (len(tokens) - len(nodes))], finished, tree, nodes, logits[: 1 + len(tree)]
            )
            watch.skip()
    finally:
        target.close(_ids(choice) if keep_cache else None)
        watch.skip()
        drafts.close()
        watch.lap("drafting")


def _ids(choice: Choice) -> Ids:
    """The sequence so far."""
    return choice.sequence()[0].numpy(force=True)


def _prefill(target: Target, text: Ids, chunk: int | None, watch: Stopwatch) -> Generator[Emitted, None, Ids]:
    """Forward `text` chunk by chunk; its last chunk is returned, and goes with the first draft."""
    while chunk is not None and len(text) > chunk:
        target.forward(text[:chunk])
        watch.lap("inputs", until=target.inputs_ready)
        watch.lap("model")
        watch.stats.add([], [], 0, target.kind)
        text = text[chunk:]
        yield Emitted([], [], False, NO_DRAFT, [], None)
        watch.skip()
    return text


def _draft(
    drafts: Drafts, target: Target, text: int, request: DecodingRequest, chains: ChainRule | None
) -> tuple[DraftTree, DraftTree]:
    """The tree to verify behind `text` tokens, and the lookahead branch to run beside it: rank 0's, on every rank."""
    budget = target.most_drafted(request.budget)
    deepest = target.deepest_draft(text)
    depth = min(target.max_length - target.verified - text - 1, deepest)
    if depth <= 0:
        return NO_DRAFT, NO_DRAFT
    tree = drafts.propose(budget, depth)
    if target.chains_only and len(tree):
        tree = tree.best_chain(budget)
        if chains is not None and target.rereads:
            tree = chains.cut(tree, len(target.unread))
    tree = target.ranks.tree(tree, budget)
    branch, room = drafts.branch(deepest), lookahead_nodes(request.active_drafter)
    return tree, target.ranks.tree(branch, room) if room else branch
