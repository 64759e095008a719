"""What single tokens say: for draft trees and log-probabilities."""

import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


class TokenTexts:
    """The text and the bytes of tokens by their ids, each as it is within a text; kept."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._length = len(self._decode(self._before))

    def __getitem__(self, token: int) -> str:
        """Its text, a leading space too; U+FFFD stands for bytes that are no whole character."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._decode([*self._before, token])[self._length :]
        return text

    def bytes(self, token: int) -> list[int] | None:
        """Its bytes, where they can be told."""
        text = self[token]
        if "\ufffd" not in text:
            return list(text.encode())
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        if byte := _BYTE.fullmatch(piece):
            return [int(byte[1], 16)]
        return [_BYTES[each] for each in piece] if all(each in _BYTES for each in piece) else None

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
