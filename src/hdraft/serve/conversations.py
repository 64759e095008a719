"""The caches of finished requests, for a conversation's next turn to go on from."""

import numpy as np
from transformers import PretrainedConfig

from hdraft.decoding import GrowingCache


class Conversations:
    """Keys and values of what was said, the least recently used given up first. For one thread.

    A conversation's next turn begins with what was said in it, so its cache is taken and goes on. A prompt that shares
    only the beginning of a cache, as a system prompt or an earlier turn, gets a copy of that much, and both stay.

    Args:
        config: of the model.
        room: the most bytes that are kept between requests; 0 for none.

    Attributes:
        nbytes: of what is kept.
    """

    def __init__(self, config: PretrainedConfig, room: int) -> None:
        self.config = config
        self.room = room
        self.nbytes = 0
        self._kept: list[tuple[str, GrowingCache]] = []  # the least recently used first

    def take(self, owner: str, ids: list[int]) -> tuple[GrowingCache, int]:
        """A cache to go on from with this prompt, and how many of its tokens it holds.

        Only what the same owner's requests left is looked at: how soon a prompt is read tells nobody what others said.
        """
        tokens = np.stack((ids, np.arange(len(ids)), np.ones(len(ids), np.int64)), axis=1)
        shared = [cache.agrees(tokens) if whose == owner else 0 for whose, cache in self._kept]
        best = max(range(len(shared)), key=shared.__getitem__, default=-1)
        if best < 0 or not shared[best]:
            return GrowingCache(self.config), 0
        _, cache = self._kept.pop(best)
        if 2 * shared[best] < len(cache.tokens):
            self._kept.append((owner, cache))
            return cache.fork(shared[best]), shared[best]
        self.nbytes -= cache.nbytes
        return cache, shared[best]

    def give(self, owner: str, cache: GrowingCache) -> None:
        """Keep the cache of a finished request."""
        if not len(cache.tokens):
            return
        self._kept.append((owner, cache))
        self.nbytes += cache.nbytes
        while self.nbytes > self.room:
            self.nbytes -= self._kept.pop(0)[1].nbytes
