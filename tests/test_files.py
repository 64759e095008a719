"""Files of a long work: refused at its beginning, replaced at once or not at all, held, added to, read line by line."""

import errno
import gzip
import os
from pathlib import Path

import pytest

from hdraft import files

no_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


def test_a_failed_replacement_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hd.jsonl"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full") as caught:
        files.replace(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_promised_file_stays_what_it_is_until_it_is_written(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(0o600)
    with pytest.raises(KeyError), files.promised(old), files.promised(new):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and old.read_text() == "old"
    with files.promised(old) as write_old, files.promised(new) as write_new:
        write_old("first\n")
        write_new("ünï\n")
    assert (old.read_text(), new.read_text(encoding="utf-8")) == ("first\n", "ünï\n")
    assert old.stat().st_mode & 0o777 == 0o600


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    link, there = tmp_path / "link", tmp_path / "there"
    link.symlink_to(there)
    with files.promised(link) as write:
        assert link.is_symlink() and not there.exists()
        write("text")
    assert link.is_symlink() and there.read_text() == "text"


def test_a_pipe_is_written_to_as_it_is() -> None:
    reading, writing = os.pipe()
    with files.promised(Path(f"/dev/fd/{writing}")) as write:
        write("text")
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "text"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_named() -> None:
    with files.promised(Path("/dev/full")) as write, pytest.raises(OSError, match="No space left") as caught:
        write("text")
    assert caught.value.filename == "/dev/full"


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for place in (tmp_path / "file" / "below", tmp_path / "none" / "below", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(OSError), files.promised(place):
            raise AssertionError("not reached")
    with pytest.raises(OSError) as caught:
        files.try_folder(tmp_path / "file" / "below")
    assert caught.value.filename == str(tmp_path / "file" / "below")
    files.try_folder(tmp_path / "new" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@no_root
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        files.try_folder(tmp_path / "below")
    with pytest.raises(PermissionError):
        files.try_file(tmp_path / "file")


def test_a_replacement_goes_through_the_place_that_it_is_given(tmp_path: Path) -> None:
    path, temporary = tmp_path / "manifest", tmp_path / "writing.tmp"
    temporary.write_text("torn")
    files.replace(path, b"new", temporary)
    assert path.read_bytes() == b"new" and [each.name for each in tmp_path.iterdir()] == ["manifest"]


def test_a_file_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with files.exclusive(tmp_path), pytest.raises(BlockingIOError, match="is writing it"), files.exclusive(tmp_path):
        raise AssertionError("not reached")
    with files.exclusive(tmp_path):
        pass


def test_a_journal_keeps_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    with files.journal(path) as journal:
        journal.append(b"one\n")
        with pytest.raises(BlockingIOError), files.journal(path):
            raise AssertionError("not reached")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patched, pytest.raises(OSError, match="full") as caught:
            patched.setattr("os.fsync", full)
            journal.append(b"two\n")
        assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"one\ntwo\nto")
    assert files.whole_lines(path) == (2, 8, b"to")
    with files.journal(path) as journal:
        journal.cut(8)
        journal.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n" and files.whole_lines(path) == (3, 14, b"")


def test_a_journal_that_comes_to_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.journal(tmp_path / "out.jsonl"):
        raise KeyError
    assert not list(tmp_path.iterdir())


class RefusedError(ValueError):
    pass


def test_json_lines_say_where_each_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}'))
    assert [(where, record) for where, record, _ in files.json_lines(path)] == [
        (f"{path}:1", {"a": 1}),
        (f"{path}:3", {"a": 2}),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1}\n[]\n', ":2: not a JSON object"),
        (b'{"a"\n', ":1: not valid JSON"),
        (None, ": cannot be read \\(No such"),
    ],
)
def test_a_line_that_is_none_is_refused_with_the_readers_own_error(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RefusedError, match=f"a.jsonl{says}"):
        list(files.json_lines(path, RefusedError))


def test_a_torn_last_line_is_passed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    assert [record for _, record, _ in files.json_lines(path, torn=True)] == [{"a": 1}]
    with pytest.raises(ValueError, match=r"a.jsonl:2: not valid JSON"):
        list(files.json_lines(path))
    path.write_bytes(b'{"a": \n{"a": 1}')
    with pytest.raises(ValueError, match=r"a.jsonl:1: not valid JSON"):
        list(files.json_lines(path, torn=True))
