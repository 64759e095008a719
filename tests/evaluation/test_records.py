"""Records in one file: each is replaced by its name, and what is no file of records is left alone."""

import json
from pathlib import Path

import pytest

from hdraft.evaluation.records import check_records, put, records


def test_a_record_takes_the_place_of_the_one_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    assert records(file) == {}
    for name, number in (("a", 1), ("b", 2), ("a", 3)):
        put(file, name, {"number": number})
    assert records(file) == json.loads(file.read_text()) == {"a": {"number": 3}, "b": {"number": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"])
def test_what_holds_no_records_stays(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "records.json"
    file.write_bytes(content)
    for use in (check_records, lambda path: put(path, "a", {})):
        with pytest.raises(ValueError, match=r"records\.json"):
            use(file)
    assert file.read_bytes() == content


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        check_records(tmp_path / "none" / "records.json")
    check_records(tmp_path / "records.json")
    assert not list(tmp_path.iterdir())
