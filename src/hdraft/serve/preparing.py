"""From what a client asks to what the model runs: prompt and options as `generate` takes them."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.conversation import Conversation, ConversationError, encode_messages, reason
from hdraft.decoding.models.support import places_left, rope_limits
from hdraft.drafting.drafter import vocabulary_size
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.serve.adjusting import Adjustments
from hdraft.serve.asking import Asked, Sampling
from hdraft.serve.errors import ApiError, invalid, unsupported
from hdraft.serve.grammars import Grammars
from hdraft.serve.tenants import Tenants
from hdraft.serve.tools import convention

PREFILL_CHUNK = 512
"""Tokens of a prompt between two looks at whether its client has left."""

_GREEDY_BELOW = 1e-5  # temperatures; logits divided by less may be no numbers
_USUAL_CONTEXT = 4096  # of a model that does not say how much it takes


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the model runs it.

    Attributes:
        ids: the prompt.
        tenant: who asks.
        drafter: None for ordinary decoding.
        references: token ids that the answer will probably resemble.
        options: further ones of `generate`.
        calls: the convention by which calls of functions are read from the answer; None where it is text alone.
    """

    asked: Asked
    ids: list[int]
    tenant: str
    drafter: HierarchyDrafter | None
    references: list[list[int]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    calls: str | None = None


class Preparation:
    """Prepares requests, beside a model that is at work: with a tokenizer of its own. For one thread.

    Args:
        model, tokenizer: the target.
        tenants: their drafters.
        chat_template: a name, see `Conversation`.
        max_context: the most tokens of prompt and answer together; None for as many as the model says that it takes.

    Raises:
        ConversationError: a chat template that is asked for and is not there.
        ValueError: the model takes no context so long.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tenants: Tenants,
        chat_template: str = "auto",
        max_context: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer: Any = deepcopy(tokenizer)  # a tokenizer that encodes cannot decode at the same time
        self.tenants = tenants
        self.vocab_size = vocabulary_size(model)
        self.max_context = _context(model, max_context)
        self.grammars = Grammars(model, self.tokenizer)
        self.conversation: Conversation | None = None
        if chat_template != "auto" or getattr(tokenizer, "chat_template", None) is not None:
            self.conversation = Conversation(self.tokenizer, chat_template)
        self._named = chat_template != "auto"
        config = model.config.get_text_config(decoder=True)
        self._chunks = not any(limit.switch for limit in rope_limits(config))  # `generate` may lose text at a switch

    def prepare(self, asked: Asked, tenant: str) -> Job:
        """What the model is to run.

        Raises:
            ApiError: it cannot be done.
        """
        template = ""
        if asked.chat:
            template = self._template(asked)
            ids = self._encode(asked, template)
        elif isinstance(asked.prompt, str):
            ids = list(self.tokenizer(asked.prompt)["input_ids"])
            if not ids:
                raise invalid("prompt", "it is empty: give at least one word, or token ids")
        else:
            ids = list(asked.prompt)  # type: ignore[arg-type]
        room = self.max_context - len(ids)
        if room < 1:
            raise ApiError(
                400,
                f"This model's maximum context length is {self.max_context} tokens, and the prompt has {len(ids)}:"
                " shorten it.",
                param="messages" if asked.chat else "prompt",
                code="context_length_exceeded",
            )
        options = _sampling(self.model.generation_config, asked.sampling)
        options["max_new_tokens"] = min(room, asked.max_tokens or room)
        if self._chunks:
            options["prefill_chunk_size"] = PREFILL_CHUNK
        if processors := self._processors(asked, len(ids)):
            options["logits_processor"] = processors
        references = []
        if asked.prediction and asked.drafting:
            references = [list(self.tokenizer(asked.prediction, add_special_tokens=False)["input_ids"])]
        drafter = self.tenants.drafter_of(tenant) if asked.drafting else None
        calls = convention(template) if asked.tools else None
        return Job(asked, ids, tenant, drafter, references, options, calls)

    def _template(self, asked: Asked) -> str:
        if self.conversation is None:
            raise ApiError(
                400,
                "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
                code="no_chat_template",
            )
        template = self.conversation.template
        if asked.tools and not self._named:
            template = str(self.tokenizer.get_chat_template(tools=asked.tools))
        if asked.tools and "tools" not in template:
            raise unsupported("tools", "this model's chat template does not render them; describe them in a message")
        return template

    def _encode(self, asked: Asked, template: str) -> list[int]:
        messages: Any = asked.prompt
        assert self.conversation is not None
        if messages[0]["role"] != "system":
            messages = [*self.conversation.messages, *messages]
        try:
            return encode_messages(self.tokenizer, template, messages, asked.tools or None)
        except ConversationError as error:
            why = reason(error.__cause__ or error)[:200]
            raise invalid("messages", f"the model's chat template does not take them ({why})") from error

    def _processors(self, asked: Asked, prompt_tokens: int) -> list[Any]:
        processors: list[Any] = []
        sampling = asked.sampling
        if sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias:
            penalties = sampling.frequency_penalty, sampling.presence_penalty
            processors.append(Adjustments(prompt_tokens, *penalties, sampling.logit_bias))
        if asked.schema is not None:
            processors.append(self.grammars.processor(asked.schema))
        return processors


def _sampling(settings: Any, asked: Sampling) -> dict[str, Any]:
    """Options of `generate`; what is not asked for is as the model's own settings say."""
    options: dict[str, Any] = {}
    if asked.repetition_penalty is not None:
        options["repetition_penalty"] = asked.repetition_penalty
    drawing = {name: getattr(asked, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    if asked.temperature is None:
        samples = bool(settings.do_sample) or any(value is not None for value in drawing.values())
    else:
        samples = asked.temperature >= _GREEDY_BELOW
    options["do_sample"] = samples
    if samples:
        # `generate` itself would take the 50 likeliest tokens where neither says how many
        usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None}
        for name, value in drawing.items():
            known = getattr(settings, name, None) if value is None else value
            options[name] = usual[name] if known is None else known
    return options


def _context(model: PreTrainedModel, asked: int | None) -> int:
    config = model.config.get_text_config(decoder=True)
    told = getattr(config, "max_position_embeddings", None) or _USUAL_CONTEXT
    left = places_left(model, 0)
    if asked is not None and left is not None and asked > left:
        raise ValueError(f"the model takes {left} tokens: --max-context {left} at most")
    return asked or (told if left is None else left)
