"""Databases on disk: crashes, full disks, damage, other versions, other tokenizers, the Hub."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hdraft import files
from hdraft.drafting.databases import storage
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.storage import MANIFEST, DatabaseError, inspect
from hdraft.drafting.databases.suffixes import SuffixArray

OLD = StatisticsDatabase.from_documents([[5, 6, 5, 7]], vocab_size=8, eos_token_id=0)
NEW = StatisticsDatabase.from_documents([[1, 2], [3, 4, 3, 4]], vocab_size=8, eos_token_id=0)


def content(folder):
    return [ids.tolist() for ids in StatisticsDatabase.from_pretrained(folder, verify=True).documents()]


def names(folder):
    return sorted(path.name.partition("-")[0] for path in Path(folder).iterdir())


COUNTED = StatisticsDatabase.from_documents([[5, 6, 5, 7]] * 2000, vocab_size=8, eos_token_id=0)
CLEAN = [MANIFEST, "starts", "suffixes", "tokens"]


@pytest.fixture
def folder(tmp_path):
    OLD.save_pretrained(tmp_path / "database")
    return tmp_path / "database"


def edit(folder, **fields):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    for name, value in fields.items():
        part = manifest
        *parents, last = name.split("__")
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.write_text(json.dumps(manifest))


def test_the_folder_is_what_the_format_says(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format"] == "hdraft-database"
    assert manifest["version"] == 1
    assert manifest["counts"] == {"tokens": 5, "documents": 1}
    assert names(folder) == CLEAN
    for name, entry in manifest["arrays"].items():
        raw = (folder / entry["file"]).read_bytes()
        assert len(raw) == entry["bytes"]
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        assert entry["file"] == f"{name}-{entry['sha256'][:16]}.npy"
        array = np.load(folder / entry["file"], allow_pickle=False)
        assert (array.dtype.name, list(array.shape)) == (entry["dtype"], entry["shape"])


def test_saving_over_an_open_database_leaves_the_reader_alone(folder):
    opened = StatisticsDatabase.from_pretrained(folder)
    NEW.save_pretrained(folder)
    assert content(folder) == [[1, 2], [3, 4, 3, 4]]
    assert names(folder) == CLEAN
    assert [ids.tolist() for ids in opened.documents()] == [[5, 6, 5, 7]]
    opened.save_pretrained(folder)
    assert content(folder) == [[5, 6, 5, 7]]


def test_inspect(folder):
    found = inspect(folder)
    assert (found["kind"], found["tokens"], found["documents"], found["vocab_size"]) == ("statistics", 5, 1, 8)
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert found["bytes_per_token"] == found["bytes"] / 5
    ModelDatabase(8).save_pretrained(folder.parent / "empty")
    assert inspect(folder.parent / "empty")["bytes_per_token"] is None


class Killed(BaseException):
    """A process that was killed: nothing that it would have done after this has an effect."""


def system_calls(monkeypatch, at, error):
    """Let the `at`th system call of a save, and after a kill every later one, raise `error`; count them."""
    count = 0

    def patched(call):
        def run(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == at or (count > at and isinstance(error, Killed)):
                raise error
            return call(*arguments, **keywords)

        return run

    for name in ("fsync", "replace", "unlink", "listdir"):
        monkeypatch.setattr(os, name, patched(getattr(os, name)))
    monkeypatch.setattr(storage._Hashed, "write", patched(storage._Hashed.write))
    return lambda: count


def calls_of_a_save(folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        count = system_calls(monkeypatch, 10**9, Killed())
        NEW.save_pretrained(folder)
        return count()


@pytest.mark.parametrize("fresh", [False, True])
def test_killed_at_any_moment(tmp_path, fresh):
    def prepare(name):
        if not fresh:
            OLD.save_pretrained(tmp_path / name)
        return tmp_path / name

    steps = calls_of_a_save(prepare("count"))
    assert steps > 10
    seen = set()
    for step in range(1, steps + 1):
        folder = prepare(str(step))
        with pytest.MonkeyPatch.context() as monkeypatch:
            system_calls(monkeypatch, step, Killed())
            with pytest.raises(Killed):
                NEW.save_pretrained(folder)
        if fresh and not (folder / MANIFEST).exists():
            with pytest.raises(DatabaseError):
                content(folder)
        else:
            found = content(folder)
            seen.add(len(found))
            assert found in ([[5, 6, 5, 7]], [[1, 2], [3, 4, 3, 4]])
        # Whatever was left behind goes with the next save.
        NEW.save_pretrained(folder)
        assert content(folder) == [[1, 2], [3, 4, 3, 4]]
        assert names(folder) == CLEAN
    assert seen == ({2} if fresh else {1, 2})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_moment(tmp_path, code):
    OLD.save_pretrained(tmp_path / "count")
    for step in range(2, calls_of_a_save(tmp_path / "count") + 1):
        folder = tmp_path / str(step)
        OLD.save_pretrained(folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            system_calls(monkeypatch, step, OSError(code, "No space left on device"))
            try:
                NEW.save_pretrained(folder)
            except DatabaseError as error:
                assert "the disk is full" in str(error)
                assert "\n" not in str(error)
                assert isinstance(error.__cause__, OSError)
        assert content(folder) in ([[5, 6, 5, 7]], [[1, 2], [3, 4, 3, 4]])
        assert len(names(folder)) <= len(CLEAN) + 3  # where it was the clean-up that failed
        OLD.save_pretrained(folder)
        assert names(folder) == CLEAN


def test_a_full_disk_leaves_no_folder_behind(tmp_path, monkeypatch):
    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage._Hashed, "write", write)
    with pytest.raises(DatabaseError, match="the disk is full; free some space"):
        OLD.save_pretrained(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray
first = StatisticsDatabase.from_documents([[1] * 20000], 8, 0)
second = StatisticsDatabase.from_documents([[2] * 30000], 8, 0)
print("ready", flush=True)
while True:
    first.save_pretrained(sys.argv[1])
    second.save_pretrained(sys.argv[1])
"""


def test_what_comes_back_between_two_looks_is_no_missing_array(folder, monkeypatch):
    """Another process replaces the database, and writes the first one again, before the reader has looked twice."""
    read, opened, times = storage.Manifest.read, storage._open, 3

    def replaced_after(look):
        manifest = read(look)
        NEW.save_pretrained(folder) if times else None
        return manifest

    def missing(*arguments):
        nonlocal times
        try:
            return opened(*arguments)
        except FileNotFoundError:
            times -= 1
            with monkeypatch.context() as patched:
                patched.setattr(storage.Manifest, "read", read)
                OLD.save_pretrained(folder)
            raise

    monkeypatch.setattr(storage.Manifest, "read", staticmethod(replaced_after))
    monkeypatch.setattr(storage, "_open", missing)
    assert content(folder) == [[5, 6, 5, 7]]
    assert times == 0


def test_a_database_that_is_replaced_over_and_over_is_given_up(folder, monkeypatch):
    read = storage.Manifest.read

    def replaced_after(look):
        manifest = read(look)
        (NEW if manifest.tokens == 5 else OLD).save_pretrained(folder)
        return manifest

    monkeypatch.setattr(storage.Manifest, "read", staticmethod(replaced_after))
    for use in (StatisticsDatabase.from_pretrained, inspect):
        with pytest.raises(DatabaseError, match="replaced over and over: try again when nothing writes to it"):
            use(folder)


def test_a_database_replaced_by_one_that_does_not_fit_is_refused(folder, monkeypatch):
    read, replaced = storage.Manifest.read, []

    def replaced_after(look):
        manifest = read(look)
        if not replaced:
            replaced.append(StatisticsDatabase(16).save_pretrained(folder))
        return manifest

    monkeypatch.setattr(storage.Manifest, "read", staticmethod(replaced_after))
    with pytest.raises(DatabaseError, match="is for a vocabulary of 16 ids, not 8"):
        StatisticsDatabase.from_pretrained(folder, vocab_size=8)


def test_killed_processes(tmp_path):
    folder = tmp_path / "database"
    for delay in (0.005, 0.02, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline() == b"ready\n"
            while not (folder / MANIFEST).exists():
                time.sleep(0.005)
            time.sleep(delay)
            for _ in range(20):  # a reader beside the writer sees one database or the other
                assert len(content(folder)[0]) in (4, 20000, 30000)
        finally:
            writer.kill()
            writer.communicate()
        assert len(content(folder)[0]) in (4, 20000, 30000)
        OLD.save_pretrained(folder)
        assert names(folder) == CLEAN


def test_two_writers_do_not_mix(folder):
    with files.exclusive(folder), pytest.raises(DatabaseError, match="another process is writing it"):
        NEW.save_pretrained(folder)
    assert content(folder) == [[5, 6, 5, 7]]
    NEW.save_pretrained(folder)


def test_a_writer_that_comes_second_takes_nothing_from_the_first(tmp_path, monkeypatch):
    """The folder is new, and the second writer made it, but the first has locked it before."""
    folder = tmp_path / "a" / "new"
    exclusive = files.exclusive

    @contextmanager
    def late(path):
        with exclusive(path), exclusive(path):  # as if another process had come between
            yield

    monkeypatch.setattr(files, "exclusive", late)
    with pytest.raises(DatabaseError, match="another process is writing it"):
        OLD.save_pretrained(folder)
    assert folder.is_dir()


def test_another_kind_that_was_written_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    exclusive = files.exclusive

    @contextmanager
    def late(path):
        with monkeypatch.context() as patched:
            patched.setattr(files, "exclusive", exclusive)
            ModelDatabase.from_documents([[1, 2]], 8, 0).save_pretrained(path)
        with exclusive(path):
            yield

    monkeypatch.setattr(files, "exclusive", late)
    with pytest.raises(DatabaseError, match="holds no statistics database but another"):
        OLD.save_pretrained(tmp_path / "new")
    assert ModelDatabase.from_pretrained(tmp_path / "new").tokens.tolist() == [1, 2, 0]


def test_nothing_else_is_overwritten(tmp_path, folder):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(DatabaseError, match="not empty and not a database"):
        OLD.save_pretrained(tmp_path / "notes")
    (tmp_path / "notes" / MANIFEST).write_text('{"format": "another"}')
    with pytest.raises(DatabaseError, match="not a database"):
        OLD.save_pretrained(tmp_path / "notes")
    assert len(list((tmp_path / "notes").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="Not a directory"):
        OLD.save_pretrained(tmp_path / "file")
    with pytest.raises(DatabaseError, match="Not a directory"):
        OLD.save_pretrained(tmp_path / "file" / "below")
    edit(folder, version=2)
    with pytest.raises(DatabaseError, match="another format version"):
        NEW.save_pretrained(folder)


def array_file(folder, name):
    return next(folder.glob(f"{name}-*.npy"))


@pytest.mark.parametrize("name", ["tokens", "suffixes", "starts"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "missing", "garbage", "pickle", "dtype", "huge"])
def test_damaged_arrays_are_refused_when_opened(folder, name, damage):
    path = array_file(folder, name)
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        edit(folder, **{f"arrays__{name}__bytes": len(raw)})
        path.write_bytes(raw.replace(b"'<u", b"'|O", 1))
    elif damage == "dtype":
        path.write_bytes(raw.replace(b"'<u", b"'<i", 1))
    elif damage == "huge":
        path.write_bytes(raw.replace(b",), }   ", b"99,), } ", 1))
    else:
        path.write_bytes(
            {"truncated": raw[:-1], "longer": raw + b"\0", "empty": b"", "garbage": bytes(len(raw))}[damage]
        )
    with pytest.raises(DatabaseError, match=r"is damaged|lacks") as caught:
        StatisticsDatabase.from_pretrained(folder)
    assert "again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counted_contexts_are_kept_with_a_statistics_database(tmp_path):
    COUNTED.save_pretrained(tmp_path)
    assert names(tmp_path) == ["contexts", "continuations", *CLEAN]
    loaded = StatisticsDatabase.from_pretrained(tmp_path, verify=True)
    for ours, theirs in zip(loaded.array, COUNTED.array, strict=True):
        assert ours.tolist() == theirs.tolist()
        assert ours.dtype == theirs.dtype
        assert not ours.flags.writeable
    OLD.save_pretrained(tmp_path)
    assert names(tmp_path) == CLEAN


def test_a_statistics_database_without_counted_contexts_is_opened(tmp_path):
    StatisticsDatabase(8, 0, array=SuffixArray(*COUNTED.array[:3])).save_pretrained(tmp_path)
    assert names(tmp_path) == CLEAN
    assert len(StatisticsDatabase.from_pretrained(tmp_path).array.contexts) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrays__contexts__shape": [1000, 3]}, "type or shape of contexts"),
        ({"arrays__contexts__shape": [2**40, 4]}, "type or shape of contexts"),
        ({"arrays__contexts__shape": []}, "type or shape of contexts"),
        ({"arrays__contexts__shape": [True, 4]}, "type or shape of contexts"),
        ({"arrays__continuations__dtype": "uint16"}, "type or shape of continuations"),
        ({"arrays__continuations__bytes": 10**9}, "size of continuations"),
        ({"arrays__continuations__file": "../continuations-0123456789abcdef.npy"}, "file of continuations"),
        ({"arrays__continuations": 5}, "damaged"),
    ],
)
def test_a_manifest_that_is_wrong_about_counted_contexts_is_refused(tmp_path, fields, message):
    COUNTED.save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(DatabaseError, match=message):
        StatisticsDatabase.from_pretrained(tmp_path)


def test_half_of_the_counted_contexts_is_refused(tmp_path):
    COUNTED.save_pretrained(tmp_path)
    path = tmp_path / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["arrays"]["continuations"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DatabaseError, match="no 'continuations'"):
        StatisticsDatabase.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokens", "suffixes"])
def test_a_changed_byte_is_found_by_its_checksum(folder, name):
    path = array_file(folder, name)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    StatisticsDatabase.from_pretrained(folder)
    with pytest.raises(DatabaseError, match="is damaged"):
        StatisticsDatabase.from_pretrained(folder, verify=True)
    with pytest.raises(DatabaseError, match="is damaged"):
        inspect(folder)


@pytest.mark.parametrize("starts", [[1, 0, 0], [0, 9, 5], [0, 0, 4]])
def test_starts_that_make_no_sense_are_refused(folder, starts):
    path = array_file(folder, "starts")
    values = np.load(path)
    values[:2], values[-1] = starts[:2], starts[-1]
    np.save(path, values)
    with pytest.raises(DatabaseError, match="is damaged"):
        StatisticsDatabase.from_pretrained(folder)


def test_a_corrupt_index_of_the_right_size_does_not_crash(folder):
    path = array_file(folder, "suffixes")
    np.save(path, np.full(5, 2**32 - 1, np.uint32))
    database = ModelDatabase.from_documents([[1, 2]], 8, 0)
    corrupt = StatisticsDatabase.from_pretrained(folder)
    assert corrupt.array.suffixes[0] == 2**32 - 1
    assert list(database.documents())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "newer than 1: upgrade hdraft"),
        ({"version": "1"}, "damaged"),
        ({"version": True}, "damaged"),
        ({"format": "another"}, "not a database"),
        ({"kind": "other"}, "kind"),
        ({"kind": ["model"]}, "kind"),
        ({"vocab_size": -8}, "vocab_size"),
        ({"vocab_size": 8.0}, "vocab_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"vocab_size": 9}, "type or shape of starts"),
        ({"vocab_size": 70_000}, "type or shape of tokens"),
        ({"eos_token_id": 8}, "eos_token_id"),
        ({"eos_token_id": "0"}, "eos_token_id"),
        ({"tokenizer": 5}, "tokenizer"),
        ({"counts": 5}, "damaged"),
        ({"counts__tokens": 2**40}, "counts"),
        ({"counts__tokens": -1}, "counts"),
        ({"counts__tokens": 10**5000}, "damaged"),
        ({"counts__documents": None}, "counts"),
        ({"arrays": []}, "damaged"),
        ({"arrays": {}}, "no 'tokens'"),
        ({"arrays__tokens": "tokens.npy"}, "damaged"),
        ({"arrays__tokens__file": "../../secret.npy"}, "file of tokens"),
        ({"arrays__tokens__file": "/etc/passwd"}, "file of tokens"),
        ({"arrays__tokens__file": 5}, "file of tokens"),
        ({"arrays__tokens__shape": [6]}, "shape of tokens"),
        ({"arrays__tokens__shape": 5}, "damaged"),
        ({"arrays__tokens__dtype": "object"}, "type or shape"),
        ({"arrays__tokens__bytes": 10**15}, "size of tokens"),
        ({"arrays__tokens__bytes": "138"}, "size of tokens"),
        ({"arrays__tokens__sha256": 1}, "sha256"),
    ],
)
def test_manifests_are_checked_field_by_field(folder, fields, message):
    sys.set_int_max_str_digits(0)
    edit(folder, **fields)
    sys.set_int_max_str_digits(4300)
    with pytest.raises(DatabaseError, match=message) as caught:
        StatisticsDatabase.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 21) + b"{}", b"null"])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / MANIFEST).write_bytes(text)
    for use in (StatisticsDatabase.from_pretrained, inspect, NEW.save_pretrained):
        with pytest.raises(DatabaseError, match="not a database"):
            use(folder)


def test_a_folder_that_is_no_database(tmp_path):
    with pytest.raises(DatabaseError, match="not a database: it has no manifest"):
        StatisticsDatabase.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="is a file"):
        StatisticsDatabase.from_pretrained(tmp_path / "file")
    with pytest.raises(DatabaseError, match="no such folder"):
        StatisticsDatabase.from_pretrained(tmp_path / "nothing")


def test_the_hub_offline(monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, **keywords):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        DatabaseError, match=r"no database at someone/databse: not a folder, and the Hub .*no route to host"
    ):
        StatisticsDatabase.from_pretrained("someone/databse")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", unreachable)
    with pytest.raises(DatabaseError, match="cannot upload to someone/mine: no route to host"):
        OLD.push_to_hub("someone/mine")


@pytest.mark.parametrize("fails", [False, True])
def test_a_database_replaced_while_it_is_uploaded_is_uploaded_again(folder, monkeypatch, fails):
    import huggingface_hub

    uploads = []

    def upload_folder(self, *, folder_path, allow_patterns, **options):
        uploads.append([name for name in allow_patterns if name.startswith("tokens-")])
        if len(uploads) == 1:
            NEW.save_pretrained(folder)
            if fails:
                raise FileNotFoundError("tokens-0123456789abcdef.npy")
        assert (folder / uploads[-1][0]).exists() == (len(uploads) > 1)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert storage.upload(folder, "someone/mine") == "https://hub/someone/mine"
    assert len(uploads) == 2
    assert "8 tokens of 2 documents" in (folder / "README.md").read_text()


def test_there_and_back_through_the_hub(tmp_path, monkeypatch):
    """The Hub's cache links to its files, which must do."""
    import huggingface_hub

    hub = tmp_path / "hub"
    hub.mkdir()

    def upload_folder(self, *, folder_path, **options):
        for path in Path(folder_path).iterdir():
            (hub / path.name).write_bytes(path.read_bytes())

    def snapshot_download(name, allow_patterns):
        cache = tmp_path / "cache"
        cache.mkdir()
        for pattern in allow_patterns:
            for path in hub.glob(pattern):
                (cache / path.name).symlink_to(path)
        return str(cache)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert OLD.push_to_hub("someone/mine") == "https://hub/someone/mine"
    assert 'StatisticsDatabase.from_pretrained("someone/mine"' in (hub / "README.md").read_text()
    assert content("someone/mine") == [[5, 6, 5, 7]]
