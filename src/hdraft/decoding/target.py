"""The target model at work on one sequence: forward passes over text and draft tree, and the cache between them."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.drafts import NO_DRAFT
from hdraft.decoding.masks import Span, layer_spans, tree_mask
from hdraft.decoding.static import StaticStep, StepKind, give_back, padded, say_once, take
from hdraft.decoding.support import (
    PositionLimit,
    Shape,
    embedding_weight,
    restore_frequencies,
    rope_limits,
    scaled_modules,
    table_limits,
    takes,
)
from hdraft.drafting.drafter import UNLIMITED
from hdraft.drafting.tree import DraftTree

AHEAD = 4096
"""Tokens that a static step takes memory for at first, of a sequence that may become longer."""

LONG_TEXT = 512
"""Tokens of text in one step above which a draft behind them costs more than it saves: it needs a mask, which forgoes
the causal kernel that computes half of the attention only."""


class Target:
    """A model and the cache of one sequence.

    Attributes:
        cache: the keys and values of the tokens verified so far; while `static` is there, they are in it.
        static: the static step, once the first has been taken; None for steps that grow.
        length: how many those are.
        called: when the last forward pass began, its inputs ready.
        preparing: the seconds that the last forward pass spent on compiling and capturing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shape: Shape = "tree",
        cache: GrowingCache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prefills_in_chunks: bool = False,
        step: StepKind = "dynamic",
        budget: int = 0,
        max_length: int = UNLIMITED,
    ) -> None:
        """Prepare for a sequence.

        Args:
            model: the target.
            shape: "chain" for a model that makes its own masks, where every draft is a single path.
            cache: an earlier request's, to go on from.
            attention_mask: int[1, m] over the prompt, 0 for padding; None without padding.
            position_ids: int[1, m] of the prompt, where they are not 0, 1, 2, …
            prefills_in_chunks: whether the prompt is to be forwarded in chunks, as `prefill_chunk_size` asks.
            step: how steps behind the prompt are run.
            budget: the most nodes of a tree in them, a lookahead branch's included.
            max_length: the most tokens that the sequence may have.
        """
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.device = model.device  # looked up among the parameters: once
        self.own_masks = shape == "chain"
        self.spans: dict[str, Span] | Span = Span() if self.own_masks else layer_spans(config)
        # eager attention adds its mask: a boolean one would be added as 0 and 1
        self.additive = embedding_weight(model).dtype if config._attn_implementation == "eager" else None
        self.limits: list[PositionLimit] = rope_limits(config) + table_limits(model)
        self.scaled = scaled_modules(model)
        self.cache = GrowingCache(config) if cache is None else cache
        self.length: int = self.cache.get_seq_length()
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        # padding before the last prompt token: how far positions lag behind the sequence
        self.lag = 0 if position_ids is None else position_ids.shape[-1] - 1 - int(position_ids[0, -1])
        self.left_padding = 0 if attention_mask is None else int((attention_mask[0].cumsum(-1) == 0).sum())
        self.may_restart = not prefills_in_chunks
        self.takes_positions = takes(model, "position_ids")
        self.takes_logits_to_keep = takes(model, "logits_to_keep")
        self.static: StaticStep | None = None
        self.step = step
        self.budget = budget
        self.max_length = max_length
        if step != "dynamic" and (obstacle := self._obstacle()) is not None:
            say_once(f"{type(model).__name__}: steps are dynamic and not {step}: {obstacle}")
            self.step = "dynamic"

    def restore(self) -> None:
        """Undo what long texts leave behind in the model, so that tokens do not depend on earlier requests."""
        restore_frequencies(self.scaled)

    def close(self, keep_cache: bool = False) -> None:
        """End the sequence; its keys and values are in `cache` afterwards if they are to be kept."""
        self.restore()
        if self.static is not None:
            step, self.static = self.static, None
            try:
                if keep_cache:
                    step.end(self.cache, self.length)
            except torch.OutOfMemoryError:
                step.end(self.cache, self.length, copy=False)
                step.drop()
            else:
                give_back(step)

    def _obstacle(self) -> str | None:
        """What keeps a step of this sequence from being the same program every time."""
        if self.own_masks:
            return "the model makes its own masks"
        if self.scaled or any(limit.switch for limit in self.limits):
            return "its rotary frequencies depend on the text's length"
        if len(set(getattr(self.model, "hf_device_map", {}).values())) > 1:
            return "its layers are on several devices"
        if self.attention_mask is not None and not bool(self.attention_mask[0, self.left_padding :].all()):
            return "there is padding inside of the prompt"
        kind = self.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return "autocast is on"
        return None

    def deepest_draft(self, text: int) -> int:
        """How deep a draft behind `text` more tokens may go: not at all, or so far that no position limit is passed."""
        if text > LONG_TEXT or (text > 1 and self.attention_mask is not None):
            return 0
        depth = UNLIMITED
        for limit in self.limits:
            for reached in {self.length + text, self.length + text - self.lag}:
                if reached <= limit.positions:
                    depth = min(depth, limit.positions - reached)
                elif not limit.switch:
                    return 0
        return depth

    def restarts(self, sequence: Callable[[], Tensor]) -> bool:
        """Whether the model wants the whole sequence, int[1, m], again: Phi-3 across the switch of its longrope.

        If so, the cache is empty afterwards. To be asked once before every step.
        """
        if not self.may_restart:  # in the prompt's last chunk: `generate` shows models one chunk, not the sequence
            self.may_restart = True
            return False
        if not any(limit.switch and 0 < self.length <= limit.positions for limit in self.limits):
            return False
        inputs = cast(Any, self.model).prepare_inputs_for_generation(
            sequence(), next_sequence_length=1, past_key_values=self.cache, attention_mask=self.attention_mask
        )
        if inputs.get("past_key_values") is not None:
            return False
        self.cache.reset()  # type: ignore[no-untyped-call]
        self.length = 0
        return True

    def forward(self, text: npt.NDArray[np.int64], tree: DraftTree = NO_DRAFT) -> Tensor:
        """One forward pass over m tokens of text and the tree behind them.

        Args:
            text: int64[m], the tokens that follow the cached ones; at least one.
            tree: its n nodes follow the last of them.

        Returns:
            float[1 + n, vocabulary], the logits after the last text token and after each node.
        """
        m, n = len(text), len(tree)
        self.preparing = 0.0
        if self.step != "dynamic" and m == 1 and self.length and self._make_static(1 + n):
            return self._forward_static(int(text[0]), tree)
        inputs: dict[str, object] = {
            "input_ids": self._device(np.concatenate((text, tree.tokens), dtype=np.int64)[None])
        }
        if self.takes_positions:
            inputs["position_ids"] = self._device(self._positions(m, tree))
        if self.takes_logits_to_keep:
            inputs["logits_to_keep"] = n + 1
        if (mask := self._mask(m, tree)) is not None:
            inputs["attention_mask"] = mask
        self.restore()  # other requests may run between two steps of a stream
        self.called = perf_counter()
        outputs = self.model(**inputs, past_key_values=self.cache, use_cache=True, return_dict=True)
        self.length += m
        logits: Tensor = outputs.logits[0, -n - 1 :]
        return logits

    def keep(self, path: list[int]) -> None:
        """Keep, of the tree just forwarded, the nodes on `path`, in ascending order, and drop the others."""
        if self.static is None:
            self.cache.keep(self.length, path)
        else:
            self.static.keep(self.length, path)
        self.length += len(path)

    def forget(self, length: int) -> None:
        """Forget all tokens after the first `length`, a step's."""
        if self.static is None:
            self.cache.keep(length, [])
        self.length = length

    def _forward_static(self, token: int, tree: DraftTree) -> Tensor:
        step = cast(StaticStep, self.static)
        before = step.seconds_preparing
        step.prepare(token, tree, self.length, int(self._positions(1, NO_DRAFT)[0, 0]))
        self.preparing = step.seconds_preparing - before
        self.called = perf_counter()
        logits = step.run()[: 1 + len(tree)]
        self.length += 1
        return logits

    def _make_static(self, rows: int) -> bool:
        """See to it that the sequence is where a static step of so many rows fits; False if there is no memory."""
        step, self.static = self.static, None
        capacity = min(self.length + max(self.length, AHEAD), self.max_length)
        if step is not None:
            if step.fits(self.length, rows):
                self.static = step
                return True
            step.end(self.cache, self.length, copy=False)
            step.drop()
        rows = max(rows, 1 + self.budget)
        obstacle = self._obstacle()
        if obstacle is None:
            try:
                step = take(self.model, self.cache, self.spans, capacity + padded(rows), rows, self.step)
                step.begin(self.cache, self.left_padding)
            except torch.OutOfMemoryError:
                obstacle = f"no memory for buffers of {capacity} tokens"
        if obstacle is not None or step is None:
            say_once(f"{type(self.model).__name__}: steps are dynamic and not {self.step}: {obstacle}")
            self.step = "dynamic"
            return False
        self.cache.reset()  # type: ignore[no-untyped-call]
        self.static = step
        return True

    def _device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _positions(self, m: int, tree: DraftTree) -> npt.NDArray[np.int64]:
        start = self.length - self.lag
        positions = np.concatenate((np.arange(start, start + m), tree.depths + (start + m - 1)), dtype=np.int64)[None]
        if self.position_ids is not None and self.length < self.position_ids.shape[-1]:
            prompt = self.position_ids[0, self.length : self.length + m]
            positions[0, : len(prompt)] = prompt.numpy(force=True)
        return positions

    def _mask(self, m: int, tree: DraftTree) -> Tensor | dict[str, Tensor] | None:
        if self.own_masks or not len(tree):
            if self.attention_mask is None:
                return None
            ones = self.attention_mask.new_ones((1, self.length + m + len(tree)))
            known = self.attention_mask[:, : ones.shape[1]]
            ones[:, : known.shape[1]] = known
            return ones
        if isinstance(self.spans, Span):
            return self._tree_mask(m, tree, self.spans)
        return {layer_type: self._tree_mask(m, tree, span) for layer_type, span in self.spans.items()}

    def _tree_mask(self, m: int, tree: DraftTree, span: Span) -> Tensor:
        mask = tree_mask(self.length, m, tree, span, self.left_padding)
        if self.attention_mask is not None:
            origin = self.length + m + len(tree) - mask.shape[-1]
            known = self.attention_mask[0, origin : self.length + m].bool()
            mask[..., : len(known)] &= known.to(mask.device)
        mask = mask.to(self.device, non_blocking=True)
        if self.additive is None:
            return mask
        zeros = torch.zeros(mask.shape, dtype=self.additive, device=mask.device)
        return zeros.masked_fill_(~mask, torch.finfo(self.additive).min)
