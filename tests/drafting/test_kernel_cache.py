"""Compiled kernels are kept where only this user can write, and nothing about where they are kept stops anybody."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hdraft
from hdraft.drafting import kernel_cache
from hdraft.drafting.kernel_cache import make_private

PACKAGE = Path(hdraft.__file__).parent

ONE = """
import sys
import hdraft
from hdraft.drafting.drafter import _first_outside
import numpy as np
assert _first_outside(np.array([1, 2, 9], np.int32), 5) == 2
assert hdraft.__file__.startswith(sys.argv[1]), hdraft.__file__
kept = _first_outside._cache.cache_path
print("compiled" if _first_outside.stats.cache_misses else "loaded", kept)
"""

ALL = "import hdraft.drafting.hierarchy.drafter" + ONE
BOTH = ONE.replace("np.int32", "np.int64") + ONE


@pytest.fixture
def package(tmp_path):
    """A copy of the package that no kernel can be kept in, by root neither."""
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy / "hdraft", ignore=shutil.ignore_patterns("__pycache__", "demo"))
    for folder in (copy / "hdraft").rglob("*/"):
        (folder / "__pycache__").write_text("in the way")
    return copy


def environment(package, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", **variables}


def run(package, cwd=None, code=ONE, **variables):
    """What a new process prints, and the lines of its log."""
    process = subprocess.run(
        [sys.executable, "-c", code, str(package)],
        env=environment(package, **variables),
        cwd=cwd or package,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split(), process.stderr.splitlines()


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def temporary_folder(tmp_path):
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return tmp_path / "tmp"


def test_a_package_that_can_be_written_keeps_its_kernels_and_says_nothing(package):
    (package / "hdraft" / "drafting" / "__pycache__").unlink()
    (how, where), log = run(package, HOME="/dev/null")
    assert (how, where, log) == ("compiled", str(package / "hdraft" / "drafting" / "__pycache__"), [])
    assert run(package, HOME="/dev/null") == (["loaded", where], [])


def test_a_change_to_any_file_with_kernels_compiles_anew(package, tmp_path):
    """Not just to the one that a kernel stands in: it may use others, whose old code Numba would go on running."""
    variables = {"HOME": "/dev/null", "NUMBA_CACHE_DIR": str(tmp_path / "given")}
    run(package, **variables)
    for change in ("tree.py", "hierarchy/mixing.py", "databases/sorting.py", "methods/rest.py"):
        path = package / "hdraft" / "drafting" / change
        assert b"@kernel" in path.read_bytes()
        with open(path, "ab") as file:
            file.write(b"# changed\n")
        assert [run(package, **variables)[0][0] for _ in range(2)] == ["compiled", "loaded"], change


def test_a_read_only_package_keeps_its_kernels_in_the_users_cache_folder(package, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (how, where), log = run(package, HOME=str(home))
    assert (how, log) == ("compiled", [])
    assert Path(where).is_relative_to(home / ".cache" / "hdraft")
    assert run(package, HOME=str(home)) == (["loaded", where], [])
    assert all(path.stat().st_mode & 0o077 == 0 for path in (home / ".cache").rglob("*/"))


@pytest.mark.parametrize("home", ["/dev/null", "relative", "/proc/1/nowhere"])
def test_without_a_home_folder_kernels_are_kept_in_a_private_temporary_folder(package, tmp_path, home):
    temporary = temporary_folder(tmp_path)
    (how, where), log = run(package, HOME=home, TMPDIR=str(temporary), code=ALL)
    ours = temporary / f"hdraft-{os.getuid()}"
    assert how == "compiled"
    assert Path(where).parent == ours
    assert len(log) == 1
    assert f"kept in {ours}" in log[0]
    assert ours.stat().st_mode & 0o777 == 0o700
    assert run(package, HOME=home, TMPDIR=str(temporary))[0] == ["loaded", where]
    assert not (package / "relative").exists()  # a cache in the current folder would be anybody's


@pytest.mark.parametrize("obstacle", ["a file", "a link", "open to all", "open to a group", "a writable folder above"])
def test_a_temporary_folder_that_somebody_else_may_write_is_not_used(package, tmp_path, obstacle):
    temporary = temporary_folder(tmp_path)
    ours = temporary / f"hdraft-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    if obstacle == "a file":
        ours.write_text("")
    elif obstacle == "a link":
        ours.symlink_to(elsewhere)
    elif obstacle == "a writable folder above":
        temporary.chmod(0o777)
    else:
        ours.mkdir()
        ours.chmod(0o777 if obstacle == "open to all" else 0o770)
    (how, where), log = run(package, HOME="/dev/null", TMPDIR=str(temporary))
    assert (how, where) == ("compiled", "None")
    assert len(log) == 1
    assert "each process compiles its own" in log[0]
    assert [path for path in [*files(temporary), *files(elsewhere)] if path != ours] == []


def test_a_shared_folder_of_which_each_user_owns_a_part_is_used(package, tmp_path):
    temporary = temporary_folder(tmp_path)
    temporary.chmod(0o1777)
    assert run(package, HOME="/dev/null", TMPDIR=str(temporary))[0][1] != "None"


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    make_private(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    if os.stat(tmp_path).st_uid == 0:  # root's folders are as good as one's own
        make_private(tmp_path / "a" / "b")
        os.chown(tmp_path / "a", 12345, -1)
    with pytest.raises(PermissionError, match="not this user's alone"):
        make_private(tmp_path / "a" / "b")


def test_where_nothing_can_be_written_kernels_are_compiled_anew(package):
    temporary = "import tempfile; tempfile.tempdir = '/dev/null'\n"
    for _ in range(2):
        (how, where), log = run(package, HOME="/dev/null", code=temporary + ALL)
        assert (how, where) == ("compiled", "None")
        assert len(log) == 1
        assert "each process compiles its own" in log[0]


def test_a_folder_that_numba_was_given_comes_first_and_is_passed_over_if_it_cannot_be_written(package, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (how, where), log = run(package, HOME=str(home), NUMBA_CACHE_DIR=str(tmp_path / "given"))
    assert (how, log) == ("compiled", [])
    assert Path(where).is_relative_to(tmp_path / "given")
    (how, where), log = run(package, HOME=str(home), NUMBA_CACHE_DIR="/dev/null/given")
    assert (how, log) == ("compiled", [])
    assert Path(where).is_relative_to(home)


def test_kernels_need_no_compiler(package):
    code = ONE.replace("kept = _first_outside._cache.cache_path", "").replace(
        'print("compiled" if _first_outside.stats.cache_misses else "loaded", kept)', "print(type(_first_outside))"
    )
    assert run(package, HOME="/dev/null", NUMBA_DISABLE_JIT="1", code=code)[0][1] == "'function'>"


FULL = """
import errno, numba.core.caching
from contextlib import contextmanager
@contextmanager
def full(self, path):
    raise OSError(errno.ENOSPC, "No space left on device", path)
    yield
numba.core.caching.IndexDataCacheFile._open_for_write = full
"""


def test_a_full_disk_stops_nothing(package, tmp_path):
    temporary = temporary_folder(tmp_path)
    (how, _), log = run(package, HOME="/dev/null", NUMBA_CACHE_DIR=str(temporary), code=FULL + ALL)
    assert how == "compiled"
    assert len(log) == 1
    assert "No space left on device" in log[0]
    assert run(package, HOME="/dev/null", NUMBA_CACHE_DIR=str(temporary))[0][0] == "compiled"
    assert run(package, HOME="/dev/null", NUMBA_CACHE_DIR=str(temporary))[0][0] == "loaded"


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_torn_file_is_written_anew(package, tmp_path, suffix, damage):
    variables = {"HOME": "/dev/null", "NUMBA_CACHE_DIR": str(tmp_path / "given")}
    run(package, **variables)
    torn = [path for path in files(tmp_path / "given") if path.suffix == suffix and "_first_outside" in path.name]
    assert torn
    for path in torn:
        path.write_bytes(damage)
    assert [run(package, **variables)[0][0] for _ in range(2)] == ["compiled", "loaded"]


def test_code_of_other_types_under_one_name_is_not_run(package, tmp_path):
    """What two processes may leave behind that compile one kernel for two types at once."""
    variables = {"HOME": "/dev/null", "NUMBA_CACHE_DIR": str(tmp_path / "given")}
    run(package, code=BOTH, **variables)
    one, other = (path for path in files(tmp_path / "given") if path.suffix == ".nbc" and "_first_outside" in path.name)
    one.write_bytes(other.read_bytes())
    assert run(package, code=BOTH, **variables)[0][0] == "compiled"
    assert run(package, code=BOTH, **variables)[0][0] == "loaded"


def test_processes_that_compile_at_once(package, tmp_path):
    variables = environment(package, HOME="/dev/null", NUMBA_CACHE_DIR=str(tmp_path / "given"))
    for _ in range(2):
        commands = [[sys.executable, "-c", code, str(package)] for code in (ONE, BOTH, BOTH)]
        processes = [subprocess.Popen(command, env=variables, stderr=subprocess.PIPE) for command in commands]
        for process in processes:
            _, log = process.communicate()
            assert (process.returncode, log) == (0, b"")


def test_every_kernel_is_kept_in_the_same_way():
    """No other module compiles with Numba on its own."""
    compiling = {path.name for path in PACKAGE.rglob("*.py") if "from numba" in path.read_text(encoding="utf-8")}
    assert compiling == {"kernel.py", Path(kernel_cache.__file__).name, "kernel_calls.py", "kernel_store.py"}
