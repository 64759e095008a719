import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from hdraft.evaluation.traces import Request, read_trace, trace_line

GOOD = {"id": "82.0", "category": "qa", "prompt_ids": [1, 2], "output_ids": [3, 2]}


def write(folder: Path, *lines: object, name: str = "trace.jsonl") -> Path:
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_reads_requests(tmp_path: Path, name: str) -> None:
    requests = read_trace(write(tmp_path, GOOD, "", {**GOOD, "id": 7, "prompt_ids": [], "more": None}, name=name))
    assert [request.id for request in requests] == ["82.0", "7"]
    assert requests[0].category == "qa"
    assert requests[0].prompt_ids.tolist() == [1, 2] and requests[0].output_ids.tolist() == [3, 2]
    assert requests[1].prompt_ids.dtype == np.int32 and len(requests[1].prompt_ids) == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": 1', "not valid JSON .* at column 9"),
        ("[1]", "not a JSON object"),
        ({"id": 1, "category": "qa", "prompt_ids": []}, '"output_ids" is missing'),
        ({**GOOD, "prompt_ids": "text"}, '"prompt_ids" must be a list'),
        ({**GOOD, "prompt_ids": [1, 2.5]}, r'"prompt_ids"\[1\] must be a token id, not 2.5'),
        ({**GOOD, "prompt_ids": [True]}, "not true"),
        ({**GOOD, "id": True}, '"id" and "category" must'),
        ({**GOOD, "category": ["qa"]}, '"id" and "category" must'),
        ({**GOOD, "category": "q\ud800"}, "not valid text"),
        ({**GOOD, "more": float("nan")}, "NaN is no number"),
        ({**GOOD, "output_ids": [4, -1]}, r'"output_ids"\[1\] must be a token id, not -1'),
        ({**GOOD, "output_ids": [2**31]}, "not 2147483648"),
        ("[" * 100_000, "nested too deep"),
        ({**GOOD, "candidates": [[3], [2]]}, "must each be a list for each output id"),
        ({**GOOD, "candidates": [[3]], "log_probabilities": [[0]]}, "must each be a list for each output id"),
        ({**GOOD, "candidates": [[3], [2, 1]], "log_probabilities": [[0], [0]]}, "all of one length"),
        ({**GOOD, "candidates": [[3], [2]], "log_probabilities": [[0], 0]}, "all of one length"),
        ({**GOOD, "candidates": [[], []], "log_probabilities": [[], []]}, "all of one length"),
        ({**GOOD, "candidates": [[3] * 65] * 2, "log_probabilities": [[0] * 65] * 2}, "all of one length"),
        ({**GOOD, "candidates": [[3], [-2]], "log_probabilities": [[0], [0]]}, '"candidates" must be token ids'),
        ({**GOOD, "candidates": [[3], [2.0]], "log_probabilities": [[0], [0]]}, '"candidates" must be token ids'),
        ({**GOOD, "candidates": [[3], [2]], "log_probabilities": [[0], ["0"]]}, '"log_probabilities" must be numbers'),
        ({**GOOD, "candidates": [[3], [2]], "log_probabilities": [[0], [0.5]]}, '"log_probabilities" must be numbers'),
        ({**GOOD, "candidates": [[3], [2]], "log_probabilities": [[0], [-(10**400)]]}, "must be numbers from -1e"),
        ({**GOOD, "temperature": -1}, '"temperature" must be a number, at least 0'),
        ({**GOOD, "temperature": "hot"}, '"temperature" must be a number, at least 0'),
        ({**GOOD, "temperature": True}, '"temperature" must be a number, at least 0'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, says: str) -> None:
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(ValueError, match=says) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and "\n" not in message


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match=r"trace.jsonl:1: not UTF-8"):
        read_trace(path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:12] + b"\0" * 99]
)
def test_damaged_gzip_is_named(tmp_path: Path, damage: object) -> None:
    path = write(tmp_path, GOOD, name="trace.jsonl.gz")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"trace.jsonl.gz: cannot be read") as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.jsonl: cannot be read \(No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_a_line_that_is_written_is_read_again(tmp_path: Path) -> None:
    tokens, scores = np.array([[3, 1], [2, -1]], np.int32), np.array([[-0.123, -np.inf], [0.0, np.nan]], np.float32)
    request = Request("a", "qa", np.array([1], np.int32), np.array([3, 2], np.int32), tokens, scores, 0.7)
    (again,) = read_trace(write(tmp_path, trace_line(request, more=1).strip()))
    assert again.temperature == 0.7
    assert again.candidates is not None and again.candidates.tolist() == tokens.tolist()
    assert again.log_probabilities is not None
    assert again.log_probabilities == pytest.approx(np.array([[-0.12, -1e6], [0.0, -1e6]], np.float32))
