"""Tenants: what each taught is its own, is kept, and takes no room without end."""

from pathlib import Path

import pytest

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.storage import DatabaseError
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.serve import tenants
from hdraft.serve.tenants import Tenants, name_of

TEXT = [7, 8, 9, 10, 11, 12]


def teach(drafter: HierarchyDrafter, text: list[int] = TEXT) -> None:
    session = drafter.session([1])
    session.extend(text)
    session.close()


def drafts(drafter: HierarchyDrafter) -> bool:
    return len(drafter.session([7, 8]).propose(4)) > 0


def test_names_tell_tenants_apart_and_nothing_else() -> None:
    names = {name_of(*each) for each in ((None, None), ("a", None), ("b", None), ("a", "b"), ("a", "c"), (None, "a"))}
    assert len(names) == 6
    assert not any("a-long-key" in name for name in (name_of("a-long-key"), name_of("a-long-key", "a-long-key")))


def test_each_learns_for_itself() -> None:
    all_of_them = Tenants(HierarchyDrafter(100, learn=True), ["key"])
    one, two = name_of("key"), name_of("key", "team")
    teach(all_of_them.drafter_of(one))
    assert drafts(all_of_them.drafter_of(one))
    assert not any(drafts(all_of_them.drafter_of(name)) for name in (two, name_of(), name_of("other")))


def test_what_the_database_held_is_drafted_for_all() -> None:
    stored = ModelDatabase.from_tokens([*TEXT, 0] * 3, 100, eos_token_id=0)
    for learn in (True, False):
        all_of_them = Tenants(HierarchyDrafter(100, stored, learn=learn))
        assert all(drafts(all_of_them.drafter_of(name_of(key))) for key in (None, "a", "b"))


def test_without_learning_nothing_is_learnt() -> None:
    all_of_them = Tenants(HierarchyDrafter(100))
    teach(all_of_them.drafter_of(name_of()))
    assert not drafts(all_of_them.drafter_of(name_of()))


def test_tenants_beyond_the_most_draft_without_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "MOST", 3)
    all_of_them = Tenants(HierarchyDrafter(100, learn=True), ["key", "other"])
    for number in range(9):
        name = name_of("key", str(number))
        teach(all_of_them.drafter_of(name))
        assert drafts(all_of_them.drafter_of(name)) == (number < 3)
    teach(all_of_them.drafter_of(name_of("other")))  # whose place nobody takes
    assert drafts(all_of_them.drafter_of(name_of("other")))


def test_all_is_kept_and_comes_back_to_whom_it_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    before = Tenants(HierarchyDrafter(100, learn=True), ["key"], folder)
    other = [*TEXT[:2], 40, 41, 42, 43]
    teach(before.drafter_of(name_of()))
    teach(before.drafter_of(name_of("key")), other)
    before.save()
    before.save()
    after = Tenants(HierarchyDrafter(100, learn=True), ["key"], folder)
    assert after.drafter_of(name_of()).session([7, 8]).propose(1).tokens.tolist() == [9]
    assert after.drafter_of(name_of("key")).session([7, 8]).propose(1).tokens.tolist() == [40]
    assert not drafts(after.drafter_of(name_of("key", "new")))
    assert after.drafter.experience.snapshot().tokens == before.drafter.experience.snapshot().tokens
    plain = Tenants(HierarchyDrafter(100), ["key"], folder)  # without learning, nobody's text is drafted
    assert not any(drafts(plain.drafter_of(name_of(key))) for key in (None, "key"))
    plain.save()
    again = Tenants(HierarchyDrafter(100, learn=True), ["key"], folder)
    assert all(drafts(again.drafter_of(name_of(key))) for key in (None, "key"))


def test_a_tenants_damaged_folder_costs_drafts_and_is_left_as_it_is(tmp_path: Path) -> None:
    before = Tenants(HierarchyDrafter(100, learn=True), (), tmp_path)
    teach(before.drafter_of(name_of("key", "team")))
    before.save()
    manifest = tmp_path / "tenants" / name_of("key", "team") / "learned" / "manifest.json"
    manifest.write_text("{")
    after = Tenants(HierarchyDrafter(100, learn=True), (), tmp_path)
    teach(after.drafter_of(name_of("key", "team")))
    assert not drafts(after.drafter_of(name_of("key", "team")))
    after.save()
    assert manifest.read_text() == "{"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(DatabaseError, match="holds other files"):
        Tenants(HierarchyDrafter(100), (), tmp_path)
