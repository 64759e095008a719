"""Each drafting method by its name, with its options and its databases."""

from collections.abc import Sequence
from typing import Any

from hdraft.drafting import Drafter
from hdraft.drafting.baselines import PromptLookupDrafter, RestDrafter
from hdraft.drafting.hierarchy import HierarchyDrafter
from hdraft.drafting.model import ModelDatabase
from hdraft.drafting.published import PublishedDrafter
from hdraft.drafting.statistics import StatisticsDatabase
from hdraft.evaluation.traces import Request

OPTIONS: dict[str, dict[str, Any]] = {
    "hd": {"model_database": None, "statistics_database": None, "learn": True, "adaptive": False},
    "published": {
        "model_database": None,
        "statistics_database": None,
        "order": None,
        "level": 5,
        "guess": 7,
        "previous_tokens": 2,
    },
    "pld": {},
    "rest": {"statistics_database": None},
}
"""What each method takes, and the defaults. `order` is by default WSL, less the letters of databases not given."""

_ASKED = {"S": "model_database", "L": "statistics_database"}


def method_options(method: str, **given: Any) -> dict[str, Any]:
    """Every option of a method: what is given, else its default. None is not given, and False asks for nothing.

    Raises:
        ValueError: no such method, an option that it does not use, or one that it lacks.
    """
    if method not in OPTIONS:
        raise ValueError(f"no method {method!r}: there are {', '.join(OPTIONS)}")
    options = dict(OPTIONS[method])
    for name, value in given.items():
        if value is None or (value is False and name not in options):
            continue
        if name not in options:
            users = " and ".join(other for other, taken in OPTIONS.items() if name in taken)
            raise ValueError(f"{_flag(name)} is for {users}, not for {method}: leave it out")
        options[name] = value
    if method == "rest" and options["statistics_database"] is None:
        raise ValueError("REST drafts from D_s: give --statistics-database")
    if method == "published":
        if options["order"] is None:
            options["order"] = "W" + "".join(letter for letter, name in _ASKED.items() if options[name] is not None)
        order = options["order"]
        for letter, name in _ASKED.items() if set(order) <= set("WSL") else ():  # else the drafter refuses it
            if letter in order and options[name] is None:
                raise ValueError(f"--order {order} asks {letter}: give {_flag(name)}")
            if letter not in order and options[name] is not None:
                raise ValueError(f"--order {order} does not ask {letter}: leave out {_flag(name)}")
        if "L" not in order and given.get("previous_tokens") is not None:
            raise ValueError("--previous-tokens is for asking L: add --statistics-database, or leave it out")
    return options


def open_drafter(method: str, trace: Sequence[Request], options: dict[str, Any]) -> Drafter:
    """A drafter for a trace, its databases opened afresh: it has learnt nothing yet, and writes nothing to disk.

    Its vocabulary is its databases', else as large as the trace needs.

    Args:
        method: see `OPTIONS`.
        trace: what is to be replayed.
        options: from `method_options`.

    Raises:
        DatabaseError, ValueError: a database that cannot be opened, two that do not belong together, or settings out
            of range.
    """
    model_name, statistics_name = options.get("model_database"), options.get("statistics_database")
    stored = None if model_name is None else ModelDatabase.from_pretrained(model_name)
    general = None if statistics_name is None else StatisticsDatabase.from_pretrained(statistics_name)
    if stored is not None and general is not None:
        if stored.vocab_size != general.vocab_size:
            raise ValueError(
                f"{model_name} holds a vocabulary of {stored.vocab_size} ids and {statistics_name} one of "
                f"{general.vocab_size}: build both with one tokenizer"
            )
        if stored.tokenizer and general.tokenizer and stored.tokenizer != general.tokenizer:
            raise ValueError(f"{model_name} and {statistics_name} are of different tokenizers: build both with one")
    vocab_size = next((each.vocab_size for each in (stored, general) if each is not None), None)
    if vocab_size is None:
        vocab_size = 1 + max((request.largest_id for request in trace), default=0)
    if method == "hd":
        return HierarchyDrafter(vocab_size, stored, general, learn=options["learn"])
    if method == "published":
        settings = {name: options[name] for name in ("order", "level", "guess", "previous_tokens")}
        return PublishedDrafter(vocab_size, stored, general, **settings)
    if method == "rest" and general is not None:
        return RestDrafter(vocab_size, general)
    return PromptLookupDrafter(vocab_size)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
