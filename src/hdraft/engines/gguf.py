"""The tokenizer of a GGUF file, with what databases and prompts use of a Hugging Face one; llama.cpp does the work."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTALL = "pip install 'hdraft[llama-cpp]'"

_MAGIC = b"GGUF"


class GgufError(ValueError):
    """A GGUF file, or a prompt for one, that cannot be used; one line that says what is wrong and what to do."""


def is_gguf(name: str | os.PathLike[str]) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return os.fspath(name).endswith(".gguf")


def import_llama_cpp() -> Any:
    """llama-cpp-python.

    Raises:
        GgufError: it is not installed.
    """
    if find_spec("llama_cpp") is None:
        raise GgufError(f"llama-cpp-python is not installed here: {INSTALL}")
    return import_module("llama_cpp")


@contextmanager
def loading(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Have llama-cpp-python, to load a file with; what it raises then is about the file.

    Raises:
        GgufError: there is no such file, or it cannot be loaded, or llama-cpp-python is not installed.
    """
    llama_cpp, path = import_llama_cpp(), Path(file)
    try:
        with open(path, "rb") as start:
            whole = start.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise GgufError(f"{path} cannot be read ({error.strerror or error})") from error
    if not whole:
        raise GgufError(f"{path} is no GGUF file: get it again, or give another")
    import_module("llama_cpp._logger").set_verbose(False)
    try:
        yield llama_cpp
    except (ValueError, RuntimeError, AssertionError) as error:
        if type(error).__module__.startswith("hdraft."):
            raise
        raise GgufError(
            f"llama.cpp cannot load {path} ({error}): is it whole, and of a kind that this version knows?"
        ) from error


class GgufTokenizer:
    """The tokenizer of a GGUF file.

    Its vocabulary is that of the Hugging Face tokenizer which the file was converted from, so both have one
    fingerprint. The converter writes two things otherwise, and both are taken back: ids without a token are tokens
    `[PAD7]` there; and in vocabularies of SentencePiece a token that was added has spaces for its `▁`.

    Args:
        model: the `_model` of a `llama_cpp.Llama`.

    Attributes:
        vocab_size: ids are below it; the model's, so perhaps more than there are tokens.
        eos_token_id: the end-of-sequence id, or None.
        chat_template: the file's own, a Jinja template, or None.
        context_length: the longest text that the model was trained for, in tokens, or None.

    Raises:
        GgufError: the file has no tokenizer.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._vocab = model, model.vocab
        self._c: Any = import_llama_cpp()
        self._kind = self._c.llama_vocab_type(self._vocab)
        if self._kind == self._c.LLAMA_VOCAB_TYPE_NONE:
            raise GgufError(f"{model.path_model} has no tokenizer: get a file that has one")
        self.vocab_size: int = model.n_vocab()
        self.eos_token_id: int | None = model.token_eos() if model.token_eos() >= 0 else None
        metadata = model.metadata()
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")
        length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        self.context_length: int | None = None if length is None else int(length)

    @classmethod
    def open(cls, file: str | os.PathLike[str]) -> "GgufTokenizer":
        """Of a file, of which nothing but the vocabulary is loaded.

        Raises:
            GgufError: there is no such file, or it cannot be loaded, or llama-cpp-python is not installed.
        """
        with loading(file) as llama_cpp:
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = True
            internals = import_module("llama_cpp._internals")
            return cls(internals.LlamaModel(path_model=os.fspath(file), params=params, verbose=False))

    def __len__(self) -> int:
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """The id of each token."""
        return dict(self._tokens)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for index in range(self.vocab_size):
            text = self._c.llama_vocab_get_text(self._vocab, index).decode("utf-8", "replace")
            kind = self._c.llama_vocab_get_attr(self._vocab, index)
            if text == f"[PAD{index}]" and not kind & self._c.LLAMA_TOKEN_ATTR_NORMAL:  # of several kinds, by version
                continue
            if kind & self._c.LLAMA_TOKEN_ATTR_USER_DEFINED and self._kind == self._c.LLAMA_VOCAB_TYPE_SPM:
                text = text.replace(" ", "▁")
            tokens.setdefault(text, index)
        return tokens

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, verbose: bool = False
    ) -> dict[str, Any]:
        """The token ids of a text, or of each of several, as "input_ids".

        Args:
            text: it, or a list of them.
            add_special_tokens: whether to begin and end it as the model wants a text to be.
            verbose: unused.
        """
        if isinstance(text, str):
            return {"input_ids": self._encode(text, add_special_tokens)}
        return {"input_ids": [self._encode(each, add_special_tokens) for each in text]}

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._model.tokenize(text.encode("utf-8", "replace"), add_bos=add_special_tokens, special=True)
        return ids

    def get_chat_template(self) -> str | None:
        """The file's own chat template."""
        return self.chat_template

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        return_dict: bool = True,
    ) -> dict[str, Any]:
        """The token ids of a conversation by a Jinja template, as `create_chat_completion` makes them: "input_ids"."""
        template = chat_template or self.chat_template or ""
        formatter = import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter(
            template,
            bos_token=self._text(self._model.token_bos()),
            eos_token=self._text(self._model.token_eos()),
            add_generation_prompt=add_generation_prompt,
        )
        return self(formatter(messages=messages).prompt, add_special_tokens=False)

    def _text(self, index: int) -> str:
        return "" if index < 0 else str(self._c.llama_vocab_get_text(self._vocab, index).decode("utf-8", "replace"))
