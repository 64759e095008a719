"""A drafter that knows the answer and hides it among wrong branches."""

from collections.abc import Sequence

import numpy as np

from hdraft.drafting.drafter import UNLIMITED
from hdraft.drafting.tree import DraftTree, Source


class OracleDrafter:
    """Proposes random tries that hold the recorded continuation, to a random depth, at random ranks."""

    def __init__(self, vocab_size: int, sequence: Sequence[int], prompt_length: int, seed: int = 0, right=0.9) -> None:
        self.vocab_size = vocab_size
        self.sequence = list(sequence)
        self.prompt_length = prompt_length
        self.random = np.random.default_rng(seed)
        self.right = right
        self.trees: list[DraftTree] = []
        self.lengths: list[int] = []  # of the text at each proposal
        self.extended: list[list[int]] = []
        self.closed = 0

    def session(self, prompt_ids, costs=None) -> "OracleDrafter":
        assert list(prompt_ids) == self.sequence[: self.prompt_length]
        self.length = len(prompt_ids)
        return self

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        assert budget > 0 and max_depth > 0
        rest = self.sequence[self.length :]
        reach = min(len(rest), max_depth, int(self.random.integers(1, 9)))
        drafts = []
        right = list(rest[:reach])
        for i in range(len(right)):
            if self.random.random() > self.right:  # wrong from here on
                right[i:] = self.random.integers(self.vocab_size, size=len(right) - i).tolist()
                break
        drafts.append(right)
        for _ in range(int(self.random.integers(0, 6))):  # wrong branches, some off the right path
            common = int(self.random.integers(0, reach + 1))
            more = int(self.random.integers(1, 4))
            drafts.append((right[:common] + self.random.integers(self.vocab_size, size=more).tolist())[:max_depth])
        self.random.shuffle(drafts)
        # insertion in random order, so that nodes of different branches interleave
        tokens, parents, depths = [], [], []
        children = {}
        frontier = [(draft, -1, 0) for draft in drafts if draft]
        while frontier and len(tokens) < budget:
            index = int(self.random.integers(len(frontier)))
            draft, parent, depth = frontier.pop(index)
            node = children.get((parent, draft[depth]))
            if node is None:
                node = children[parent, draft[depth]] = len(tokens)
                tokens.append(draft[depth])
                parents.append(parent)
                depths.append(depth + 1)
            if depth + 1 < len(draft):
                frontier.append((draft, node, depth + 1))
        sources = self.random.integers(len(Source), size=len(tokens))
        tree = DraftTree(tokens, parents, sources, self.random.random(len(tokens)), depths)
        self.trees.append(tree)
        self.lengths.append(self.length)
        return tree

    def extend(self, token_ids, ngrams=None, candidates=None) -> None:
        self.extended.append(list(token_ids))
        self.length += len(token_ids)

    def close(self) -> None:
        self.closed += 1
