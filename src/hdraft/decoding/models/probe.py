"""Whether a model of an unknown family verifies draft trees: tried once, on the model itself.

Two branches are forwarded behind a text, longer than a short window; the second is kept, and the text goes on. At every
node the logits must be those of a plain pass over that node's text. If a tree fails, a chain of which a part is kept is
tried.
"""

from contextlib import nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.models.adapters import only_weights
from hdraft.decoding.models.compiling import is_compiled, uncompiled
from hdraft.decoding.models.support import Shape, UnsupportedError, input_device, known_shape, takes_masks, tolerance
from hdraft.decoding.target import Target
from hdraft.drafting.drafter import vocabulary_size
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
        by_attention[attention] = probe(model, ("tree", "chain") if takes_masks(config) else ("chain",))
    return by_attention[attention]


SHORT_WINDOW = 64
"""A window or chunk up to which the text is longer, to see that the model's own masks follow it."""


@torch.no_grad()
def probe(model: PreTrainedModel, shapes: tuple[Shape, ...] = ("tree", "chain")) -> Shape:
    """The first of `shapes` that works: eight short forward passes each.

    Raises:
        UnsupportedError: neither gives the logits of plain passes.
    """
    reasons = []
    for shape in shapes:
        try:
            with uncompiled() if is_compiled(model) else nullcontext():
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
    vocabulary = vocabulary_size(model)
    target = Target(model, shape, device=input_device(model))
    length = _text_length(target)
    ids = [(vocabulary // 2 + offset) % vocabulary for offset in range(length + 4)]
    text, (d, e, f, g) = ids[:length], ids[length:]
    if shape == "tree":
        tree = DraftTree([d, e, f, g], [-1, -1, 0, 1])
        nodes, kept = [[d], [e], [d, f], [e, g]], [1, 3]
    else:
        tree = DraftTree([d, e, f], [-1, 0, 1])
        nodes, kept = [[d], [d, e], [d, e, f]], [0]
    logits = target.forward(np.array(text), tree)
    target.keep(kept)
    after = [int(tree.tokens[node]) for node in kept] + text[-1:]
    drafted = torch.cat((logits, target.forward(np.array(text[-1:]))))
    plain = torch.stack([_plain(model, [*text, *node]) for node in ([], *nodes, after)])
    spread = float(plain.std(dim=-1).max())
    return target.ranks.number(float((drafted.float() - plain).abs().max()) / max(spread, 1e-12))


def _text_length(target: Target) -> int:
    config = target.model.config.get_text_config(decoder=True)
    windows = [getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    longer = 2 + max((window for window in windows if window <= SHORT_WINDOW), default=0)
    return longer if longer > 3 and target.deepest_draft(longer) >= 3 else 3


def _plain(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """float32[vocabulary], the logits after the last of `ids`, as `generate` gets them from its first pass."""
    input_ids = torch.tensor([ids], device=input_device(model))
    inputs = cast(Any, model).prepare_inputs_for_generation(input_ids, is_first_iteration=True, use_cache=True)
    logits: Tensor = model(**inputs, return_dict=True).logits
    return logits[0, -1].float()
