"""Files -> a database on disk."""

from collections.abc import Sequence
from typing import Any, TypeVar

from hdraft.building.reading import PathLike, Progress, Vocabulary, read_tokens
from hdraft.drafting.databases import storage
from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase

_Database = TypeVar("_Database", bound=Database)


def build_statistics(
    corpus: PathLike | Sequence[PathLike],
    output: PathLike,
    tokenizer: Any = None,
    vocab_size: int | None = None,
    eos_token_id: int | None = None,
    progress: Progress | None = None,
) -> StatisticsDatabase:
    """Build D_s from a corpus and write it to the folder `output`.

    Args:
        corpus: files and folders; see `reading` for the formats.
        output: a folder: new, empty, or a statistics database, which is replaced at the very end.
        tokenizer: a Hugging Face tokenizer; needed for text, and gives the vocabulary where that is not given.
        vocab_size: the vocabulary's size; give the model's own where it has more ids than the tokenizer.
        eos_token_id: the end-of-sequence id; None where there is neither one nor a tokenizer that has one.
        progress: called now and then; see `Progress`.

    Raises:
        BuildError: the corpus cannot be read or does not fit the vocabulary.
        DatabaseError: `output` holds something else, or cannot be written.
    """
    return _build(StatisticsDatabase, corpus, output, Vocabulary.of(tokenizer, vocab_size, eos_token_id), progress)


def build_model(
    generations: PathLike | Sequence[PathLike],
    output: PathLike,
    tokenizer: Any = None,
    vocab_size: int | None = None,
    eos_token_id: int | None = None,
    progress: Progress | None = None,
) -> ModelDatabase:
    """Build D_m from what the target has generated and write it to the folder `output`.

    Arguments and errors are those of `build_statistics`; `generations` are files such as `generate_outputs` writes.
    """
    return _build(ModelDatabase, generations, output, Vocabulary.of(tokenizer, vocab_size, eos_token_id), progress)


def _build(
    kind: type[_Database],
    paths: PathLike | Sequence[PathLike],
    output: PathLike,
    vocabulary: Vocabulary,
    progress: Progress | None,
) -> _Database:
    storage.try_target(output, kind.kind)  # before the work, not after it
    tokens = read_tokens(paths, vocabulary, progress)
    if progress is not None:
        progress("sorting", 0, len(tokens))
    database = kind.from_tokens(tokens, vocabulary.vocab_size, vocabulary.eos_token_id, vocabulary.tokenizer)
    database.save_pretrained(output)
    if progress is not None:
        progress("sorting", len(tokens), len(tokens))
    return database
