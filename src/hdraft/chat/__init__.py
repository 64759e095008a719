"""`hdraft chat`: turns with history over one cache, in a terminal or through a pipe."""

from hdraft.chat.conversing import Chat, Turn

__all__ = ["Chat", "Turn"]
