"""The log of decoding, "hdraft.decoding": everything in this folder writes to it."""

import logging

logger = logging.getLogger("hdraft.decoding")

_said: set[str] = set()


def in_short(error: Exception) -> str:
    """Its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def say_once(message: str) -> None:
    """Log a line that has not been logged before."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)
