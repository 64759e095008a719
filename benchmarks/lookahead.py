"""Does a lookahead branch pay for Hierarchy Drafting? Its MAT with the branch's n-grams and without, width for width.

A step over a draft of 64 nodes and a branch of 27 is as wide as one over a draft of 91. So `hd` is run with 64 draft
tokens and with 91, and with 64 beside a branch whose n-grams join the tree: what they add to MAT has to be more than
what 27 (and the n-grams' own places) more draft tokens add. The embedded model, on the questions that come with hdraft.

python benchmarks/lookahead.py --json benchmarks/results/lookahead.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hdraft.decoding import Statistics, generate
from hdraft.demo import MODEL, MODEL_DATABASE
from hdraft.drafting import Drafter, DraftSession, DraftTree, compile_kernels
from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.drafter import UNLIMITED, TokenIds
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import LookaheadDrafter
from hdraft.evaluation.answering import Answerer, Setup
from hdraft.evaluation.machine import machine
from hdraft.evaluation.questions import SMALL, read_questions

NGRAM_SIZE, WINDOW, GUESS = 5, 7, 7


class BesideLookahead:
    """A drafter's trees, with the n-grams of a lookahead branch merged in behind."""

    def __init__(self, drafter: Drafter, lookahead: LookaheadDrafter) -> None:
        self.vocab_size = drafter.vocab_size
        self.lookahead_nodes = lookahead.lookahead_nodes
        self.drafter, self.pool = drafter, lookahead

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> "BesideSession":
        """Start both."""
        return BesideSession(self.drafter.session(prompt_ids, costs), self.pool.session(prompt_ids))


class BesideSession:
    """One request of both."""

    def __init__(self, session: DraftSession, pool: Any) -> None:
        self.inner, self.pool, self.lookahead = session, pool, pool.lookahead

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """The tree, and below its root the n-grams that it lacks, up to the budget."""
        tree = self.inner.propose(min(budget, 64), max_depth)
        ngrams = self.pool.propose(GUESS * (NGRAM_SIZE - 1), max_depth)
        paths = [_path(each, node) for each in (tree, ngrams) for node in range(len(each))]
        return DraftTree.from_sequences(paths, budget=budget)

    def extend(self, token_ids: TokenIds, ngrams: Any = None, candidates: Any = None) -> None:
        """Both read the text."""
        self.inner.extend(token_ids)
        self.pool.extend(token_ids, ngrams)

    def close(self) -> None:
        """End both."""
        self.inner.close()


def _path(tree: DraftTree, node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(tree.tokens[node]))
        node = int(tree.parents[node])
    return path


def run(answerer: Answerer, make: Callable[[], Drafter], budget: int, max_new_tokens: int) -> dict[str, Any]:
    """MAT, and draft tokens a step, over the first turns of all questions; drafts fill the budget."""
    drafter, statistics = make(), Statistics()
    compile_kernels.warm_up(drafter)
    for question in read_questions(SMALL):
        prompt = answerer.prompt(question, [])
        generate(
            answerer.model,
            prompt,
            drafter,
            budget=budget,
            costs=np.ones(budget + 1),
            statistics=statistics,
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
    return {"mat": statistics.mean_accepted_tokens, "drafted_per_step": statistics.drafted / statistics.steps}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    answerer = Answerer(Setup(str(MODEL), {}, dtype="float32"))
    size = answerer.model.config.vocab_size

    def hd() -> HierarchyDrafter:
        return HierarchyDrafter(size, ModelDatabase.from_pretrained(MODEL_DATABASE), learn=True)

    def pool() -> LookaheadDrafter:
        return LookaheadDrafter(size, ngram_size=NGRAM_SIZE, window=WINDOW, guess=GUESS)

    branch = WINDOW * (NGRAM_SIZE - 1) - 1
    runs = {
        "lookahead": run(answerer, pool, 64, arguments.max_new_tokens),
        "hd, 64": run(answerer, hd, 64, arguments.max_new_tokens),
        f"hd, 64, and a branch of {branch} with its n-grams": run(
            answerer, lambda: BesideLookahead(hd(), pool()), 128, arguments.max_new_tokens
        ),
        f"hd, {64 + branch}": run(answerer, hd, 64 + branch, arguments.max_new_tokens),
    }
    for name, figures in runs.items():
        print(f"{name:50} MAT {figures['mat']:.3f}  drafted a step {figures['drafted_per_step']:.1f}")
    if arguments.json:
        result = {"machine": machine(), "max_new_tokens": arguments.max_new_tokens, "runs": runs}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
