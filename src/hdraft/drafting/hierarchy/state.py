"""What a drafter has learnt, in a folder: kept from one process to the next.

    experience.bin            how much to believe which match, habits of single tokens, and the running rate …
    experience-sampled.bin    … and those of requests whose tokens were drawn
    learned                   what D_m has learned, a database as any other: `hdraft inspect STATE/learned` reads it

Experience is a line of JSON and float64s, as many as the mixture has parameters: the size is known before a byte
of them is read. Each of the three is replaced at once or not at all, and is of use without the others, so that whatever
interrupts a save leaves what can be loaded.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hdraft import files
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.storage import MANIFEST, DatabaseError, Manifest
from hdraft.drafting.databases.vocabulary import first_conflict
from hdraft.drafting.hierarchy import mixing
from hdraft.drafting.hierarchy.experience import Experience, Learnt
from hdraft.text import parse_json

EXPERIENCES = ("experience.bin", "experience-sampled.bin")
LEARNED = "learned"

_FORMAT = "hdraft-experience"
_TEMPORARY = ".hdraft-writing.tmp"
_LARGEST_HEADER = 1 << 12
_PATIENCE = 60.0  # seconds to wait for another save
_PARTS = ("taken", "reached", "lasting", "squares")
_ANEW = "give another folder, or remove this one to learn anew"

_log = logging.getLogger(__name__)


def save(
    folder: str | os.PathLike[str], vocab_size: int, experiences: Sequence[Experience], database: ModelDatabase
) -> None:
    """Write what has been learnt; see `HierarchyDrafter.save`."""
    folder = Path(folder)
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
        _check(folder)
        with files.exclusive(folder, _PATIENCE):  # what is saved later is newer
            for name, experience in zip(EXPERIENCES, experiences, strict=True):
                files.replace(folder / name, _to_bytes(experience.snapshot(), vocab_size), folder / _TEMPORARY)
            database.learned().save_pretrained(folder / LEARNED)
    except OSError as error:
        raise DatabaseError(f"cannot save to {folder}: {files.describe(error)}") from error


def load(
    folder: str | os.PathLike[str], vocab_size: int, database: ModelDatabase, general: StatisticsDatabase | None
) -> tuple[list[Learnt | None], ModelDatabase | None]:
    """Read what `save` wrote; see `HierarchyDrafter.load`. None where there is none, or it is of another mixture."""
    folder = Path(folder)
    try:
        _check(folder)
        paths = [folder / name for name in EXPERIENCES]
        learnt = [_read_experience(path, vocab_size) if path.exists() else None for path in paths]
    except OSError as error:
        raise DatabaseError(f"cannot read {folder}: {files.describe(error)}") from error
    learned = None
    if (folder / LEARNED / MANIFEST).exists():  # else the first save was interrupted
        if (there := Manifest.read(folder / LEARNED).vocab_size) > vocab_size:  # before there is room for so many
            _refuse_vocabulary(folder, there, vocab_size)
        learned = ModelDatabase.from_pretrained(folder / LEARNED)
        _check_tokenizer(folder, learned, database)
        if general is not None:
            _check_tokenizer(folder, learned, general)
    return learnt, learned


def _check(folder: Path) -> None:
    """A state, or a folder that is empty, but for what a new disk has."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DatabaseError(f"{folder} {what}: give the folder that a drafter was saved to")
    names = {name for name in os.listdir(folder) if not name.startswith(".")} - {"lost+found"}
    if names and not names & {*EXPERIENCES, LEARNED}:
        raise DatabaseError(f"{folder} holds other files, and nothing that a drafter has learnt: give another folder")


def _check_tokenizer(folder: Path, learned: ModelDatabase, other: ModelDatabase | StatisticsDatabase) -> None:
    another = f"{folder} was saved with another tokenizer than this drafter's"
    if learned.token_hashes is not None and other.token_hashes is not None:
        if (conflict := first_conflict(learned.token_hashes, other.token_hashes)) is not None:
            raise DatabaseError(f"{another}, token id {conflict} is another token there: {_ANEW}")
    elif learned.tokenizer and other.tokenizer and learned.tokenizer != other.tokenizer:
        raise DatabaseError(f"{another}: {_ANEW}")


def _refuse_vocabulary(folder: Path, there: object, here: int) -> NoReturn:
    raise DatabaseError(f"{folder} was saved for a vocabulary of {there} ids and this drafter has {here}: {_ANEW}")


def _mixture() -> list[int]:
    weights = mixing.initial_weights()
    return [mixing.VERSION, len(weights.weight), len(weights.lasting)]


def _to_bytes(learnt: Learnt, vocab_size: int) -> bytes:
    header = {"format": _FORMAT, "vocab_size": vocab_size, "mixture": _mixture()}
    header |= {"tokens": learnt.tokens, "time": learnt.time}
    values = np.concatenate([getattr(learnt.weights, name) for name in _PARTS])
    return json.dumps(header).encode() + b"\n" + values.astype("<f8").tobytes()


def _read_experience(path: Path, vocab_size: int) -> Learnt | None:
    damaged = DatabaseError(f"{path} is damaged: remove it, and start from what a new drafter knows")
    if not path.is_file():
        raise damaged
    with open(path, "rb") as file:
        header = _header(file.readline(_LARGEST_HEADER))
        if header is None:
            raise damaged
        if header["vocab_size"] != vocab_size:
            _refuse_vocabulary(path.parent, header["vocab_size"], vocab_size)
        if header["mixture"] != _mixture():
            _log.warning("%s is of another version of hdraft: this drafter keeps the experience that it has", path)
            return None
        weights = mixing.initial_weights()
        parts = [getattr(weights, name) for name in _PARTS]
        size = sum(part.nbytes for part in parts)
        content = file.read(size + 1)
    if len(content) != size:
        raise damaged
    values = np.frombuffer(content, "<f8")
    for part, read in zip(parts, np.split(values, np.cumsum([len(part) for part in parts])[:-1]), strict=True):
        part[:] = read
    learnt = Learnt(weights, header["tokens"], header["time"])
    if not learnt.sound():
        raise damaged
    np.divide(weights.taken, weights.reached, out=weights.weight)
    return learnt


def _header(line: bytes) -> dict[str, Any] | None:
    """The first line, if it is one of ours."""
    try:
        header = parse_json(line)
    except ValueError:
        return None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return None
    numbers = [header.get(name) for name in ("vocab_size", "tokens", "time")]
    if not all(isinstance(number, int | float) and 0 <= number < 2**53 for number in numbers):
        return None
    return header if "mixture" in header else None
