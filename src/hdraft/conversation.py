"""Turns of a conversation as prompts: a chat template over what was said so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hdraft.text import check_text, decode_text

_TEMPLATES = Path(__file__).parent / "templates"

TEMPLATES = tuple(sorted(path.stem for path in _TEMPLATES.glob("*.jinja")))
"""The chat templates that are built in: those of Vicuna 1.1 and later, and of Llama 2."""

_SYSTEM = {
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
}
"""The system prompts that models were trained with, by template (FastChat's `vicuna_v1.1`)."""


class ConversationError(ValueError):
    """A chat template that cannot be used; one line that says what to do."""


class Conversation:
    """The turns of a user, with the answers so far.

    Args:
        tokenizer: the target's, of transformers.
        template: `auto` for the tokenizer's own, one of `TEMPLATES`, or a file with a Jinja chat template.
        system: the system prompt; None for the template's own, '' for none.

    Raises:
        ConversationError: there is no such template.
    """

    def __init__(self, tokenizer: Any, template: str = "auto", system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template_source(tokenizer, template)
        system = _SYSTEM.get(template, "") if system is None else system
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, question: str) -> list[int]:
        """The prompt of the next turn, as token ids; the question is taken in.

        Raises:
            ConversationError: as `prompt` does; the question is not taken in.
        """
        ids = self.prompt(question)
        self.messages.append({"role": "user", "content": question})
        return ids

    def prompt(self, question: str) -> list[int]:
        """What `ask` returns, without taking the question in.

        Raises:
            ConversationError: the template fails, or makes nothing of it, or it is no text.
        """
        return self._encode([*self.messages, {"role": "user", "content": question}])

    def take(self, question: str, answer: str) -> None:
        """Take in a question and its answer."""
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def answer(self, text: str) -> None:
        """Take in the answer to the last question."""
        self.messages.append({"role": "assistant", "content": text})

    def rehearse(self) -> list[int]:
        """The prompt of a second turn, were one said: whether the template takes turns is known before there are any.

        Raises:
            ConversationError: it does not, or it takes no system prompt, or leaves it out.
        """
        turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")]
        try:
            ids = self._encode([*self.messages, *turns])
        except ConversationError as error:
            if self.messages and self._takes(turns):
                cause = reason(error.__cause__ or error)
                raise ConversationError(
                    f"the chat template takes no system prompt ({cause}): give none, or another --chat-template"
                ) from error
            raise
        if self.messages and self._takes(turns) and ids == self._encode(turns):
            raise ConversationError(
                "the chat template leaves the system prompt out: give none, or another --chat-template"
            )
        return ids

    def _takes(self, messages: list[dict[str, str]]) -> bool:
        try:
            return bool(self._encode(messages))
        except ConversationError:
            return False

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        for message in messages:
            try:
                check_text(message["content"])
            except ValueError as error:
                raise ConversationError(f"what the {message['role']} says is {error}") from None
        return encode_messages(self.tokenizer, self.template, messages)


def encode_messages(
    tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> list[int]:
    """The prompt of the next answer, as token ids.

    Args:
        tokenizer: the target's, of transformers.
        template: the text of a chat template, see `template_source`.
        messages: as the template takes them; their texts hold no half characters.
        tools: descriptions of functions that the model may call, where the template renders them.

    Raises:
        ConversationError: the template fails, or makes nothing of them.
    """
    described = {} if tools is None else {"tools": tools}  # which not every tokenizer takes
    try:
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_dict=True, **described
        )
    except Exception as error:  # a template is a program of its own
        raise ConversationError(f"the chat template fails ({reason(error)}): try another --chat-template") from error
    ids = list(encoded["input_ids"])
    if not ids:
        raise ConversationError("the chat template makes no token of the text: try another --chat-template")
    return ids


def reason(error: BaseException) -> str:
    """The first line of what went wrong, as within a template."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def template_source(tokenizer: Any, name: str) -> str:
    """The text of a chat template: `auto` for the tokenizer's own, one of `TEMPLATES`, or a file.

    Raises:
        ConversationError: there is none.
    """
    if name == "auto":
        if tokenizer.chat_template is None:
            raise ConversationError(
                "the model's tokenizer has no chat template: give --chat-template with a file,"
                f" or one of {', '.join(TEMPLATES)}"
            )
        return str(tokenizer.get_chat_template())
    path = _TEMPLATES / f"{name}.jinja" if name in TEMPLATES else Path(name)
    try:
        return decode_text(path.read_bytes())
    except ValueError as error:
        raise ConversationError(f"the chat template {name!r} is {error}") from None
    except OSError:
        raise ConversationError(
            f"no chat template {name}: give auto, {', '.join(TEMPLATES)}, or a file with a Jinja template"
        ) from None
