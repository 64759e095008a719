"""The target model at work on one sequence: forward passes over text and draft tree, and the cache between them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.cache import NO_TOKENS, GrowingCache
from hdraft.decoding.drafts import NO_DRAFT
from hdraft.decoding.graphed.model_state import model_state
from hdraft.decoding.graphed.static_step import StaticStep, StepKind, give_back, padded, take
from hdraft.decoding.logs import logger, say_once
from hdraft.decoding.masks import Span, layer_spans, tree_mask
from hdraft.decoding.models.compiling import is_compiled, uncompiled
from hdraft.decoding.models.experts import decoding, most_rows
from hdraft.decoding.models.names import cache_argument, prepared_cache_argument, takes
from hdraft.decoding.models.ranks import ranks_of
from hdraft.decoding.models.support import (
    PositionLimit,
    Shape,
    embedding_weight,
    restore_frequencies,
    rope_limits,
    scaled_modules,
    table_limits,
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
        mixed: whether cached keys are rotated by frequencies of several lengths of the text.
        ranks: the processes that run the model.
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
        device: torch.device | None = None,
        extras: Mapping[str, Any] | None = None,
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
            device: where the model takes its inputs, see `input_device`; its own unless given.
            extras: what else every forward pass is given; an integer stands for a tensor of one for each token.
        """
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.device = model.device if device is None else device
        self.extras = dict(extras or {})
        self.cache_name = cache_argument(model)
        self.ranks = ranks_of(model)
        self.own_masks = shape == "chain"
        self.spans: dict[str, Span] | Span = Span() if self.own_masks else layer_spans(config)
        # eager attention adds its mask: a boolean one would be added as 0 and 1
        self.additive = embedding_weight(model).dtype if config._attn_implementation == "eager" else None
        self.rotary_limits: list[PositionLimit] = rope_limits(config)
        self.limits = self.rotary_limits + table_limits(model)
        self.scaled = scaled_modules(model)
        self.cache = GrowingCache(config) if cache is None else cache
        self.length: int = self.cache.get_seq_length()
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        # padding before the last prompt token: how far positions lag behind the sequence
        self.lag = 0 if position_ids is None else position_ids.shape[-1] - 1 - int(position_ids[0, -1])
        self.left_padding = 0 if attention_mask is None else int((attention_mask[0].cumsum(-1) == 0).sum())
        self.mixed = False
        self.may_restart = not prefills_in_chunks
        self.takes_positions = takes(model, "position_ids")
        self.takes_logits_to_keep = takes(model, "logits_to_keep")
        self.compiled = is_compiled(model)
        self.most_rows = 0  # of a step with the kernels of decoding: none over the prompt
        self.static: StaticStep | None = None
        self.step = step
        self.budget = budget
        self.max_length = max_length
        if step != "dynamic" and (obstacle := self._obstacle()) is not None:
            say_once(f"{type(model).__name__}: steps are dynamic and not {step}: {obstacle}")
            self.step = "dynamic"
        if self.compiled and self.step == "dynamic" and max_length < UNLIMITED:  # and not a probe
            say_once(f"{type(model).__name__}: dynamic steps, each of another shape, run as before torch.compile")

    def resume(self, ids: npt.NDArray[np.int64]) -> None:
        """Go on from the cache as far as it holds the prompt `ids`, int64[m], at its positions, and drop the rest."""
        if not self.length:
            return
        self.restore()
        tokens, cached = self._described(ids), self.cache.tokens
        if self.cache.model != hash(model_state(self.model)) or self._rotates_otherwise(tokens, cached):
            self.cache.reset()
        kept = self.cache.agree(tokens)
        if kept < self.length:
            logger.info("the cache holds another text: of its %d tokens, %d are used", self.length, kept)
        self.length = kept

    def restore(self) -> None:
        """Undo what long texts leave behind in the model, so that tokens do not depend on earlier requests."""
        restore_frequencies(self.scaled)

    def close(self, sequence: npt.NDArray[np.int64] | None = None) -> None:
        """End the sequence, int64[m]; its keys and values are in `cache` afterwards, unless it is not given."""
        keep_cache = sequence is not None
        self.restore()
        self.cache.tokens, self.cache.model = NO_TOKENS, 0
        if sequence is not None and not self.mixed:
            self.cache.tokens = self._described(sequence)[: self.length]
            self.cache.model = hash(model_state(self.model))
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
        if self.extras:
            return f"the model is given {', '.join(self.extras)}"
        if self.device.type != "meta" and any(parameter.is_meta for parameter in self.model.parameters()):
            return "its weights are loaded as they are needed"
        if self.scaled or any(limit.switch for limit in self.limits):
            return "its rotary frequencies depend on the text's length"
        if len(set(getattr(self.model, "hf_device_map", {}).values())) > 1:
            return "its layers are on several devices"
        if self.attention_mask is not None and not bool(self.attention_mask[0, self.left_padding :].all()):
            return "there is padding inside of the prompt"
        if not self.ranks.alone:  # memory and a capture may fail on one of them
            return "several processes run it together"
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
        name = prepared_cache_argument(self.model)
        inputs = cast(Any, self.model).prepare_inputs_for_generation(
            sequence(), next_sequence_length=1, attention_mask=self.attention_mask, **{name: self.cache}
        )
        if inputs.get(name) is not None:
            return False
        self.cache.reset()
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
        ids = self._device(np.concatenate((text, tree.tokens), dtype=np.int64)[None])
        inputs: dict[str, object] = {"input_ids": ids, self.cache_name: self.cache}
        for name, value in self.extras.items():
            inputs[name] = torch.full_like(ids, value) if type(value) is int else value
        if self.takes_positions:
            inputs["position_ids"] = self._device(self._positions(m, tree))
        if self.takes_logits_to_keep:
            inputs["logits_to_keep"] = n + 1
        if (mask := self._mask(m, tree)) is not None:
            inputs["attention_mask"] = mask
        reached = self.length - self.lag
        self.mixed |= any(0 < reached <= limit.positions < reached + m for limit in self.rotary_limits)
        self.restore()  # other requests may run between two steps of a stream
        self.called = perf_counter()
        with ExitStack() as settings:
            if self.compiled:
                settings.enter_context(uncompiled())
            if m + n <= self.most_rows:
                settings.enter_context(decoding(self.model))
            outputs = self.model(**inputs, use_cache=True, return_dict=True)
        self.length += m
        logits: Tensor = outputs.logits[0, -n - 1 :]
        return logits

    def keep(self, path: list[int]) -> None:
        """Keep, of the tree just forwarded, the nodes on `path`, in ascending order, and drop the others."""
        self._decode()
        if self.static is None:
            self.cache.keep(self.length, path)
        else:
            self.static.keep(self.length, path)
        self.length += len(path)

    def forget(self, length: int) -> None:
        """Forget all tokens after the first `length`, a step's."""
        self._decode()
        if self.static is None:
            self.cache.keep(length, [])
        self.length = length

    def _decode(self) -> None:
        """The prompt has been forwarded: from now on, passes have the kernels that `generate` decodes with."""
        if not self.most_rows:
            self.most_rows = most_rows(self.model)
            if self.most_rows < UNLIMITED:
                say_once(
                    f"{type(self.model).__name__}: steps of up to {self.most_rows} rows run the experts as generate"
                    " decodes, larger ones as it reads prompts"
                )

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
        self.cache.reset()
        self.static = step
        return True

    def _rotates_otherwise(self, *texts: npt.NDArray[np.int64]) -> bool:
        """Whether two texts, `GrowingCache.tokens` each, have rotary frequencies of their own."""
        for limit in self.rotary_limits:
            beyond = [int(text[:, 1].max(initial=-1)) >= limit.positions for text in texts]
            if beyond[0] != beyond[1] or (beyond[0] and not limit.switch):
                return True
        return False

    def _described(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64[m, 3], what a cache knows of tokens: see `GrowingCache.tokens`."""
        tokens = np.stack((ids, np.arange(len(ids)) - self.lag, np.ones_like(ids)), axis=1)
        for column, known in ((1, self.position_ids), (2, self.attention_mask)):
            if known is not None:
                told = known[0, : len(ids)].numpy(force=True)
                tokens[: len(told), column] = told
        return tokens

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
