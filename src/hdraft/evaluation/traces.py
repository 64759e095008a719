"""Traces: requests and the target's recorded greedy output, to be replayed."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.files import json_lines


class TraceError(ValueError):
    """A trace that cannot be read; one line that says where."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A recorded request.

    Attributes:
        id: its name in the trace.
        category: what kind of request it is; figures are given for each.
        prompt_ids: int32[n].
        output_ids: int32[m], everything that the target emitted, an end-of-sequence id included.
    """

    id: str
    category: str
    prompt_ids: npt.NDArray[np.int32]
    output_ids: npt.NDArray[np.int32]

    @property
    def largest_id(self) -> int:
        """The largest token id in it, 0 if it is empty."""
        return int(max(self.prompt_ids.max(initial=0), self.output_ids.max(initial=0)))


def vocabulary_of(trace: Sequence[Request]) -> int:
    """The smallest vocabulary that holds every id of a trace."""
    return 1 + max((request.largest_id for request in trace), default=0)


def read_traces(paths: Sequence[str | os.PathLike[str]]) -> list[Request]:
    """Read several traces as one, see `read_trace`; raises TraceError where they hold no request."""
    requests = [request for path in paths for request in read_trace(path)]
    if not requests:
        raise TraceError(f"no requests in {', '.join(map(str, paths)) or 'no trace'}")
    return requests


def read_trace(path: str | os.PathLike[str]) -> list[Request]:
    """Read a trace: JSON lines, gzipped or not, `{"id", "category", "prompt_ids": [int], "output_ids": [int]}`.

    Raises:
        TraceError: the file cannot be read, or a line is no such request; by file and line.
    """
    return [_request(where, record) for where, record, _ in json_lines(Path(path), TraceError)]


def _request(where: str, record: dict[str, Any]) -> Request:
    for field in ("id", "category", "prompt_ids", "output_ids"):
        if field not in record:
            raise TraceError(f'{where}: the field "{field}" is missing')
    identity, category = record["id"], record["category"]
    if type(identity) not in (int, str) or type(category) not in (int, str):
        raise TraceError(f'{where}: "id" and "category" must each be a text or a number')
    return Request(str(identity), str(category), _ids(where, record, "prompt_ids"), _ids(where, record, "output_ids"))


def _ids(where: str, record: dict[str, Any], field: str) -> npt.NDArray[np.int32]:
    values = record[field]
    if not isinstance(values, list):
        raise TraceError(f'{where}: "{field}" must be a list of token ids')
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**31:
            raise TraceError(f'{where}: "{field}"[{index}] must be a token id, not {json.dumps(value)[:40]}')
    return np.array(values, np.int32)
