"""D_m, the model-dependent database: what this target model has generated before."""

import threading
from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.sorting import append, build, drop_oldest
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.databases.vocabulary import Tokenizer
from hdraft.drafting.drafter import IdArray, TokenIds

CAPACITY = 2**20
"""How many tokens a database learns before it drops the oldest."""


class ModelDatabase(Database):
    """Outputs of the target: those stored in the database, and those learned since it was opened.

    Both are suffix arrays that never change: learning makes a new one and puts it in the old one's place, so readers
    take a `snapshot` and need no lock. Safe to share between threads.

    Attributes:
        capacity: the most tokens kept of what is learned; the oldest documents go first.
    """

    kind = "model"

    def __init__(
        self,
        vocab_size: int,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer | str | None = None,
        array: SuffixArray | None = None,
        *,
        capacity: int = CAPACITY,
    ) -> None:
        if capacity < 2:
            raise ValueError(f"capacity is {capacity}: it must be at least 2 tokens")
        super().__init__(vocab_size, eos_token_id, tokenizer, array)
        self.capacity = capacity
        self._lock = threading.Lock()
        self._learned = self._sorted(())

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, learned {len(self._learned.tokens)})"

    def snapshot(self) -> tuple[SuffixArray, SuffixArray]:
        """The stored and the learned documents as they are now; these arrays never change."""
        return self.array, self._learned

    def learn(self, output_ids: TokenIds) -> None:
        """Take a finished output in; an end-of-sequence id is added if it lacks one.

        Costs a copy of what is learned. Of an output longer than `capacity`, the newest tokens are kept.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        self._learn([self._document(output_ids)])

    def learn_known(self, *outputs: TokenIds) -> None:
        """Take in what of finished outputs is within the vocabulary: each piece between other ids as a document.

        Several together cost one copy of what is learned.
        """
        pieces = (piece for output in outputs for piece in self._known(np.asarray(output)))
        self._learn([self._document(piece) for piece in pieces])

    def _learn(self, documents: list[npt.NDArray[np.unsignedinteger]]) -> None:
        documents = [document[-self.capacity :] for document in documents if len(document) > 1]
        while sum(map(len, documents)) > self.capacity:
            del documents[0]
        if not documents:
            return
        new = np.concatenate(documents)
        with self._lock:
            learned = self._learned
            excess = len(learned.tokens) + len(new) - self.capacity
            if excess > 0:  # make room for more than this, so that the next few need not
                learned = drop_oldest(learned, self._end_of_document(learned.tokens, excess + self.capacity // 16))
            self._learned = append(learned, new, self.separator)

    def learned(self) -> "ModelDatabase":
        """What has been learned, as a database of its own, which holds it as it is now."""
        database = ModelDatabase(self.vocab_size, self.eos_token_id, self.tokenizer, self._learned)
        database.token_hashes = self.token_hashes
        return database

    def anew(self) -> "ModelDatabase":
        """Another database of the same stored documents, which has learned nothing: a tenant's, say."""
        database = ModelDatabase(self.vocab_size, self.eos_token_id, self.tokenizer, self.array, capacity=self.capacity)
        database.token_hashes = self.token_hashes
        return database

    def relearn(self, database: "ModelDatabase") -> None:
        """Put what another database holds in the place of what has been learned: its newest `capacity` tokens.

        Only its tokens are read. They are sorted anew, so that nothing else of a file need be right.
        """
        newest = database.tokens[-self.capacity :]
        if len(newest) < len(database.tokens):
            newest = newest[int(np.argmax(newest == database.separator)) + 1 :]
        pieces = (piece for document in database._split(newest) for piece in self._known(document))
        documents = [document for piece in pieces if len(document := self._document(piece)) > 1]
        learned = self._sorted(np.concatenate(documents) if documents else ())
        with self._lock:
            self._learned = learned

    def documents(self) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        """The documents, stored then learned, oldest first, without what ends them; empty ones are left out."""
        return chain.from_iterable(map(self._split, (array.tokens for array in self.snapshot())))

    def _known(self, ids: IdArray) -> Iterator[IdArray]:
        """The pieces of a text between ids that are outside the vocabulary."""
        unknown = np.flatnonzero((ids < 0) | (ids >= self.vocab_size)).tolist()
        for begin, end in zip([0, *(place + 1 for place in unknown)], [*unknown, len(ids)], strict=True):
            yield ids[begin:end]

    def _to_save(self) -> SuffixArray:
        """Stored and learned together, the newest, in no more room than the larger of what is stored and `capacity`."""
        stored, learned = self.snapshot()
        if not len(learned.tokens):
            return stored
        tokens = np.concatenate((stored.tokens, learned.tokens))
        excess = len(tokens) - max(len(stored.tokens), self.capacity)
        if excess > 0:
            tokens = tokens[self._end_of_document(tokens, excess) :]
        return build(tokens, self.vocab_size, self.separator)

    def _end_of_document(self, tokens: npt.NDArray[np.unsignedinteger], count: int) -> int:
        """`count` or a little more: the end of the document that the first `count` tokens end in."""
        if count >= len(tokens):
            return len(tokens)
        return count + int(np.argmax(tokens[count - 1 :] == self.separator))
