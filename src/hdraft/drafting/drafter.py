"""The protocol that every drafting method follows, ours and each baseline.

The decoding loop and the replay of traces know a method by what this file declares, and by nothing else:

    session = drafter.session(prompt_ids, costs)
    while not finished:
        tree = session.propose(budget, max_depth)
        token_ids = verify(tree)            # one forward pass of the target
        session.extend(token_ids)
    session.close()

Every drafter has all of `Drafter`, and every session all of `DraftSession`. Seven more attributes are optional; the
functions below read them, and give a default for a method that does without:

    drafter.uses_costs         whether it weighs the cost of a step         `weighs_costs`       False
    drafter.recycles           whether it drafts the target's candidates    `uses_candidates`    False
    drafter.takes_references   whether `session` takes `references`         `takes_references`   False
    drafter.takes_draws        whether `session` takes `draws`              `takes_draws`        False
    drafter.kernel_arguments   what to compile for it, see there            `kernel_arguments`   all
    drafter.lookahead_nodes    the most nodes of its lookahead branch       `lookahead_nodes`    0
    session.lookahead          that branch, which feeds D_c                 `lookahead_branch`   None

The adapters to other engines are for `HierarchyDrafter` alone, and use more of it than this: a price, the length of a
match.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from hdraft.drafting.costs import Costs
from hdraft.drafting.kernel import kernel
from hdraft.drafting.tree import DraftTree

if TYPE_CHECKING:
    from hdraft.drafting.methods.lookahead_branch import LookaheadBranch

IdArray = npt.NDArray[np.integer]
"""Token ids as an array of any integers and shape."""

TokenIds = Sequence[int] | IdArray
"""Token ids of one sequence: a list, or a 1-D integer array."""

UNLIMITED = 2**31 - 1
"""A depth that no draft reaches."""


class Candidates(NamedTuple):
    """The target's most likely next tokens in each row of a step: after the text so far, then after each node.

    Attributes:
        tree: the n nodes that were verified.
        tokens: int[1 + n, k], the likeliest first; -1 in a row that is not known.
        log_probabilities: float[1 + n, k], of the target's own distribution: whatever processes its logits, and
            whatever the temperature.
    """

    tree: DraftTree
    tokens: IdArray
    log_probabilities: npt.NDArray[np.floating]


class Draws(Protocol):
    """The random numbers that tokens will be drawn by: what a seed decides beforehand.

    Of probabilities p, the token of the largest p / q is drawn, with q from the exponential distribution: each token
    with its probability (the Gumbel-max trick). Who knows q and roughly knows p often knows the token.
    """

    def ahead(self, n: int) -> npt.NDArray[np.float32]:
        """float32[m, vocabulary], m <= n: q of the next m tokens behind those emitted so far, as far as it is known.

        The array stays as it is.
        """
        ...


class UnknownDraws:
    """Of tokens that are drawn, nobody knows by which numbers."""

    def ahead(self, n: int) -> npt.NDArray[np.float32]:
        """See `Draws.ahead`."""
        return np.empty((0, 0), np.float32)


class DraftSession(Protocol):
    """One request: its text, its D_c, its counters. Used by one thread at a time."""

    def propose(self, budget: int, max_depth: int = UNLIMITED) -> DraftTree:
        """Draft at most `budget` nodes, none deeper than `max_depth`: the tokens the request may still emit."""
        ...

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        """Take in the tokens that a step emitted.

        Args:
            token_ids: the tokens emitted, in order.
            ngrams: int[m, ngram_size], n-grams of the lookahead branch, for D_c.
            candidates: of the step, where the engine has the target's logits.
        """
        ...

    def close(self) -> None:
        """End the request; a learning D_m takes its output in. Closing twice is closing once."""
        ...


class Drafter(Protocol):
    """The part that requests share: D_m and D_s. Safe to share between threads."""

    vocab_size: int
    """Ids at or above it are never drafted."""

    def session(self, prompt_ids: TokenIds, costs: Costs | None = None) -> DraftSession:
        """Start a request.

        Args:
            prompt_ids: the request's prompt, which may be empty.
            costs: the time of a step over 0, 1, 2, … draft tokens. A drafter that chooses how much to draft weighs
                probability against it; without it, it drafts to its budget. It is float[m], in any unit, and stays so,
                as for a run that is to be repeated; or `StepCosts`, which the engine tells of every step: to be asked
                before each tree, first `explore`, then `costs`. (`numpy.asarray` makes an array of either.)
        """
        ...


def is_drafter(value: object) -> TypeGuard[Drafter]:
    """Whether it has what every drafter has; a class of drafters has no vocabulary yet."""
    return hasattr(value, "session") and hasattr(value, "vocab_size")


def weighs_costs(drafter: Drafter | None) -> bool:
    """Whether a drafter's sessions use the `costs` that they are given; others are given none."""
    return bool(getattr(drafter, "uses_costs", False))


def uses_candidates(drafter: Drafter | None) -> bool:
    """Whether a drafter's sessions use the target's candidates; others are given none."""
    return bool(getattr(drafter, "recycles", False))


def takes_references(drafter: Drafter | None) -> bool:
    """Whether a drafter's `session` takes `references`: texts, as token ids, that the output will probably resemble."""
    return bool(getattr(drafter, "takes_references", False))


def takes_draws(drafter: Drafter | None) -> bool:
    """Whether a drafter's `session` takes `draws`, where the target's tokens are drawn, and not its likeliest."""
    return bool(getattr(drafter, "takes_draws", False))


def lookahead_nodes(drafter: Drafter | None) -> int:
    """The most nodes of the lookahead branch that is forwarded beside a drafter's trees; 0 for no branch."""
    return int(getattr(drafter, "lookahead_nodes", 0))


def lookahead_branch(session: DraftSession) -> "LookaheadBranch | None":
    """The lookahead branch of a request: an engine that has the target's logits runs it in the same forward pass."""
    branch: LookaheadBranch | None = getattr(session, "lookahead", None)
    return branch


def kernel_arguments(drafter: Drafter) -> tuple[str, ...]:
    """What `compile_kernels` is called with to compile all kernels that a drafter may use."""
    return tuple(getattr(drafter, "kernel_arguments", (str(drafter.vocab_size), "--all")))


def vocabulary_size(model: Any) -> int:
    """How many ids a model knows, the `vocab_size` of its drafter: at least as many as its tokenizer.

    Its configuration does not always say so: that of a model that also sees keeps it with the text's.

    Args:
        model: of Hugging Face, perhaps in a wrapper; or the number itself, for an engine that has no such model.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, int):
        return model
    if not hasattr(model, "get_input_embeddings"):
        raise ValueError(f"a drafter is for a model, or for a vocabulary's size, not for a {type(model).__name__}")
    return len(model.get_input_embeddings().weight)


def check_ids(token_ids: TokenIds, vocab_size: int) -> npt.NDArray[np.int32]:
    """Token ids as int32[n], a copy.

    Raises:
        ValueError: they are not one sequence of integers, or one is outside the vocabulary.
    """
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids must be one sequence of integers, not {ids.dtype}{list(ids.shape)}")
    wide = ids.astype(np.int64)  # also a copy, and so of the one type that the kernel is compiled for
    if len(ids) and (outside := _first_outside(wide, vocab_size)) >= 0:
        raise ValueError(f"token id {ids[outside]} is outside the vocabulary of {vocab_size}")
    return wide.astype(np.int32)


@kernel
def _first_outside(ids: npt.NDArray[np.int64], vocab_size: int) -> int:
    for i in range(len(ids)):
        if ids[i] < 0 or ids[i] >= vocab_size:
            return i
    return -1
