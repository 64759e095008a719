"""Figures written as they come: records by name in one file of JSON, whole at any moment."""

import json
from math import inf
from pathlib import Path
from typing import Any

from hdraft.files import exclusive, replace, try_file
from hdraft.text import parse_json


def put(path: Path, name: str, record: dict[str, Any]) -> None:
    """Put a record into a file in the place of the one of that name; the others, of other processes too, stay.

    Raises:
        ValueError: the file holds something else; it stays as it is.
        OSError: it cannot be read or written.
    """
    with exclusive(path.absolute().parent, inf):
        replace(path, (json.dumps(records(path) | {name: record}, indent=1) + "\n").encode())


def records(path: Path) -> dict[str, Any]:
    """The records of a file; none where there is no file.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no records: name another file")
    return found


def check_records(path: Path) -> None:
    """Make sure, before the work, that `put` will be able to write.

    Raises:
        ValueError, OSError: as `put` does.
    """
    records(path)
    try_file(path)
