"""The log of decoding, "hdraft.decoding": everything in this folder writes to it."""

import logging

logger = logging.getLogger("hdraft.decoding")

_said: set[str] = set()


def say_once(message: str) -> None:
    """Log a line that has not been logged before."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)
