"""D_m and D_s by their names, or as they are: two that one drafter can use."""

import os
from typing import TypeVar

from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.vocabulary import Tokenizer

Named = str | os.PathLike[str]
"""A database's folder, or its name on the Hub."""

_D = TypeVar("_D", bound=Database)


def open_databases(
    model_database: ModelDatabase | Named | None,
    statistics_database: StatisticsDatabase | Named | None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> tuple[ModelDatabase | None, StatisticsDatabase | None]:
    """Open what is named, and make sure that both are of one tokenizer.

    Args:
        model_database, statistics_database: each by its name, or open already, or None.
        tokenizer, vocab_size: the model's, which those that are named must be of; see `Database.from_pretrained`.

    Raises:
        DatabaseError: there is none of that name, or it does not fit, or it is damaged.
        ValueError: the two are of different tokenizers, or one is no database.
    """
    stored = _open(ModelDatabase, model_database, tokenizer, vocab_size)
    general = _open(StatisticsDatabase, statistics_database, tokenizer, vocab_size)
    if stored is not None and general is not None:
        one, other = _called(stored, model_database), _called(general, statistics_database)
        known = stored.token_hashes is not None and general.token_hashes is not None
        if not known and stored.vocab_size != general.vocab_size:
            raise ValueError(
                f"{one} holds a vocabulary of {stored.vocab_size} ids and {other} one of {general.vocab_size}:"
                " build both with one tokenizer"
            )
        told_apart = not known and tokenizer is None and stored.tokenizer and general.tokenizer
        if not stored.fits(general) or (told_apart and stored.tokenizer != general.tokenizer):
            raise ValueError(f"{one} and {other} are of different tokenizers: build both with one")
    return stored, general


def _open(cls: type[_D], database: _D | Named | None, tokenizer: Tokenizer | None, vocab_size: int | None) -> _D | None:
    if database is None or isinstance(database, cls):
        return database
    if not isinstance(database, str | os.PathLike):
        raise ValueError(
            f"the {cls.kind}_database must be a folder, a name on the Hub, or a {cls.__name__},"
            f" not {type(database).__name__}"
        )
    return cls.from_pretrained(database, tokenizer, vocab_size)


def _called(database: Database, given: Database | Named | None) -> str:
    return os.fspath(given) if isinstance(given, str | os.PathLike) else f"the {database.kind}_database"
