"""Each decoding method by its name, with its options and its databases.

    vanilla            ordinary decoding, by this project's loop without drafts: what speed-ups are over
    transformers       ordinary decoding, by `model.generate`
    transformers-pld   `model.generate` with its own prompt lookup
    pld                prompt lookup decoding: what followed the last tokens before, in this text
    rest               REST: what followed them in a corpus, D_s
    lookahead          Lookahead Decoding: n-grams of a Jacobi window that runs in the same pass
    published          Hierarchy Drafting as its paper has it: D_c (with that window), D_m and D_s, one after another
    retrieval          hd without the target's candidates: what they give is the difference
    hd                 Hierarchy Drafting as this project has it, the default: one tree from all of them

`hdraft bench` and its report know all of them; `hdraft replay`, which runs no model, all from `pld` on but `lookahead`.
"""

from collections.abc import Sequence
from typing import Any

from hdraft.drafting import Drafter
from hdraft.drafting.databases.opening import open_databases
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import LookaheadDrafter, PromptLookupDrafter, PublishedDrafter, RestDrafter

OPTIONS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "transformers": {},
    "transformers-pld": {},
    "pld": {},
    "lookahead": {"ngram_size": 5, "window": 7, "guess": 7},
    "rest": {"statistics_database": None},
    "published": {
        "context": True,
        "model_database": None,
        "statistics_database": None,
        "order": None,
        "ngram_size": 5,
        "window": 7,
        "guess": 7,
        "previous_tokens": 2,
    },
    "retrieval": {"model_database": None, "statistics_database": None, "learn": True},
    "hd": {"model_database": None, "statistics_database": None, "learn": True, "adaptive": False},
}
"""The options of each method, with their defaults. `order` is WSL, less the letters of databases not given."""

UNDRAFTED = ("vanilla", "transformers", "transformers-pld")
"""The methods that none of our drafters drafts for."""

REPLAYED = ("hd", "retrieval", "published", "pld", "rest")
"""The methods that need no more of the target than its choice, which a trace records, and its candidates there."""

_ASKED = {"W": "context", "S": "model_database", "L": "statistics_database"}


def method_options(method: str, among: Sequence[str] = REPLAYED, **given: Any) -> dict[str, Any]:
    """Every option of a method: what is given, else its default. None is not given, and False or 0 asks for nothing.

    Args:
        method: one of `among`.
        among: the methods that the user may choose from.
        given: options, by the names that they have in `OPTIONS`.

    Raises:
        ValueError: no such method, an option that it does not use, or one that it lacks.
    """
    if method not in among:
        raise ValueError(f"no method {method!r}: there are {', '.join(among)}")
    options = dict(OPTIONS[method])
    for name, value in given.items():
        if value is None or (not value and name not in options):
            continue
        if name not in options:
            raise ValueError(f"{_flag(name)} is for {_users(name, among)}, not for {method}: leave it out")
        options[name] = value
    if method == "rest" and options["statistics_database"] is None:
        raise ValueError("REST drafts from D_s: give --statistics-database")
    if method == "published":
        _complete_published(options, given)
    return options


def takes(methods: Sequence[str] | None, option: str) -> bool:
    """Whether one of the methods, or of all that there are, has this option."""
    return any(option in OPTIONS.get(method, ()) for method in methods or OPTIONS)


def options_of_all(methods: Sequence[str] | None, **given: Any) -> dict[str, dict[str, Any]]:
    """For each method all its options: of those given, each method takes the ones that it uses.

    Args:
        methods: by name, each once; None for all, `rest` only where its D_s is given.
        given: options, by the names that they have in `OPTIONS`.

    Raises:
        ValueError: no such method, an option that none of them uses, or one that a method lacks.
    """
    methods = list(
        dict.fromkeys(methods or [name for name in OPTIONS if name != "rest" or given.get("statistics_database")])
    )
    for method in methods:
        if method not in OPTIONS:
            raise ValueError(f"no method {method!r}: there are {', '.join(OPTIONS)}")
    for name, value in given.items():
        if value is not None and not any(name in OPTIONS[method] for method in methods):
            raise ValueError(f"{_flag(name)} is for {_users(name, tuple(OPTIONS))}: add one of them, or leave it out")
    chosen = {}
    for method in methods:
        own = {name: value for name, value in given.items() if name in OPTIONS[method]}
        if method == "published" and own.get("order"):  # what it does not ask may be for another method
            own |= {name: None for letter, name in _ASKED.items() if letter not in own["order"] and letter != "W"}
        chosen[method] = method_options(method, tuple(OPTIONS), **own)
        chosen[method].pop("adaptive", None)  # here costs are always measured
    if given.get("window") and not any(options.get("window") for options in chosen.values()):
        raise ValueError("--window is for a lookahead branch, which feeds D_c: leave it out, or --no-context")
    return chosen


def _complete_published(options: dict[str, Any], given: dict[str, Any]) -> None:
    present = {letter: bool(options[name]) for letter, name in _ASKED.items()}
    del options["context"]
    if options["order"] is None:
        options["order"] = "".join(letter for letter in _ASKED if present[letter])
        if not options["order"]:
            raise ValueError("published has no database to ask: give one, or leave out --no-context")
    order = options["order"]
    for letter, name in _ASKED.items() if set(order) <= set(_ASKED) else ():  # else the drafter refuses it
        if letter in order and not present[letter]:
            way = "leave out --no-context" if letter == "W" else f"give {_flag(name)}"
            raise ValueError(f"--order {order} asks {letter}: {way}")
        if letter not in order and present[letter] and letter != "W":
            raise ValueError(f"--order {order} does not ask {letter}: leave out {_flag(name)}")
    if "L" not in order and given.get("previous_tokens") is not None:
        raise ValueError("--previous-tokens is for asking L: add --statistics-database, or leave it out")
    if "W" not in order:
        options["window"] = 0


def open_drafter(
    method: str, options: dict[str, Any], *, vocab_size: int | None = None, needed: int = 1, tokenizer: Any = None
) -> Drafter:
    """A method's drafter, its databases opened afresh: it has learnt nothing yet, and writes nothing to disk.

    Args:
        method: one of `OPTIONS`, none of `UNDRAFTED`.
        options: from `method_options`.
        vocab_size: the target's; None for that of the databases, or `needed` where there are none.
        needed: ids are below it.
        tokenizer: the target's, to make sure that the databases are of it too.

    Raises:
        DatabaseError, ValueError: a database that cannot be opened, two that do not belong together, or settings out
            of range.
    """
    named = options.get("model_database"), options.get("statistics_database")
    stored, general = open_databases(*named, tokenizer, vocab_size)
    if vocab_size is None:
        vocab_size = max((each.vocab_size for each in (stored, general) if each is not None), default=needed)
    settings = {
        name: options[name] for name in ("order", "ngram_size", "window", "guess", "previous_tokens") if name in options
    }
    if method in ("retrieval", "hd"):
        drafter = HierarchyDrafter.for_model(vocab_size, None, stored, general, learn=options["learn"])
        drafter.recycles = method == "hd"
        return drafter
    if method == "published":
        return PublishedDrafter(vocab_size, stored, general, **settings)
    if method == "lookahead":
        return LookaheadDrafter(vocab_size, **settings)
    if method == "rest" and general is not None:
        return RestDrafter(vocab_size, general)
    return PromptLookupDrafter(vocab_size)


def _flag(name: str) -> str:
    return "--no-context" if name == "context" else "--" + name.replace("_", "-")


def _users(name: str, among: Sequence[str]) -> str:
    return " and ".join(method for method in among if name in OPTIONS[method])
