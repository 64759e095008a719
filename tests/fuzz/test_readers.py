"""A short slice of the fuzzer, always the same; `make fuzz` runs as much more as there is time for."""

from pathlib import Path

import pytest
import readers


@pytest.mark.parametrize("reader", readers.READERS)
def test_nearly_right_files_are_read_or_refused(reader: str, tmp_path: Path) -> None:
    for seed in range(20 * readers.READERS[reader][1]):
        fault = readers.run(reader, seed, tmp_path)
        assert fault is None, f"--only {reader} --seed {seed}:\n{fault}"


def test_a_fault_is_found_and_an_input_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        seen.append(path.read_bytes())
        raise KeyError("x")

    seen: list[bytes] = []
    monkeypatch.setattr(readers, "read_questions", broken)
    for _ in range(2):
        assert "KeyError" in (readers.run("questions", 5, tmp_path) or "")
    assert seen[0] == seen[1]
    monkeypatch.setattr(readers, "read_questions", lambda path: path.unlink())
    assert "files changed" in (readers.run("questions", 5, tmp_path) or "")


def test_what_hangs_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(path: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(readers, "read_questions", hang)
    monkeypatch.setattr(readers, "PATIENCE", 0.2)
    assert "no end after" in (readers.run("questions", 5, tmp_path) or "")
