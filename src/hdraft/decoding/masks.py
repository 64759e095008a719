"""Attention masks over a draft tree, one for each kind of layer.

A step forwards m tokens of text and n draft nodes. The text attends causally; a node attends to the text and to its
ancestors. A window or a chunk counts positions in the sequence, where a node stands at its depth, and not cache slots,
where siblings stand one behind the other.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PretrainedConfig

from hdraft.decoding.models.support import UnsupportedError
from hdraft.drafting.tree import DraftTree
from hdraft.drafting.tree_masks import UNBOUNDED, fill_mask, fill_padded_mask


class Span(NamedTuple):
    """How far back a layer looks: over a window that slides with the token, or over the fixed chunk it lies in."""

    size: int = UNBOUNDED
    chunked: bool = False

    @property
    def window(self) -> int | None:
        """Tokens that the layer's cache has to hold, the next one included; None for all."""
        return None if self.size == UNBOUNDED else self.size


def layer_spans(config: PretrainedConfig) -> dict[str, Span] | Span:
    """The spans of a model's layers: by layer type where its forward takes a mask for each type, else the only one.

    The distinction is that of transformers' `create_masks_for_generate`.

    Raises:
        UnsupportedError: a layer type that is not known.
    """
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    if hasattr(config, "layer_types"):
        spans = {
            "full_attention": Span(),
            "sliding_attention": Span(window or UNBOUNDED),
            "chunked_attention": Span(chunk or UNBOUNDED, chunked=True),
        }
        if unknown := set(config.layer_types) - spans.keys():
            names = ", ".join(sorted(unknown))
            raise UnsupportedError(f"layers of type {names} take masks that hdraft does not make: use model.generate")
        return {layer_type: spans[layer_type] for layer_type in set(config.layer_types)}
    if window is not None:
        return Span(window)
    return Span() if chunk is None else Span(chunk, chunked=True)


def tree_mask(cached: int, text: int, tree: DraftTree, span: Span, padding: int = 0) -> Tensor:
    """bool[1, 1, m + n, k + m + n]: True where a row, of m text tokens and n nodes, may look at a column.

    Args:
        cached: tokens in the cache; the layer offers the last k = min(cached, span - 1) of them.
        text: m, tokens of text in this step; at least 1.
        tree: the n nodes behind them.
        span: how far back the layer looks.
        padding: tokens of it that the sequence begins with: chunks count from the first behind them.
    """
    offered = min(cached, span.size - 1)
    rows = text + len(tree)
    mask = np.zeros((rows, offered + rows), np.bool_)
    fill_mask(mask, cached, offered, text, tree.parents, tree.depths, span.size, span.chunked, padding)
    return torch.from_numpy(mask)[None, None]


def padded_rows(
    earliest: npt.NDArray[np.int64],
    among: npt.NDArray[np.bool_],
    cached: int,
    dropped: int,
    tree: DraftTree,
    span: Span,
    padding: int,
) -> None:
    """Fill in which slots the rows of a static step may look at: the last text token, a tree behind it, and padding.

    Args:
        earliest: int64[rows], filled in: the first slot before the step's own that each row may look at.
        among: bool[rows, rows], filled in: True where a row may look at another. Padding looks at row 0 alone.
        cached: tokens before the step.
        dropped: how many of them are in no slot any more.
        tree: n < rows nodes.
        span: how far back the layer looks.
        padding: tokens that the sequence begins with and no row looks at.
    """
    fill_padded_mask(earliest, among, cached, dropped, tree.parents, tree.depths, span.size, span.chunked, padding)
