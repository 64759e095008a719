"""The target model at work on one sequence: the tokens it has read, the positions and masks of a pass, its limits.

How a pass is run is the business of two steppers, of which one holds the sequence at any time: `GrowingStepper` reads
the prompt, and takes steps of any size; `StaticStepper` takes steps that are the same program every time.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.cache import NO_TOKENS, GrowingCache
from hdraft.decoding.drafts import NO_DRAFT
from hdraft.decoding.graphed.capture import without_cudnn_attention
from hdraft.decoding.graphed.fused import MOST_SHARING, can_fuse
from hdraft.decoding.graphed.model_state import model_state
from hdraft.decoding.graphed.static_sequence import StaticSequence
from hdraft.decoding.graphed.static_step import StaticStepper, StepKind, static_budget
from hdraft.decoding.graphed.text_reader import TextReader
from hdraft.decoding.growing import GrowingStepper
from hdraft.decoding.logs import logger, say_once
from hdraft.decoding.masks import Span, layer_spans, tree_mask
from hdraft.decoding.models.names import prepared_cache_argument
from hdraft.decoding.models.ranks import ranks_of
from hdraft.decoding.models.support import (
    PositionLimit,
    Shape,
    UnsupportedError,
    embedding_weight,
    placeholders,
    restore_frequencies,
    rope_limits,
    scaled_modules,
    table_limits,
)
from hdraft.decoding.models.walking import parameters_of
from hdraft.drafting.drafter import UNLIMITED, Candidates
from hdraft.drafting.tree import DraftTree

MOST_UNREAD = 16
"""Tokens to be read again, where a rejected draft means that, above which a pass takes no draft, so that they are read
for good."""

LONG_TEXT = 512
"""Tokens of text in one step above which a draft behind them costs more than it saves: it needs a mask, which forgoes
the causal kernel that computes half of the attention only."""


class Target:
    """A model and the cache of one sequence.

    Attributes:
        ranks: the processes that run the model.
        chains_only: whether the model makes its own masks, so that every draft is a single path.
        max_length: the most tokens that the sequence may have, those `ahead` of it included.
        ahead: tokens that were read and are not of the sequence: a prompt of embeddings.
        cache: the keys and values of the tokens verified so far, unless a static stepper holds them.
        length: how many those are.
        unread: int64[m], verified tokens behind those: a rejected draft took them out of a model's states with it. The
            next pass reads them again.
        rows: tokens and nodes of the last pass.
        mixes_frequencies: whether cached keys are rotated by frequencies of several lengths of the text.
        growing: runs the prompt's passes and dynamic steps.
        static: where static steps are taken; None where steps are dynamic.
        stepper: ran the last pass, and holds the sequence.
        kind: how it was run.
        inputs_ready: when the inputs of the last pass were ready, as `perf_counter` tells it.
        seconds_preparing: what the last pass spent on compiling and capturing.
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
        of_prompt: Mapping[str, Any] | None = None,
        ahead: int = 0,
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
            of_prompt: what the prompt's pass is given instead, by `prepare_inputs_for_generation`: pictures, sound,
                embeddings.
            ahead: how many more tokens the prompt's pass reads than the sequence has, of those embeddings.

        Raises:
            UnsupportedError: steps are to be exact, and cannot be.
        """
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.device = model.device if device is None else device
        self.ranks = ranks_of(model)
        self.chains_only = shape == "chain"
        self.spans: dict[str, Span] | Span = Span() if self.chains_only else layer_spans(config)
        # eager attention adds its mask: a boolean one would be added as 0 and 1
        self.additive = embedding_weight(model).dtype if config._attn_implementation == "eager" else None
        self.rotary_limits: list[PositionLimit] = rope_limits(config)
        self.limits = self.rotary_limits + table_limits(model)
        self.scaled = scaled_modules(model)
        self.cache = GrowingCache(config) if cache is None else cache
        self.length: int = self.cache.get_seq_length()
        self.unread = np.empty(0, np.int64)
        self.rows = 0
        self._pass: tuple[npt.NDArray[np.int64], DraftTree] | None = None  # the last one, until it is verified
        self.max_length, self.ahead, self._of_prompt = max_length, ahead, of_prompt
        self._placeholders = [] if of_prompt is None else placeholders(model.config)
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        # padding before the last prompt token: how far positions lag behind the sequence
        self.lag = 0 if position_ids is None else position_ids.shape[-1] - 1 - int(position_ids[0, -1])
        self.left_padding = 0 if attention_mask is None else int((attention_mask[0].cumsum(-1) == 0).sum())
        self.mixes_frequencies = False
        self.prefills_in_chunks = prefills_in_chunks
        self.may_restart = not prefills_in_chunks
        self.growing = GrowingStepper(model, self.cache, self.device, extras or {})
        self.static: StaticSequence | None = None
        self.stepper: GrowingStepper | StaticStepper = self.growing
        self.kind: StepKind = "dynamic"
        self.seconds_preparing = 0.0
        if step != "dynamic":
            if (obstacle := self._obstacle(step)) is None:
                self.static = StaticSequence(model, self.cache, self.spans, step, budget, max_length, self.left_padding)
            else:
                self._only_grow(step, obstacle)
        if self.growing.compiled and self.static is None and max_length < UNLIMITED:  # and not a probe
            say_once(f"{type(model).__name__}: dynamic steps, each of another shape, run as before torch.compile")

    def resume(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go on from the cache as far as it holds the prompt `ids`, int64[m], at its positions, and drop the rest.

        Returns:
            What is still to be read: int64[n], the last of `ids`; for a prompt that sees, any n of its length.
        """
        if self._of_prompt is not None:
            self.cache.reset()  # it does not know what was seen
            self.length = 0
            return np.concatenate((np.zeros(self.ahead, np.int64), ids))
        if not self.length:
            return ids
        self.restore()
        tokens, cached = self._described(ids), self.cache.tokens
        if self.cache.model != hash(model_state(self.model)) or self._rotates_otherwise(tokens, cached):
            self.cache.reset()
        kept = self.cache.agree(tokens)
        if kept < self.length:
            logger.info("the cache holds another text: of its %d tokens, %d are used", self.length, kept)
        self.length = kept
        return ids[kept:]

    def readable(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of the prompt `ids`, those that are text: no placeholders of what was seen, which none may draft."""
        return ids[~np.isin(ids, self._placeholders)] if self._placeholders else ids

    def restore(self) -> None:
        """Undo what long texts leave behind in the model, so that tokens do not depend on earlier requests."""
        restore_frequencies(self.scaled)

    def close(self, sequence: npt.NDArray[np.int64] | None = None) -> None:
        """End the sequence, int64[m]; its keys and values are in `cache` afterwards, unless it is not given."""
        self.restore()
        if self._pass is not None and len(self.cache.states):  # it was broken off, and the states are of no text
            self.cache.reset()
            self.length = 0
        self.cache.tokens, self.cache.model = NO_TOKENS, 0
        if sequence is not None and not self.mixes_frequencies and self._of_prompt is None:
            self.cache.tokens = self._described(sequence)[: self.length]
            self.cache.model = hash(model_state(self.model))
            self.cache.states.mark()
        self.stepper = self.growing
        if self.static is not None:
            self.static.close(self.length, keep=sequence is not None)

    def _obstacle(self, kind: StepKind) -> str | None:
        """The reason why steps of this sequence cannot be of a kind that is not "dynamic"; None where they can."""
        if len(self.cache.states):
            return "it keeps recurrent or convolutional states"
        if self.chains_only:
            return "the model makes its own masks"
        if self.growing.extras:
            return f"the model is given {', '.join(self.growing.extras)}"
        if self.device.type != "meta" and any(parameter.is_meta for parameter in parameters_of(self.model)):
            return "its weights are loaded as they are needed"
        if self.scaled or any(limit.switch for limit in self.limits):
            return "its rotary frequencies depend on the text's length"
        if len(set(getattr(self.model, "hf_device_map", {}).values())) > 1:
            return "its layers are on several devices"
        if self.attention_mask is not None and not bool(self.attention_mask[0, self.left_padding :].all()):
            return "there is padding inside of the prompt"
        if not self.ranks.alone:  # memory and a capture may fail on one of them
            return "several processes run it together"
        device = self.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return "autocast is on"
        return self._inexact() if kind == "exact" else None

    def _inexact(self) -> str | None:
        """The reason why a row's logits may depend on how it was drafted; None where they need not."""
        if not can_fuse(self.model):
            return (
                "they are for Llama, Mistral, Qwen 2 and Qwen 3 on a GPU, neither quantized nor with adapters or hooks"
            )
        config = self.model.config.get_text_config(decoder=True)
        if config.num_attention_heads // config.num_key_value_heads > MOST_SHARING:
            return f"more than {MOST_SHARING} query heads share keys"
        spans = self.spans.values() if isinstance(self.spans, dict) else [self.spans]
        return "layers look back over a window" if any(span.window is not None for span in spans) else None

    @property
    def exact(self) -> bool:
        """Whether steps behind the prompt are exact, see `StepKind`."""
        return self.static is not None and self.static.kind == "exact"

    def most_drafted(self, budget: int) -> int:
        """The most draft tokens of a step, of so many as are allowed."""
        return budget if self.static is None else static_budget(budget, self.static.kind)

    @property
    def verified(self) -> int:
        """The tokens of the sequence that are verified and behind which the next text follows."""
        return self.length + len(self.unread)

    @property
    def rereads(self) -> bool:
        """Whether a rejected draft means that the text of its step is read again."""
        return len(self.cache.states) > 0 and self.cache.states.recur()

    def deepest_draft(self, text: int) -> int:
        """How deep a draft behind `text` more tokens may go: not at all, or so far that no position limit is passed."""
        text += len(self.unread)
        if self.exact and (text > 1 or not self.length):
            return 0  # the prompt's pass is another shape with a draft
        if (self._of_prompt is not None or len(self.cache.states)) and not self.growing.decoding:
            return 0  # the prompt's pass is as `generate` takes it
        if text > (MOST_UNREAD if self.rereads else LONG_TEXT):
            return 0
        if text > 1 and self.attention_mask is not None and not self.chains_only:
            return 0
        return self.places_behind(text)

    def places_behind(self, text: int) -> int:
        """How deep a draft behind `text` more tokens may go, as far as limits of positions are concerned."""
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
        self.length, self.unread = 0, self.unread[:0]
        return True

    def forward(self, text: npt.NDArray[np.int64], tree: DraftTree = NO_DRAFT, select: bool = False) -> Tensor:
        """One forward pass over what is unread, m tokens of text, and the tree behind them.

        Args:
            text: int64[m], the tokens that follow; at least one.
            tree: its n nodes follow the last of them.
            select: whether `candidates` will be asked for.

        Returns:
            float[1 + n, vocabulary], the logits after the last text token and after each node.
        """
        text, self.unread = np.concatenate((self.unread, text)), self.unread[:0]
        m, self.rows = len(text), len(text) + len(tree)
        static = self._static_stepper(1 + len(tree)) if m == 1 and self.length else self._reader(m + len(tree))
        if static is None:
            if self._of_prompt is not None and not self.length:
                self.growing.prepare_prompt(self._prompt_inputs(text[self.ahead :]))
                self._of_prompt = {}
            else:
                self.growing.prepare(text, tree, self._positions(m, tree), self._mask(m, tree))
            self.stepper, self.kind, self.seconds_preparing = self.growing, "dynamic", 0.0
            reached = self.length - self.lag
            self.mixes_frequencies |= any(0 < reached <= limit.positions < reached + m for limit in self.rotary_limits)
            self.restore()  # other requests may run between two steps of a stream
        else:
            self.seconds_preparing = static.prepare(text, tree, self.length, self._position())
            self.stepper = static.stepper if isinstance(static, TextReader) else static
            self.kind = static.kind
        if len(self.cache.states):
            self.cache.states.thaw()
            if len(tree):
                self.cache.states.hold()
        self._pass = text, tree
        self.inputs_ready = perf_counter()
        # which implementation of attention reads a prompt must not depend on what other threads do
        alone = self.exact and self.stepper is self.growing
        with without_cudnn_attention(self.device) if alone else nullcontext():
            logits = self.stepper.run(select)
        self.length += m
        return logits

    def most_likely(self, logits: Tensor, rows: slice) -> list[int]:
        """The most likely token in some rows of the pass just run, which gave the logits; waits for it."""
        return self.stepper.most_likely(logits, rows)

    def candidates(self, tree: DraftTree, logits: Tensor) -> Candidates:
        """What the target finds likely in each row of the pass just run, over a tree and perhaps a branch beside it."""
        rows = 1 + len(tree)
        tokens, scores = self.stepper.likeliest(logits[:rows])
        tokens, scores = tokens[:rows], scores[:rows]
        if self._placeholders:
            tokens = np.where(np.maximum.accumulate(np.isin(tokens, self._placeholders), axis=1), -1, tokens)
        return Candidates(tree, tokens, scores)

    def keep(self, path: list[int]) -> None:
        """Keep, of the tree just forwarded, the nodes on `path`, in ascending order, and drop the others."""
        assert self._pass is not None, "a pass comes before"
        self.growing.start_decoding()
        (text, tree), self._pass = self._pass, None
        states, rejected = self.cache.states, len(tree) - len(path)
        if len(states) and rejected and not states.drop(rejected):
            self.length -= len(text)
            self.unread = np.concatenate((text, tree.tokens[path]))
            path = []
        self.stepper.keep(self.length, path)
        self.length += len(path)
        states.release()

    def forget(self, length: int) -> None:
        """Forget all tokens after the first `length`, all of them of the last step; states only if it had a draft."""
        if self._pass is not None and len(self._pass[1]):
            self.cache.states.drop(self.rows)
        self.length, self._pass = length, None
        self.stepper.keep(length, [])

    def _static_stepper(self, rows: int) -> StaticStepper | None:
        """The stepper of a static step of so many rows, with the sequence in it; None where the step has to grow."""
        if (static := self.static) is not None and not static.fits(self.length, rows):
            static.leave(self.length)
            if (obstacle := self._obstacle(static.kind) or static.enter(self.length, rows)) is not None:
                self._only_grow(static.kind, obstacle)
        return None if self.static is None else self.static.stepper

    def _reader(self, rows: int) -> TextReader | None:
        """What reads so many rows, text and the tree behind it, where static steps go on; None where it has to grow."""
        if self.static is None or self.static.stepper is not None or self.prefills_in_chunks or self.limits:
            return None
        if self.exact:  # who reads a prompt must not depend on what was asked before
            return None
        kind = self.static.kind
        if self.attention_mask is not None or not self._counts_from_zero() or self._obstacle(kind) is not None:
            return None
        return self.static.enter_to_read(self.length, rows)

    def _counts_from_zero(self) -> bool:
        """Whether the prompt's positions are 0, 1, 2, …"""
        known = None if self.position_ids is None else self.position_ids[0].numpy(force=True)
        return known is None or bool((known == np.arange(len(known))).all())

    def _only_grow(self, kind: StepKind, obstacle: str) -> None:
        if kind == "exact":
            raise UnsupportedError(f"{type(self.model).__name__}: no exact steps, take another kind: {obstacle}")
        say_once(f"{type(self.model).__name__}: steps are dynamic and not {kind}: {obstacle}")
        self.static = None

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

    def _prompt_inputs(self, ids: npt.NDArray[np.int64]) -> dict[str, Any]:
        """What `generate` would give the model in the pass over a prompt that sees, with token ids int64[m]."""
        inputs: dict[str, Any] = cast(Any, self.model).prepare_inputs_for_generation(
            torch.from_numpy(ids)[None].to(self.device),
            is_first_iteration=True,
            **dict(self._of_prompt or {}),
            **{prepared_cache_argument(self.model): self.cache},
        )
        return inputs

    def _position(self) -> int:
        """The position of the next token of text."""
        known = self.position_ids
        if known is not None and self.length < known.shape[-1]:
            return int(known[0, self.length])
        return self.length - self.lag

    def _positions(self, m: int, tree: DraftTree) -> npt.NDArray[np.int64]:
        """int64[m + n], of the tokens of text and the nodes behind them."""
        start = self.length - self.lag
        positions = np.concatenate((np.arange(start, start + m), tree.depths + (start + m - 1)), dtype=np.int64)
        if self.position_ids is not None and self.length < self.position_ids.shape[-1]:
            prompt = self.position_ids[0, self.length : self.length + m]
            positions[: len(prompt)] = prompt.numpy(force=True)
        return positions

    def _mask(self, m: int, tree: DraftTree) -> Tensor | dict[str, Tensor] | None:
        if self.chains_only or not len(tree):
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
