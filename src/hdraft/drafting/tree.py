"""The draft tree: proposed continuations of the text so far, merged into one token trie.

The trie is flat arrays, parents before children. Three drafts after "the": "cat sat", "cat ran", "dog" make four nodes:

    >>> tree = DraftTree(tokens=[11, 12, 13, 14], parents=[-1, 0, 0, -1])     # cat, sat, ran, dog
    >>> tree.depths.tolist()
    [1, 2, 2, 1]
    >>> tree.ancestor_mask().astype(int).tolist()       # row: who looks; column: who is seen
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from hdraft.drafting.kernel import kernel


class Source(IntEnum):
    """The database a draft token came from, from the highest temporal locality to the lowest."""

    CONTEXT = 0
    """D_c: this request's prompt and output so far."""
    MODEL = 1
    """D_m: what the target model has generated before."""
    STATISTICS = 2
    """D_s: general text."""
    RECYCLED = 3
    """Candidates: what the target found likely in rows that it verified."""
    REFERENCE = 4
    """Texts that the caller expects the answer to resemble."""


class DraftTree:
    """A trie of n draft tokens as flat arrays, parents before children, siblings distinct.

    Attributes:
        tokens: int32[n], token ids.
        parents: int32[n], the index of each node's parent; -1 for a child of the last accepted token.
        depths: int32[n], 1 for a child of the last accepted token; a node's position is that token's plus its depth.
        sources: uint8[n], the `Source` of each node.
        probabilities: float32[n], the estimated chance that verification reaches and accepts the node (1 where the
            drafter makes no estimate).
    """

    __slots__ = ("depths", "parents", "probabilities", "sources", "tokens")

    def __init__(
        self,
        tokens: npt.ArrayLike,
        parents: npt.ArrayLike,
        sources: npt.ArrayLike | None = None,
        probabilities: npt.ArrayLike | None = None,
        depths: npt.ArrayLike | None = None,
    ) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int32)
        self.parents = np.asarray(parents, dtype=np.int32)
        n = len(self.tokens)
        self.sources = np.zeros(n, np.uint8) if sources is None else np.asarray(sources, np.uint8)
        self.probabilities = np.ones(n, np.float32) if probabilities is None else np.asarray(probabilities, np.float32)
        if depths is None:
            self.depths = np.ones(n, np.int32)
            for node, parent in enumerate(self.parents.tolist()):
                if parent >= 0:
                    self.depths[node] = self.depths[parent] + 1
        else:
            self.depths = np.asarray(depths, dtype=np.int32)

    @classmethod
    def empty(cls) -> "DraftTree":
        """A tree without nodes: ordinary decoding."""
        return cls((), ())

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[Sequence[int]], sources: Sequence[int] | None = None, budget: int | None = None
    ) -> "DraftTree":
        """Merge draft sequences into a trie of at most `budget` nodes, earlier sequences first.

        A token that several sequences share keeps the source of the first. `sources` has one entry a sequence.

        >>> DraftTree.from_sequences([[11, 12], [11, 13], [14]]).parents.tolist()
        [-1, 0, 0, -1]
        """
        tokens: list[int] = []
        parents: list[int] = []
        origin: list[int] = []
        children: dict[tuple[int, int], int] = {}
        for index, sequence in enumerate(sequences):
            parent = -1
            for token in sequence:
                node = children.get((parent, token))
                if node is None:
                    if budget is not None and len(tokens) >= budget:
                        break
                    node = children[(parent, token)] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                    origin.append(0 if sources is None else sources[index])
                parent = node
        return cls(tokens, parents, origin)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"DraftTree({len(self)} nodes, depth {self.depths.max(initial=0)})"

    def check(self, vocab_size: int, budget: int, max_depth: int) -> None:
        """Make sure that it is a tree within these bounds, before kernels and models index with it.

        Raises:
            ValueError: it is not; a fault of the drafter.
        """
        if len({len(getattr(self, name)) for name in self.__slots__}) > 1:
            raise ValueError("the drafter's tree has arrays of different lengths: each has one entry a node")
        if len(self) > budget:
            raise ValueError(f"the drafter's tree has {len(self)} nodes, more than the budget of {budget}")
        node = _first_fault(self.tokens, self.parents, self.depths, self.sources, vocab_size, max_depth, len(Source))
        if node >= 0:
            raise ValueError(
                f"the drafter's tree is malformed at node {node} (token {self.tokens[node]}, parent"
                f" {self.parents[node]}, depth {self.depths[node]}, source {self.sources[node]}): parents come before"
                f" children, one depth above, tokens are below {vocab_size}, depths at most {max_depth}"
            )

    def ancestor_mask(self) -> npt.NDArray[np.bool_]:
        """bool[n, n]: row i marks the nodes that node i may attend to, its ancestors and itself."""
        n = len(self)
        mask = np.eye(n, dtype=np.bool_)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def beside(self, other: "DraftTree") -> "DraftTree":
        """Both below one token, the nodes of `other` last, to be forwarded together; siblings may be equal then."""
        parents = np.where(other.parents < 0, -1, other.parents + len(self))
        return DraftTree(
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.parents, parents)),
            np.concatenate((self.sources, other.sources)),
            np.concatenate((self.probabilities, other.probabilities)),
            np.concatenate((self.depths, other.depths)),
        )

    def best_chain(self, k: int, price: float | npt.NDArray[np.float64] = 0.0) -> "DraftTree":
        """The path, at most `k` tokens long, that is worth most, for engines that verify a single sequence.

        A path is worth the tokens that it is expected to gain, the sum of its probabilities, less its price; the
        earliest among equals is taken, and none where none is worth anything. That is not always where the likeliest
        first token leads:

        >>> tree = DraftTree([5, 6, 7], [-1, -1, 1], probabilities=[0.5, 0.4, 0.4])
        >>> [tree.best_chain(k).tokens.tolist() for k in (1, 2)], len(tree.best_chain(2, price=0.5))
        ([[5], [6, 7]], 0)

        Args:
            k: the most tokens.
            price: of each token; or float64[k + 1], of a path of 0, 1, … `k` tokens.
        """
        prices = price if isinstance(price, np.ndarray) else price * np.arange(k + 1.0)
        path: list[int] = []
        node = end_of_best_path(self.parents, self.depths, self.probabilities, prices, np.empty(len(self)))
        while node >= 0:
            path.append(node)
            node = int(self.parents[node])
        chain = np.array(path[::-1], np.int64)
        return DraftTree(
            self.tokens[chain],
            np.arange(-1, len(path) - 1),
            self.sources[chain],
            self.probabilities[chain],
            self.depths[chain],
        )


@kernel
def _first_fault(
    tokens: npt.NDArray[np.int32],
    parents: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int32],
    sources: npt.NDArray[np.uint8],
    vocab_size: int,
    max_depth: int,
    n_sources: int,
) -> int:
    """The first node that is not one of a tree; -1 if all are."""
    for node in range(len(tokens)):
        parent = parents[node]
        if not (-1 <= parent < node and 0 <= tokens[node] < vocab_size and sources[node] < n_sources):
            return node
        depth = 1 if parent < 0 else depths[parent] + 1
        if depths[node] != depth or depth > max_depth:
            return node
    return -1


@kernel
def end_of_best_path(
    parents: npt.NDArray[np.int32],
    depths: npt.NDArray[np.int32],
    probabilities: npt.NDArray[np.float32],
    prices: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
) -> int:
    """The last node of the path that is worth most, of those that have a price; -1 if none is worth anything."""
    best, end = 0.0, -1
    for node in range(len(parents)):
        gains[node] = probabilities[node] + (gains[parents[node]] if parents[node] >= 0 else 0.0)
        if depths[node] < len(prices) and gains[node] - prices[depths[node]] + prices[0] > best:
            best, end = gains[node] - prices[depths[node]] + prices[0], node
    return end
