"""Whether a model of an unknown family verifies draft trees: tried once, on the model itself.

Two branches are forwarded behind a text, longer than a short window; the second is kept, and the text goes on. At every
node the logits must be those of a plain pass over that node's text. If a tree fails, or the model keeps states that
cannot branch, chains are tried: one of which a part is kept, and one that is kept whole.
"""

from contextlib import nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.cache import GrowingCache, keeps_states
from hdraft.decoding.drafts import NO_DRAFT
from hdraft.decoding.models.adapters import only_weights
from hdraft.decoding.models.compiling import is_compiled, uncompiled
from hdraft.decoding.models.names import prepared_cache_argument, takes
from hdraft.decoding.models.support import (
    Shape,
    UnsupportedError,
    apart,
    input_device,
    known_shape,
    takes_masks,
    tolerance,
)
from hdraft.decoding.state_layer import StateLayer
from hdraft.decoding.target import Target
from hdraft.drafting.drafter import UNLIMITED, vocabulary_size
from hdraft.drafting.tree import DraftTree

_probed: WeakKeyDictionary[PreTrainedModel, dict[str, Shape]] = WeakKeyDictionary()


def draft_shape(model: PreTrainedModel) -> Shape:
    """The drafts that the model can verify.

    Raises:
        UnsupportedError: not even chains.
    """
    known = known_shape(model)
    if known is not None and type(model).__module__.startswith("transformers.") and only_weights(model):
        return known  # as tested
    config = model.config.get_text_config(decoder=True)
    attention = str(config._attn_implementation)
    by_attention = _probed.setdefault(model, {})
    if attention not in by_attention:
        may_branch = takes_masks(config) and not keeps_states(config)
        by_attention[attention] = probe(model, ("tree", "chain") if may_branch else ("chain",))
    return by_attention[attention]


SHORT_WINDOW = 64
"""A window or chunk up to which the text is longer, to see that the model's own masks follow it."""

_ROUNDING = 4.0
"""Times of what a model's own two ways to read a text differ by, in 16 bits, that a draft may differ by as well."""

SHORT_TEXT = 12
"""Tokens behind which states tell of the text before."""


@torch.no_grad()
def probe(model: PreTrainedModel, shapes: tuple[Shape, ...] = ("tree", "chain")) -> Shape:
    """The first of `shapes` that works: about ten short forward passes each.

    Raises:
        UnsupportedError: neither gives the logits of plain passes.
    """
    reasons = []
    for shape in shapes:
        try:
            with uncompiled() if is_compiled(model) else nullcontext():
                if shape == "chain" and _ignores_states(model):
                    reasons.append(f"{shape}: a pass over several tokens ignores the recurrent states before it")
                    continue
                difference = _difference(model, shape)
        except Exception as error:  # whatever an unknown model's forward may raise means that it does not work
            reasons.append(f"{shape}: {type(error).__name__}: {error}")
        else:
            if difference < tolerance(model.dtype):
                return shape
            reasons.append(f"{shape}: logits differ by {difference:.1g} of their spread")
    raise UnsupportedError(
        f"{type(model).__name__} does not verify drafts as plain decoding would ({'; '.join(reasons)}):"
        " use model.generate for it"
    )


def _difference(model: PreTrainedModel, shape: Shape) -> float:
    target = Target(model, shape, device=input_device(model))
    text, (d, e, f, g) = _text(target)
    length = len(text)
    drafted: list[Tensor] = []
    contexts: list[list[int]] = []

    def step(tree: DraftTree, path: list[int], nodes: list[list[int]]) -> None:
        drafted.append(target.forward(np.array(text[target.verified :]), tree))
        contexts.extend([*text, *node] for node in [[], *nodes])
        target.keep(path)
        text.extend([*(int(tree.tokens[node]) for node in path), g])

    if shape == "tree":
        step(DraftTree([d, e, f, g], [-1, -1, 0, 1]), [1, 3], [[d], [e], [d, f], [e, g]])
    else:
        target.forward(np.array(text[:-1]))  # a draft behind cached text: states are of no use at its beginning
        target.keep([])
        step(DraftTree([d, e, f], [-1, 0, 1]), [0], [[d], [d, e], [d, e, f]])
        step(DraftTree([e, f], [-1, 0]), [0, 1], [[e], [e, f]])
    step(NO_DRAFT, [], [])
    prompt = length - 1 if len(target.cache.states) else UNLIMITED
    plain = torch.stack([_plain(model, context, prompt) for context in contexts])
    difference = apart(torch.cat(drafted), plain)
    if prompt < UNLIMITED and model.dtype.itemsize < 4:  # a recurrent rule rounds unlike one for several tokens
        whole = torch.stack([_plain(model, context) for context in contexts])
        difference = max(0.0, difference - _ROUNDING * apart(whole, plain))
    return target.ranks.number(difference)


def _ignores_states(model: PreTrainedModel) -> bool:
    """Whether recurrent states that are no numbers any more leave a pass over two tokens as it is."""
    target = Target(model, "chain", device=input_device(model))
    if not len(target.cache.states):
        return False
    text, following = _text(target)
    target.forward(np.array(text))
    recurrent = [
        state
        for layer in target.cache.layers
        if isinstance(layer, StateLayer)
        for state in layer.recurrent_states.values()
        if state is not None
    ]
    for state in recurrent:
        state.fill_(torch.nan)
    return len(recurrent) > 0 and bool(target.forward(np.array(following[:2])).isfinite().all())


def _text(target: Target) -> tuple[list[int], list[int]]:
    """A text, and four tokens to follow it, all of them different as far as the vocabulary allows."""
    vocabulary, length = vocabulary_size(target.model), _text_length(target)
    ids = [(vocabulary // 2 + offset) % vocabulary for offset in range(length + 4)]
    return ids[:length], ids[length:]


def _text_length(target: Target) -> int:
    config = target.model.config.get_text_config(decoder=True)
    windows = [getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    longer = 2 + max((window for window in windows if window <= SHORT_WINDOW), default=0)
    longer = max(longer, SHORT_TEXT) if len(target.cache.states) else longer
    return longer if longer > 3 and target.places_behind(longer) >= 3 else 3


def _plain(model: PreTrainedModel, ids: list[int], prompt: int = UNLIMITED) -> Tensor:
    """float32[vocabulary], the logits after the last of `ids`, as `generate` gets them behind a prompt of so many."""
    started: dict[str, Any] = {}
    if prompt < len(ids):
        started = {prepared_cache_argument(model): GrowingCache(model.config.get_text_config(decoder=True))}
    for end in range(min(prompt, len(ids)), len(ids) + 1):
        input_ids = torch.tensor([ids[:end]], device=input_device(model))
        more: dict[str, Any] = {"next_sequence_length": 1} if end > prompt else {"is_first_iteration": True}
        if started and takes(model, "position_ids"):
            more["position_ids"] = torch.arange(end, device=input_ids.device)[None]
        inputs = cast(Any, model).prepare_inputs_for_generation(input_ids, use_cache=True, **started, **more)
        logits: Tensor = model(**inputs, return_dict=True).logits
    return logits[0, -1].float()
