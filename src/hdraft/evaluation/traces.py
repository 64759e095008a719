"""Traces: requests and the target's recorded output, greedy or drawn, to be replayed."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.files import json_lines
from hdraft.text import dump_json

_WIDEST = 64  # candidates of a position
_LOWEST = -1e6  # logarithm of a probability


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
        candidates: int32[m, k], what the target found likely in the place of each, likeliest first; -1 where that is
            not known, None where none of it was recorded.
        log_probabilities: float32[m, k], theirs.
        temperature: at which the output was drawn; 0 where each token is the likeliest.
    """

    id: str
    category: str
    prompt_ids: npt.NDArray[np.int32]
    output_ids: npt.NDArray[np.int32]
    candidates: npt.NDArray[np.int32] | None = None
    log_probabilities: npt.NDArray[np.float32] | None = None
    temperature: float = 0.0

    @property
    def largest_id(self) -> int:
        """The largest token id in it, 0 if it is empty."""
        others = () if self.candidates is None else (self.candidates.max(initial=0),)
        return int(max(self.prompt_ids.max(initial=0), self.output_ids.max(initial=0), *others))


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

    Each may have `candidates` and `log_probabilities` beside, a list of k for each output id, and a `temperature`.

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
    prompt_ids, output_ids = _ids(where, record, "prompt_ids"), _ids(where, record, "output_ids")
    temperature = record.get("temperature", 0)
    if type(temperature) not in (int, float) or not 0 <= temperature < math.inf:
        raise TraceError(f'{where}: "temperature" must be a number, at least 0')
    candidates = _candidates(where, record, len(output_ids))
    return Request(str(identity), str(category), prompt_ids, output_ids, *candidates, float(temperature))


def _candidates(
    where: str, record: dict[str, Any], rows: int
) -> tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.float32] | None]:
    """int32[rows, k] and float32[rows, k], or neither."""
    if "candidates" not in record:
        return None, None
    both = record["candidates"], record.get("log_probabilities")
    lists = [each if isinstance(each, list) and len(each) == rows else None for each in both]
    widths = {len(row) if isinstance(row, list) else 0 for each in lists for row in each or ()}
    if None in lists or len(widths) > 1 or not all(0 < width <= _WIDEST for width in widths):
        raise TraceError(
            f'{where}: "candidates" and "log_probabilities" must each be a list for each output id, all of one length'
        )
    tokens, scores = [[value for row in each or () for value in row] for each in lists]
    if not all(type(token) is int and -1 <= token < 2**31 for token in tokens):
        raise TraceError(f'{where}: "candidates" must be token ids, or -1')
    if not all(type(score) in (int, float) and _LOWEST <= score <= 0 for score in scores):
        raise TraceError(f'{where}: "log_probabilities" must be numbers from {_LOWEST:g} to 0')
    shape = rows, max(widths, default=1)
    return np.array(tokens, np.int32).reshape(shape), np.array(scores, np.float32).reshape(shape)


def _ids(where: str, record: dict[str, Any], field: str) -> npt.NDArray[np.int32]:
    values = record[field]
    if not isinstance(values, list):
        raise TraceError(f'{where}: "{field}" must be a list of token ids')
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**31:
            raise TraceError(f'{where}: "{field}"[{index}] must be a token id, not {json.dumps(value)[:40]}')
    return np.array(values, np.int32)


def trace_line(request: Request | None, **fields: Any) -> str:
    """A request as a line of a trace, behind fields of the writer's own; of None those alone.

    Log-probabilities are kept to two decimals.
    """
    if request is not None:
        for name in ("id", "category", "prompt_ids", "output_ids", "candidates", "log_probabilities"):
            value = getattr(request, name)
            if name == "log_probabilities" and value is not None:  # of tokens ruled out, or of no number, the lowest
                value = np.nan_to_num(value.astype(float), nan=_LOWEST).clip(_LOWEST, 0).round(2)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            if value is not None:
                fields[name] = value
        if request.temperature:
            fields["temperature"] = request.temperature
    return dump_json(fields)
