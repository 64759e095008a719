"""A model and its tokenizer by their names, a prompt as token ids; each refusal is one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hdraft.conversation import Conversation
from hdraft.decoding.models.support import places_left, table_limits
from hdraft.text import check_text


class LoadError(ValueError):
    """Something named that cannot be loaded; one line that says what is wrong and what to do."""


def quieten() -> None:
    """Silence what transformers and the Hub's client say beside the work; what fails is raised all the same."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_target(
    name: str, dtype: str, device: str, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder or the Hub.

    Args:
        name: the folder, or the name on the Hub.
        dtype: a floating-point type of torch, or "auto" for the one that the model is stored in.
        device: a device of torch, or "auto" for a GPU if there is one.
        trust_remote_code: whether to run code that comes with the model.

    Raises:
        LoadError: there is no such model or device, or it is damaged, or no causal language model.
    """
    _check_name(name)
    place = _device(device)
    with _loading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    with _loading(name, "the tokenizer of "):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    with _loading(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    model, information = loaded
    if missing := sorted(information["missing_keys"]):
        raise LoadError(f"{name} lacks weights, {missing[0]} among them: get the whole model")
    return model.to(place), tokenizer


def load_vocabulary(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, int | None]:
    """A tokenizer, and its model's vocabulary size, which may be larger than its own; None beside no model.

    Raises:
        LoadError: there is no such tokenizer.
    """
    _check_name(name)
    with _loading(name, "the tokenizer of "):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return tokenizer, None
    return tokenizer, getattr(config.get_text_config(), "vocab_size", None)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, chat_template: str | None = None) -> torch.Tensor:
    """The token ids of a prompt, int64[1, n]; through a chat template, see `Conversation`, as a user's message.

    Raises:
        LoadError, ConversationError: an empty prompt, one that is no text, or no usable chat template.
    """
    if not text.strip():
        raise LoadError("the prompt is empty: give at least one word")
    try:
        check_text(text)
    except ValueError as error:
        raise LoadError(f"the prompt is {error}") from None
    if chat_template is not None:
        return torch.tensor([Conversation(tokenizer, chat_template).ask(text)])
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if not isinstance(ids, torch.Tensor) or not ids.numel():
        raise LoadError("the prompt is empty: the model's tokenizer makes no token of it")
    return ids.long()


def check_room(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int | None, default: int) -> int:
    """How many tokens to write at most: as many as asked for, or else the default, or fewer where there is no room.

    Raises:
        LoadError: a model with a table of positions has no places for so many; it says for how many.
    """
    left = places_left(model, prompt_tokens)
    most = default if max_new_tokens is None else max_new_tokens
    if left is None or most <= left:
        return most
    places = min(limit.positions for limit in table_limits(model))
    if not left:
        raise LoadError(f"the prompt has {prompt_tokens} tokens and the model takes {places}: shorten it")
    if max_new_tokens is None:
        return left
    raise LoadError(
        f"the model takes {places} tokens and the prompt has {prompt_tokens}: --max-new-tokens {left} at most"
    )


def _check_name(name: str) -> None:
    """Refuse, before anything slow, what can be neither a folder nor a name on the Hub."""
    path = Path(name)
    if path.suffix == ".gguf":
        raise LoadError(f"{name} is a GGUF file, which hdraft generate runs with llama.cpp: give a model's folder here")
    if path.is_file():
        raise LoadError(f"{name} is a file: give a model's folder, or its name on the Hugging Face Hub")
    if not name or (not path.is_dir() and (name.count("/") > 1 or name[0] in "/.~" or name.endswith("/"))):
        raise LoadError(f"there is no folder {name!r}: give a model's folder, or its name on the Hugging Face Hub")


@contextmanager
def _loading(name: str, part: str = "") -> Iterator[None]:
    """Whatever transformers raises while it loads a model is about the model, unless the machine is at fault."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = _reason(error)
        if "out of memory" in reason or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise LoadError(
                f"cannot get {name!r}: there is no such folder, and the Hugging Face Hub has no such model"
                " or cannot be reached"
            ) from error
        if "trust_remote_code" in reason:
            raise LoadError(f"{name} brings its own code: read it, then add --trust-remote-code") from error
        if "Unrecognized configuration class" in reason:
            raise LoadError(f"{name} is no causal language model: hdraft drafts for those only") from error
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        raise LoadError(f"cannot load {part}{name}: {reason} (is it whole? get it again)") from error


def _reason(error: Exception) -> str:
    """The first paragraph of what an error says, on one line."""
    return " ".join(str(error).strip().partition("\n\n")[0].split()) or type(error).__name__


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LoadError(f"there is no device {name!r} here: try --device cpu") from None
    return device
