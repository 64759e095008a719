"""Questions of several turns as prompts: a chat template over the turns so far."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_TEMPLATES = Path(__file__).parent / "templates"

TEMPLATES = tuple(sorted(path.stem for path in _TEMPLATES.glob("*.jinja")))
"""The chat templates that are built in: those of Vicuna 1.1 and later, and of Llama 2."""

_SYSTEM = {
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
}
"""What a model was trained to find at the start, as its format has it (FastChat's `vicuna_v1.1`)."""


class ConversationError(ValueError):
    """A chat template that cannot be used; one line that says what to do."""


class Conversation:
    """The turns of one question, with the answers so far.

    Args:
        tokenizer: the target's.
        template: `auto` for the tokenizer's own, one of `TEMPLATES`, or a file with a Jinja chat template.
        system: the system prompt; None for the template's own, '' for none.

    Raises:
        ConversationError: there is no such template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto", system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = _source(tokenizer, template)
        system = _SYSTEM.get(template, "") if system is None else system
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, question: str) -> Tensor:
        """The prompt of the next turn, int64[1, n].

        Raises:
            ConversationError: the template fails, or makes nothing of it.
        """
        self.messages.append({"role": "user", "content": question})
        try:
            encoded: Any = self.tokenizer.apply_chat_template(
                self.messages, chat_template=self.template, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # a template is a program of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConversationError(f"the chat template fails ({reason}): try another --chat-template") from error
        if not encoded["input_ids"]:
            raise ConversationError("the chat template makes no token of a question: try another --chat-template")
        return torch.tensor([encoded["input_ids"]])

    def answer(self, text: str) -> None:
        """Take in the answer to the last question."""
        self.messages.append({"role": "assistant", "content": text})


def _source(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    if name == "auto":
        own: Any = tokenizer.chat_template
        if own is None:
            raise ConversationError(
                "the model's tokenizer has no chat template: give --chat-template with a file,"
                f" or one of {', '.join(TEMPLATES)}"
            )
        return str(tokenizer.get_chat_template())
    path = _TEMPLATES / f"{name}.jinja" if name in TEMPLATES else Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConversationError(f"the chat template {name} is not UTF-8 text") from None
    except OSError:
        raise ConversationError(
            f"no chat template {name}: give auto, {', '.join(TEMPLATES)}, or a file with a Jinja template"
        ) from None
