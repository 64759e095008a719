"""The fields of a JSON object, taken one by one: each is checked, and what is left over is refused."""

from typing import Any, TypeVar

from hdraft.serve.errors import ApiError, invalid

T = TypeVar("T")

_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


class Fields:
    """What a client sent; a field that is null is as one that is absent.

    Args:
        value: of any kind: what is no object is refused.
        where: its place in the body, for messages.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        if not isinstance(value, dict):
            raise ApiError(400, f"{where or 'The body'} must be an object.", param=where or None, code="invalid_type")
        self.where = where
        self.left = {name: each for name, each in value.items() if each is not None}

    def name(self, name: str) -> str:
        """A field's place in the body."""
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, *kinds: type) -> Any:
        """A field of one of these kinds; None if it is absent."""
        value = self.left.pop(name, None)
        if value is None:
            return None
        kind = type(value)
        if kind is int and float in kinds and int not in kinds:
            try:
                return float(value)
            except OverflowError:
                raise invalid(self.name(name), "the number is too large") from None
        if kind not in kinds:
            expected = " or ".join(_NAMES[each] for each in kinds)
            raise invalid(self.name(name), f"it must be {expected}, not {_NAMES[kind]}", "invalid_type")
        return value

    def need(self, name: str, *kinds: type) -> Any:
        """A field that must be there."""
        value = self.take(name, *kinds)
        if value is None:
            where = self.name(name)
            raise ApiError(
                400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
            )
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number within bounds."""
        return self._within(name, self.take(name, float), least, most)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """An integer within bounds."""
        return self._within(name, self.take(name, int), least, most)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name, bool)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A string, or the texts of an array of parts `{"type": "text", "text": …}`, joined."""
        value = self.take(name, str, list)
        if value is None:
            return default
        return value if isinstance(value, str) else "".join(_parts(value, self.name(name)))

    def ignore(self, *names: str) -> None:
        """Take fields that change nothing of the answer."""
        for name in names:
            self.left.pop(name, None)

    def end(self) -> None:
        """Refuse the fields that are left."""
        for name in self.left:
            where = self.name(name[:80])
            raise ApiError(400, f"Unknown parameter: '{where}'.", param=where, code="unknown_parameter")

    def _within(self, name: str, value: T | None, least: float, most: float) -> T | None:
        if value is not None and not least <= value <= most:  # type: ignore[operator]
            raise invalid(self.name(name), f"it must be from {least} to {most}")
        return value


def _parts(parts: list[Any], where: str) -> list[str]:
    texts = []
    for index, part in enumerate(parts):
        fields = Fields(part, f"{where}[{index}]")
        kind = fields.need("type", str)
        if kind not in ("text", "refusal"):
            raise invalid(fields.name("type"), f"this server takes text alone, and no {kind[:40]}")
        texts.append(fields.need(kind, str))
        fields.end()
    return texts
