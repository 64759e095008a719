"""Texts that end an answer: found in its pieces, and held back while a piece may be the beginning of one."""

from collections.abc import Sequence


class Stops:
    """The text of an answer up to the first of some texts.

    Attributes:
        found: whether one has been found: nothing follows.

    >>> stops = Stops(["END"])
    >>> [stops.add(piece) for piece in ("one E", "lse E", "N", "D two")], stops.found
    (['one ', 'Else ', '', ''], True)
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.found = False
        self._held = ""

    def add(self, piece: str, last: bool = False) -> str:
        """The text that is sure to be in the answer once it has gone on by `piece`; all of it with the `last` one."""
        if not self.texts:
            return piece
        text = self._held + piece
        places = [place for each in self.texts if (place := text.find(each)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = 0 if last else max(_beginning(text, each) for each in self.texts)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _beginning(text: str, stop: str) -> int:
    """How long the longest end of `text` is that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
