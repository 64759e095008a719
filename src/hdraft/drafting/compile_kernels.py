"""All kernels, compiled and kept: what `compiling` runs in a process of its own, and `make setup` once.

    python -m hdraft.drafting.compile_kernels 49152       # the ids that a model knows; --all: of the other methods too
"""

import argparse
import os
from collections.abc import Iterable
from math import inf

import numpy as np

from hdraft.drafting import kernel_cache, tree_masks
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.drafter import Drafter, lookahead_branch
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import LookaheadDrafter, PromptLookupDrafter, PublishedDrafter, RestDrafter
from hdraft.files import exclusive

NICE = 5
"""By how much others come first; beside a model that keeps every core busy, more would take minutes."""


def warm_up(drafter: Drafter) -> None:
    """Have the kernels of a drafter compiled, or loaded, in this process and at once; nothing is kept of it."""
    if isinstance(drafter, HierarchyDrafter):
        drafter.warm_up()
        return
    session = drafter.session([0] * 16)
    branch = lookahead_branch(session)
    for _ in range(2 if branch is None else 2 + branch.depth):
        tree = session.propose(4, 4)
        tree.check(drafter.vocab_size, 4, 4)
        tree.best_chain(4)
        ngrams = None if branch is None else branch.advance(np.zeros(len(branch.rows[-1]), np.int64), 0)
        session.extend([0], ngrams)
    tree_masks.warm_up()


def _all_methods(vocab_size: int) -> Iterable[Drafter]:
    documents = [[1, 2, 1, 2, 1], [0, 1, 0]]
    stored = ModelDatabase.from_documents(documents, vocab_size)
    general = StatisticsDatabase.from_documents(documents, vocab_size)
    yield PublishedDrafter(vocab_size, stored, general)
    yield RestDrafter(vocab_size, general)
    yield PromptLookupDrafter(vocab_size)
    yield LookaheadDrafter(vocab_size)


def main() -> None:
    """Compile kernels for drafters with so many ids, and keep them."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("vocab_size", type=int, help="how many ids the model knows")
    parser.add_argument("--all", action="store_true", help="of all methods, not just of hierarchy drafting")
    arguments = parser.parse_args()
    if arguments.vocab_size < 3:
        parser.error("a model knows 3 ids or more")
    if hasattr(os, "nice"):
        os.nice(NICE)
    if not kernel_cache.folders:
        parser.exit(1, "no folder for compiled kernels can be written: set NUMBA_CACHE_DIR\n")
    with exclusive(min(kernel_cache.folders), inf):  # what others compile meanwhile needs not be done again
        warm_up(HierarchyDrafter(arguments.vocab_size))
        for drafter in _all_methods(arguments.vocab_size) if arguments.all else ():
            warm_up(drafter)


if __name__ == "__main__":
    main()
