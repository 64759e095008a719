"""The adaptive hierarchy: one draft tree, grown best-first over all databases at once.

The published method fills a fixed number of sequences, database after database. Here the next node is always the one
with the highest estimated probability, whichever database it comes from (`growth`): a mixture of what followed its
context's matches in every database (`mixing`). A child's matches are its parent's, one token longer (`matching`), and
what was once looked up in D_m and D_s is kept (`lookups`), so nothing is searched for twice.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting import tree_masks
from hdraft.drafting.costs import Costs
from hdraft.drafting.databases.candidates import WIDTH
from hdraft.drafting.databases.candidates import allocate as allocate_candidates
from hdraft.drafting.databases.context import ContextDatabase
from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.frequent import SUFFIX_LENGTH
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.opening import Named, open_databases
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.databases.vocabulary import Tokenizer
from hdraft.drafting.drafter import UNLIMITED, Candidates, Draws, IdArray, TokenIds, check_ids, vocabulary_size
from hdraft.drafting.hierarchy import growth, lookups, matching, mixing, reference, state
from hdraft.drafting.hierarchy.budget import BudgetRule
from hdraft.drafting.hierarchy.experience import Experience
from hdraft.drafting.hierarchy.growth import SIZE, Drawing, SessionArrays, Verified, advance_and_grow
from hdraft.drafting.hierarchy.matching import Databases
from hdraft.drafting.kernel import specialised
from hdraft.drafting.kernel_store import hand_over, kind_of
from hdraft.drafting.tree import DraftTree

_CONTEXTS = 2**14  # of D_m and D_s, kept for a request
FORESEEN = 8
"""The deepest nodes for which draws are asked for."""
_NO_IDS = np.empty(0, np.int32)
_NO_CHAINS = np.empty((1, 0), np.int32)
_NO_PRICES = np.zeros(1)
_ROWS = 2**13  # of candidates, kept for a request: 0.6 MB
_NO_CANDIDATES = allocate_candidates(0)
_NO_REFERENCE = reference.make_reference([])
NOT_DRAWN = Drawing(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
NOT_VERIFIED = Verified(_NO_IDS, _NO_IDS, np.empty((0, WIDTH), np.int32), np.empty((0, WIDTH), np.float32))


class HierarchyDrafter:
    """Hierarchy Drafting with one best-first tree over any subset of the databases; with none, D_c alone.

    Args:
        vocab_size: the target's; ids at or above it are refused, and never drafted. The databases' may be smaller,
            where a model's embedding has more rows than its tokenizer has tokens.
        model_database: D_m, what the target has generated before.
        statistics_database: D_s, general text.
        learn: whether a finished request's output joins D_m, and so may be drafted for later requests.
        experience: how much to believe which match, where its requests go on learning; by default, what is shipped.
        sampled_experience: likewise, for requests whose tokens are drawn and not the target's likeliest.

    Raises:
        ValueError: a database with ids that the target has not, or two that differ.

    >>> drafter = HierarchyDrafter(vocab_size=100)
    >>> session = drafter.session([5, 6, 7, 5, 6])
    >>> session.propose(budget=2).tokens.tolist()
    [7, 5]
    """

    uses_costs = True
    recycles = True
    takes_references = True
    takes_draws = True

    def __init__(
        self,
        vocab_size: int,
        model_database: ModelDatabase | None = None,
        statistics_database: StatisticsDatabase | None = None,
        *,
        learn: bool = False,
        experience: Experience | None = None,
        sampled_experience: Experience | None = None,
    ) -> None:
        for database in (model_database, statistics_database):
            if database is not None:
                database.check_fits(vocab_size)
        if model_database is None:
            model_database = _new_model_database(vocab_size, statistics_database)
        if statistics_database is not None and not statistics_database.fits(model_database):
            raise ValueError("the databases differ in their vocabulary: build both with this model's tokenizer")
        self.vocab_size = int(vocab_size)
        self.model_database = model_database
        self.statistics_database = statistics_database
        self.learn = learn
        self.kernel_arguments = (str(model_database.vocab_size),)
        self._general = (statistics_database or ModelDatabase(model_database.vocab_size)).array
        separators = [vocab_size, model_database.separator, model_database.separator, vocab_size]
        if statistics_database is not None:
            separators[-1] = statistics_database.separator
        self._separators = np.array(separators, np.int64)
        self._rarity = _rarity(vocab_size, statistics_database or model_database)
        self.experience = Experience() if experience is None else experience
        self.sampled_experience = Experience(sampled=True) if sampled_experience is None else sampled_experience
        self._kernels: Kernels | None = None

    @classmethod
    def for_model(
        cls,
        model: Any,
        tokenizer: Tokenizer | None = None,
        model_database: ModelDatabase | Named | None = None,
        statistics_database: StatisticsDatabase | Named | None = None,
        *,
        learn: bool = False,
    ) -> "HierarchyDrafter":
        """A drafter for a model, with the databases that are named.

        Args:
            model: of Hugging Face, perhaps in a wrapper; or its vocabulary's size, for an engine without such a model.
            tokenizer: the model's. Databases that are named must be of it, and what is learnt remembers it.
            model_database: D_m: a folder, a name on the Hugging Face Hub, or an open one.
            statistics_database: D_s, likewise.
            learn: whether a finished request's output joins D_m, and so may be drafted for later requests.

        Raises:
            DatabaseError, ValueError: there is no such database, or it does not fit, or the two differ.

        >>> HierarchyDrafter.for_model(100, learn=True).vocab_size
        100
        """
        size = vocabulary_size(model)
        if tokenizer is not None and not hasattr(tokenizer, "get_vocab"):
            raise ValueError(f"the tokenizer must be the model's own, not a {type(tokenizer).__name__}")
        stored, general = open_databases(model_database, statistics_database, tokenizer, size)
        if stored is None and learn:
            stored = _new_model_database(size, general, tokenizer)
        return cls(size, stored, general, learn=learn)

    def session(
        self,
        prompt_ids: TokenIds,
        costs: Costs | None = None,
        references: Sequence[TokenIds] = (),
        draws: Draws | None = None,
    ) -> "HierarchySession":
        """Start a request; see `Drafter.session`.

        Args:
            prompt_ids, costs: as there.
            references: texts that the output will probably resemble, such as the file to be edited: drafted from, for
                this request alone, and never learnt. See `reference`.
            draws: where the target's tokens are drawn at random and are not its likeliest. What is learnt of how much
                to believe which match is kept apart then.

        >>> session = HierarchyDrafter(vocab_size=100).session([1, 2], references=[[7, 8, 9]])
        >>> session.propose(budget=3).tokens.tolist()
        [7, 8, 9]
        """
        return HierarchySession(self, prompt_ids, costs, references, draws)

    def scoped(self, model_database: ModelDatabase) -> "HierarchyDrafter":
        """This drafter with another D_m, so that what one tenant's requests learn is never drafted for another's.

        D_s is shared, and so is what has been learnt of how much to believe which match, which holds no text.

        >>> general = HierarchyDrafter(vocab_size=100, learn=True)
        >>> tenants = {name: general.scoped(ModelDatabase(100)) for name in ("acme", "globex")}
        >>> session = tenants["acme"].session([1])
        >>> session.extend([7, 8, 9])
        >>> session.close()
        >>> [len(tenants[name].session([7]).propose(4)) > 0 for name in tenants]
        [True, False]

        Raises:
            ValueError: the database has ids that the target has not, or is of another vocabulary than D_s.
        """
        return HierarchyDrafter(
            self.vocab_size,
            model_database,
            self.statistics_database,
            learn=self.learn,
            experience=self.experience,
            sampled_experience=self.sampled_experience,
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Keep what has been learnt in a folder, for `load` in another process; requests may run meanwhile.

        That is what D_m has learned (with `learn`; what it was opened with stays where it is) and the experience of how
        much to believe which match. It takes no more room however often it is saved: D_m learns up to its `capacity`.
        A crash leaves what was saved before or what is saved now, for each of the two. Where several save to one
        folder, one waits for the other, and the last one's stays.

        Raises:
            DatabaseError: the folder holds something else, or cannot be written; what was saved before is untouched.
        """
        state.save(folder, self.vocab_size, (self.experience, self.sampled_experience), self.model_database)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on from what `save` kept in a folder, in the place of what this drafter has learnt.

        An empty folder, or one of a first save that was interrupted, changes nothing. Experience of another version of
        hdraft is left out, with a line in the log, and what D_m learned is taken.

        Raises:
            DatabaseError: there is no such folder, it holds something else, or it is damaged or of a drafter for
                another vocabulary or tokenizer; the drafter is as it was.
        """
        learnt, learned = state.load(folder, self.vocab_size, self.model_database, self.statistics_database)
        for experience, those in zip((self.experience, self.sampled_experience), learnt, strict=True):
            if those is not None:
                experience.restore(those)
        if learned is not None:
            self.model_database.relearn(learned)

    def warm_up(self) -> None:
        """Compile all kernels at once, so that the first request has drafts too; nothing of it is kept."""
        session = self.session([0] * 16)
        tree = session.propose(2)
        tree.check(self.vocab_size, 2, UNLIMITED)
        tree.best_chain(2)
        tree_masks.warm_up()
        session.extend([0] * 512)  # from here on, what only long texts need, and learning
        session.propose(2)
        database = ModelDatabase(self.model_database.vocab_size, capacity=8)
        for _ in range(4):
            database.learn([0, 0, 0])

    def _arrays(self) -> tuple[SuffixArray, SuffixArray, SuffixArray]:
        stored, learned = self.model_database.snapshot()
        return learned, stored, self._general

    def kernels(self, arrays: SessionArrays | None = None) -> "Kernels":
        """The kernels for its sessions; the first session brings its arrays, and all others' are of the same types."""
        if self._kernels is None:
            assert arrays is not None
            kind, memory = kind_of(arrays), np.empty(0, np.int64)
            store = specialised(hand_over, (arrays, memory))
            calls = np.empty((0, 5), np.int64)
            arguments = (_NO_IDS, True, NOT_VERIFIED, NOT_DRAWN, self.vocab_size, _NO_PRICES, 0, _NO_CHAINS)
            work = specialised(advance_and_grow, (calls, kind, *arguments, 0, 0))
            self._kernels = Kernels(kind, store(arrays, memory), store, work)
        return self._kernels


class Kernels(NamedTuple):
    """What a drafter's sessions call."""

    kind: Any  # the type of their arrays
    words: int  # int64s that they are stored in
    hand_over: Callable[..., int]
    advance_and_grow: Callable[..., None]


class HierarchySession:
    """One request of a `HierarchyDrafter`."""

    def __init__(
        self,
        drafter: HierarchyDrafter,
        prompt_ids: TokenIds,
        costs: Costs | None = None,
        references: Sequence[TokenIds] = (),
        draws: Draws | None = None,
    ) -> None:
        self._drafter = drafter
        prompt = check_ids(prompt_ids, drafter.vocab_size)
        self._context = ContextDatabase(prompt[:-SUFFIX_LENGTH])
        self._experience = drafter.experience if draws is None else drafter.sampled_experience
        self._before, rate = self._experience.start()
        self._weights = mixing.start(self._before)
        self._rule = None if costs is None else BudgetRule(costs, rate)
        self._matches = matching.allocate(1)
        self._search, self._tree = growth.allocate(0), growth.allocate_tree(0)
        self._mixture = mixing.allocate()
        self._drafted = 0
        self._output: list[npt.NDArray[np.int32]] = []
        self._seen = 0  # of the output, how many pieces are in D_c: the others wait for the next tree
        self._closed = False
        arrays = drafter._arrays()
        trie = lookups.allocate(_CONTEXTS)
        self._verified = NOT_VERIFIED
        self._draws, self._coming = draws, NOT_DRAWN.coming
        self._databases = Databases(
            self._context.trie, trie, arrays, drafter._separators, _NO_CANDIDATES, _NO_REFERENCE, drafter._rarity
        )
        self._address: int | None = None  # of its arrays as kernels read them, None where they are to be stored anew
        self._advance_and_grow(prompt[-SUFFIX_LENGTH:], _NO_PRICES, learn=False)
        if len(references):
            made = reference.make_reference([check_ids(each, drafter.vocab_size) for each in references])
            self._replace(reference=made)
            reference.begin(made, self._matches.places)

    @property
    def match_length(self) -> int:
        """How many of the text's last tokens a database holds in this order too, as of the last tree."""
        return int(self._matches.longest[0].max())

    def propose(self, budget: int, max_depth: int = UNLIMITED, price: float = 0.0) -> DraftTree:
        """Draft at most `budget` nodes, likeliest first, and no more than are worth their place.

        Without costs, a place costs `price`, in tokens.
        """
        self._drafted = 0
        if budget < 1 or max_depth < 1:
            return DraftTree.empty()
        if self._rule is not None:
            prices = self._rule.prices(budget)
        else:
            prices = price * np.arange(budget + 1.0) if price else np.zeros(budget + 1)
        coming = NOT_DRAWN.coming if self._draws is None else self._draws.ahead(min(max_depth, FORESEEN))
        n = self._drafted = self._advance_and_grow(self._take_emitted(), prices, int(max_depth), coming=coming)
        if n == 0:
            return DraftTree.empty()
        tokens, parents, depths = self._tree.nodes[:, :n].copy()
        sources, probabilities = self._tree.sources[:n].copy(), self._tree.probabilities[:n].copy()
        return DraftTree(tokens, parents, sources, probabilities, depths)

    def extend(self, token_ids: TokenIds, ngrams: IdArray | None = None, candidates: Candidates | None = None) -> None:
        """Take in what a step emitted, and its candidates; `ngrams` are no source of this drafter: unused."""
        ids = check_ids(token_ids, self._drafter.vocab_size)
        if self._rule is not None:
            self._rule.record(self._drafted, len(ids))
        if candidates is not None:
            verified = _verified(candidates)
            if self._seen < len(self._output):  # there was no tree meanwhile
                self._advance_and_grow(self._take_emitted(), _NO_PRICES)
            if not len(self._databases.candidates.key):
                self._replace(candidates=allocate_candidates(_ROWS))
            self._verified = verified
        self._output.append(ids)

    def renew(self) -> None:
        """Draft from what D_m has learned since the request began, too; what was looked up is looked up again."""
        arrays = self._drafter._arrays()
        if arrays[0] is not self._databases.suffixes[0]:
            self._replace(suffixes=arrays)
            lookups.forget(self._databases.trie)

    def close(self) -> None:
        """End the request: what it learnt of the weights, and with `learn` its output, serve later requests."""
        if self._closed:
            return
        self._closed = True
        drafter = self._drafter
        self._advance_and_grow(self._take_emitted(), _NO_PRICES)
        self._experience.finish(self._before, self._weights, self._rule)
        if drafter.learn and self._output:
            drafter.model_database.learn_known(np.concatenate(self._output))

    def _take_emitted(self) -> npt.NDArray[np.int32]:
        """The tokens emitted since the last tree."""
        new = self._output[self._seen :]
        self._seen = len(self._output)
        return new[0] if len(new) == 1 else np.concatenate([_NO_IDS, *new])

    def _advance_and_grow(
        self,
        ids: npt.NDArray[np.int32],
        prices: npt.NDArray[np.float64],
        max_depth: int = UNLIMITED,
        learn: bool = True,
        coming: npt.NDArray[np.float32] = NOT_DRAWN.coming,
    ) -> int:
        """Take in what was emitted, and grow the tree, by the draws that are coming; returns its size."""
        verified, self._verified = self._verified, NOT_VERIFIED
        drawing = Drawing(self._coming, coming)
        self._coming = coming if len(coming) else self._coming[len(ids) :]
        drafter, budget = self._drafter, len(prices) - 1
        while True:
            call = np.array([[self.address(), len(ids), max_depth, budget, 0]])
            kernels = drafter.kernels()
            arguments = (ids, learn, verified, drawing, drafter.vocab_size, prices, 0, _NO_CHAINS)
            kernels.advance_and_grow(call, kernels.kind, *arguments, 0, 1)
            if (n := int(call[0, SIZE])) >= 0:
                return n
            self.make_room(len(ids), budget)

    def address(self) -> int:
        """Where the kernels find this session's arrays, until one is replaced by another."""
        if self._address is None:
            arrays = SessionArrays(
                self._databases, self._matches, self._weights, self._mixture, self._search, self._tree
            )
            kernels = self._drafter.kernels(arrays)
            self._memory = np.empty(kernels.words, np.int64)
            kernels.hand_over(arrays, self._memory)
            self._address = self._memory.ctypes.data
        return self._address

    def make_room(self, tokens: int, budget: int) -> None:
        """Make room for so many tokens of text, and for a tree of so many nodes."""
        self._context.reserve(tokens)
        self._replace(context=self._context.trie)
        if len(self._tree.sources) < budget:
            self._matches = matching.allocate(budget + 1, self._matches)
            self._search, self._tree = growth.allocate(budget), growth.allocate_tree(budget)

    def _replace(self, **databases: Any) -> None:
        """Have other databases."""
        self._databases = self._databases._replace(**databases)
        self._address = None


def _verified(candidates: Candidates) -> Verified:
    """The rows of a step as the kernels read them.

    Raises:
        ValueError: they are not one row for the text and one for each node.
    """
    tree, tokens = candidates.tree, np.ascontiguousarray(candidates.tokens, np.int32)
    scores = np.ascontiguousarray(candidates.log_probabilities, np.float32)
    if tokens.ndim != 2 or tokens.shape != scores.shape or len(tokens) != 1 + len(tree) or not tokens.shape[1]:
        raise ValueError(f"candidates of {1 + len(tree)} rows must be tokens and logarithms of the same shape")
    return Verified(np.ascontiguousarray(tree.tokens), np.ascontiguousarray(tree.parents), tokens, scores)


def _new_model_database(
    vocab_size: int, statistics_database: StatisticsDatabase | None, tokenizer: Tokenizer | None = None
) -> ModelDatabase:
    """An empty D_m that one drafter can use with this D_s."""
    return ModelDatabase(vocab_size if statistics_database is None else statistics_database.vocab_size, None, tokenizer)


def _rarity(vocab_size: int, database: Database) -> npt.NDArray[np.uint8]:
    """How rare each token is in a database, from 0 for one in 32 tokens or more to 7, by factors of four."""
    rarity = np.full(vocab_size, 7, np.uint8)
    if len(database.tokens):
        counts = np.diff(database.array.starts.astype(np.int64))[: min(database.vocab_size, vocab_size)]
        bits = np.log2(len(database.tokens) / np.maximum(counts, 1))
        rarity[: len(counts)] = np.clip((bits - 5) / 2, 0, 7)
    return rarity
