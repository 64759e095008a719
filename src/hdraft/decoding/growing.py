"""Passes whose inputs, masks and cache grow with the text: the prompt's, and steps of any size behind it."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.likeliest import likeliest, most_likely
from hdraft.decoding.logs import say_once
from hdraft.decoding.models.compiling import is_compiled, uncompiled
from hdraft.decoding.models.experts import decoding_kernels, most_rows
from hdraft.decoding.models.names import cache_argument, takes
from hdraft.decoding.models.time_steps import limited_modules, unlimited
from hdraft.drafting.drafter import UNLIMITED
from hdraft.drafting.tree import DraftTree

_FEW = 16
"""Tokens of text whose logits cost little, though only the last is asked for."""


class GrowingStepper:
    """Runs passes over any text and tree, one operation after the other, as `model.generate` does.

    Attributes:
        compiled: whether the user has compiled the model; here it runs as it was before.
    """

    def __init__(
        self, model: PreTrainedModel, cache: GrowingCache, device: torch.device, extras: Mapping[str, Any]
    ) -> None:
        """Of the sequence in `cache`, whose inputs go to `device`; for `extras` see `Target`."""
        self.model = model
        self.cache = cache
        self.device = device
        self.extras = extras
        self.compiled = is_compiled(model)
        self.most_rows = 0  # of a pass with the kernels of decoding: none while the prompt is read
        self.decoding = False  # the prompt has been read
        self._limited: list[nn.Module] = []
        self._cache_name = cache_argument(model)
        self._takes_positions = takes(model, "position_ids")
        self._takes_logits_to_keep = takes(model, "logits_to_keep")
        self._inputs: dict[str, Any] = {}

    def prepare(
        self,
        text: npt.NDArray[np.int64],
        tree: DraftTree,
        positions: npt.NDArray[np.int64],
        mask: Tensor | dict[str, Tensor] | None,
    ) -> None:
        """Make the inputs of a pass over int64[m] tokens of text and a tree of n nodes behind it, for `run`.

        Positions are int64[m + n]; the mask is as the model takes it, or None where the model's own will do.
        """
        ids = self._to_device(np.concatenate((text, tree.tokens), dtype=np.int64))
        self._inputs = {"input_ids": ids, self._cache_name: self.cache}
        for name, value in self.extras.items():
            self._inputs[name] = torch.full_like(ids, value) if type(value) is int else value
        if self._takes_positions:
            self._inputs["position_ids"] = self._to_device(positions)
        if self._takes_logits_to_keep:
            # of few rows all: a slice of them can have torch copy the whole of a large vocabulary's matrix
            few = len(text) <= _FEW
            self._inputs["logits_to_keep"] = len(text) + len(tree) if few else 1 + len(tree)
        if mask is not None:
            self._inputs["attention_mask"] = mask
        self._asked = 1 + len(tree)

    def prepare_prompt(self, inputs: Mapping[str, Any]) -> None:
        """Take the inputs of a pass over a whole prompt, as the model has prepared them, for `run`."""
        self._inputs = {name: value for name, value in inputs.items() if name not in ("use_cache", "return_dict")}
        self._asked = 1

    def run(self, select: bool = False) -> Tensor:
        """Run the pass: float[1 + n, vocabulary], the logits after the last text token and after each node."""
        inputs, self._inputs = self._inputs, {}
        read = inputs.get("input_ids")
        rows = (inputs["inputs_embeds"] if read is None else read).shape[1]
        with ExitStack() as settings:
            if self.compiled:
                settings.enter_context(uncompiled())
            if rows > 1:
                settings.enter_context(unlimited(self._limited))
            if rows <= self.most_rows:
                settings.enter_context(decoding_kernels(self.model))
            outputs = self.model(**inputs, use_cache=True, return_dict=True)
        logits: Tensor = outputs.logits[0, -self._asked :]
        return logits

    def most_likely(self, logits: Tensor, rows: slice) -> list[int]:
        """The most likely token of each of those rows of a pass; waits for it."""
        return most_likely(logits[rows])

    def likeliest(self, logits: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The likeliest tokens of each row of a pass, see `likeliest`; waits for them."""
        tokens, scores = likeliest(logits)
        return tokens.numpy(force=True), scores.numpy(force=True)

    def keep(self, length: int, path: list[int]) -> None:
        """Keep the first `length` tokens and, of the tree just forwarded, the nodes on `path`, in ascending order."""
        self.cache.keep(length, path)

    def start_decoding(self) -> None:
        """Run passes with the kernels that `generate` decodes with, from now on: the prompt has been read."""
        if not self.decoding:
            self.decoding = True
            self._limited = limited_modules(self.model) if len(self.cache.states) else []
            self.most_rows = most_rows(self.model)
            if self.most_rows < UNLIMITED:
                say_once(
                    f"{type(self.model).__name__}: steps of up to {self.most_rows} rows run the experts as generate"
                    " decodes, larger ones as it reads prompts"
                )

    def _to_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array)[None].to(self.device, non_blocking=True)
