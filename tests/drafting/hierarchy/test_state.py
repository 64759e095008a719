"""What a drafter has learnt, kept in a folder: the same drafts as before, whatever interrupts a save."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hdraft import DatabaseError, HierarchyDrafter, ModelDatabase, StatisticsDatabase, files
from hdraft.drafting.databases import storage
from hdraft.drafting.drafter import UnknownDraws
from hdraft.drafting.hierarchy import mixing, state
from hdraft.drafting.hierarchy.state import EXPERIENCES, LEARNED

VOCAB = 60
COSTS = np.linspace(1, 3, 65)


def serve(drafter: HierarchyDrafter, seed: int, length: int = 80, sampled: bool = False) -> None:
    """One request, whose text repeats itself and what others of the same seed wrote."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(1, VOCAB, 6) for _ in range(4)]
    text = np.concatenate([phrases[i] for i in rng.integers(0, 4, length // 6)])
    session = drafter.session(text[:10], COSTS, draws=UnknownDraws() if sampled else None)
    for begin in range(10, len(text), 3):
        session.propose(16)
        session.extend(text[begin : begin + 3])
    session.close()


def taught(drafter: HierarchyDrafter, requests: int = 12) -> HierarchyDrafter:
    for seed in range(requests):
        serve(drafter, seed)
    return drafter


def drafts(drafter: HierarchyDrafter, sampled: bool = False) -> list[list[list[float]]]:
    """Trees for some texts, with their probabilities, and with a budget that the running rate decides."""
    trees = []
    for seed in range(12):
        phrase = np.random.default_rng(seed).integers(1, VOCAB, 6)
        tree = drafter.session(phrase[:3], COSTS, draws=UnknownDraws() if sampled else None).propose(64)
        trees.append([tree.tokens.tolist(), tree.parents.tolist(), tree.probabilities.tolist()])
    return trees


def words(*names: str) -> PreTrainedTokenizerFast:
    vocabulary = {name: index for index, name in enumerate(names)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, names[0])))


TOKENIZER = words(*(f"w{i}" for i in range(VOCAB)))
OTHER = words(*(f"w{i}" for i in range(VOCAB - 1)), "another")

FRESH = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_state import *
drafter = HierarchyDrafter.for_model(VOCAB, TOKENIZER, learn=True)
drafter.load(sys.argv[1])
print(json.dumps(drafts(drafter)))
"""


def test_a_fresh_process_drafts_as_before(tmp_path: Path) -> None:
    drafter = taught(HierarchyDrafter.for_model(VOCAB, TOKENIZER, learn=True))
    drafter.save(tmp_path / "a" / "state")
    run = subprocess.run([sys.executable, "-c", FRESH, tmp_path / "a" / "state"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == drafts(drafter)
    assert drafts(drafter) != drafts(HierarchyDrafter(VOCAB))


def test_it_goes_on_learning_as_before(tmp_path: Path) -> None:
    drafter, again = taught(HierarchyDrafter(VOCAB, learn=True)), HierarchyDrafter(VOCAB, learn=True)
    drafter.save(tmp_path)
    again.load(tmp_path)
    for each in (drafter, again):
        for seed in range(6, 18):
            serve(each, seed)
    assert drafts(again) == drafts(drafter)
    for mine, theirs in zip(again.model_database.snapshot()[1], drafter.model_database.snapshot()[1], strict=True):
        assert np.array_equal(mine, theirs)


def test_everything_learnt_is_kept_habits_and_rate_among_it(tmp_path: Path) -> None:
    drafter, again = taught(HierarchyDrafter(VOCAB, learn=True)), HierarchyDrafter(VOCAB)
    drafter.save(tmp_path)
    again.load(tmp_path)
    (weights, *rate), (before, *rate_before) = again.experience.snapshot(), drafter.experience.snapshot()
    assert rate == rate_before and rate[0] > 0
    assert np.any(weights.lasting[mixing.FACTORS_OF_TOKENS] != 1)
    for mine, theirs in zip(weights, before, strict=True):
        assert np.array_equal(mine, theirs)


def test_what_sampled_requests_taught_is_kept_apart_from_the_rest(tmp_path: Path) -> None:
    drafter = HierarchyDrafter(VOCAB, learn=True)
    for seed in range(12):
        serve(drafter, seed, sampled=seed % 2 == 1)
    drafter.save(tmp_path)
    again = HierarchyDrafter(VOCAB, learn=True)
    again.load(tmp_path)
    for sampled in (False, True):
        assert drafts(again, sampled) == drafts(drafter, sampled)
    assert drafts(again, True) != drafts(again, False)


def test_a_state_from_before_sampled_requests_were_told_apart_is_read(tmp_path: Path) -> None:
    drafter = taught(HierarchyDrafter(VOCAB, learn=True))
    drafter.save(tmp_path)
    (tmp_path / EXPERIENCES[1]).unlink()
    again = HierarchyDrafter(VOCAB, learn=True)
    again.load(tmp_path)
    assert drafts(again) == drafts(drafter)


def test_without_learning_the_experience_is_kept_and_no_text(tmp_path: Path) -> None:
    drafter, again = taught(HierarchyDrafter(VOCAB)), HierarchyDrafter(VOCAB)
    drafter.save(tmp_path)
    again.load(tmp_path)
    assert drafts(again) == drafts(drafter)
    assert not list(ModelDatabase.from_pretrained(tmp_path / LEARNED).documents())


def test_what_d_m_was_opened_with_stays_where_it_is(tmp_path: Path) -> None:
    ModelDatabase.from_documents([[5, 6, 7]], VOCAB, 0).save_pretrained(tmp_path / "D_m")
    text = StatisticsDatabase.from_documents([[7, 8, 9]], VOCAB - 10, 0)
    drafter = HierarchyDrafter.for_model(VOCAB, None, tmp_path / "D_m", learn=True)
    serve(drafter, 1)
    drafter.save(tmp_path / "state")
    learned = list(ModelDatabase.from_pretrained(tmp_path / "state" / LEARNED).documents())
    assert len(learned) == 1
    for again in (  # also beside another D_m than it was learned beside, with another end of documents
        HierarchyDrafter.for_model(VOCAB, None, tmp_path / "D_m"),
        HierarchyDrafter.for_model(VOCAB),
        HierarchyDrafter.for_model(VOCAB, None, ModelDatabase(VOCAB, 3), learn=True),
        HierarchyDrafter.for_model(VOCAB, None, None, text),  # whose ids are fewer
    ):
        stored = again.model_database.snapshot()[0]
        again.load(tmp_path / "state")
        assert again.model_database.snapshot()[0] is stored
        ids = again.model_database.snapshot()[1].tokens
        known = learned[0][learned[0] < again.model_database.vocab_size]
        assert (
            ids[ids != again.model_database.separator].tolist()
            == known[known != again.model_database.separator].tolist()
        )
        again.session([7, 8]).propose(8).check(VOCAB, 8, 8)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_does_not_grow_however_often_it_is_saved_and_loaded(tmp_path: Path) -> None:
    sizes = []
    for turn in range(12):
        drafter = HierarchyDrafter(VOCAB, ModelDatabase(VOCAB, capacity=500), learn=True)
        if turn:
            drafter.load(tmp_path)
        taught(drafter, 4 + turn)
        drafter.save(tmp_path)
        sizes.append(size(tmp_path))
        assert len(list(tmp_path.rglob("*"))) == 7
    assert len(drafter.model_database.snapshot()[1].tokens) <= 500
    assert max(sizes) - sizes[2] <= 6 * 500
    smaller = HierarchyDrafter(VOCAB, ModelDatabase(VOCAB, capacity=200), learn=True)
    smaller.load(tmp_path)
    newest = [document.tolist() for document in smaller.model_database.documents()]
    kept = [document.tolist() for document in drafter.model_database.documents()]
    assert newest == kept[-len(newest) :] and 100 < sum(map(len, newest)) <= 200


class KilledError(BaseException):
    """A process that was killed: nothing that it would have done after this has an effect."""


def killed_at(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], int]:
    """Let the `at`th system call of a save raise `error`, and after a kill all later ones; count them."""
    count = 0

    def patched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == at or (count > at and isinstance(error, KilledError)):
                raise error
            return call(*arguments, **keywords)

        return run

    for name in ("mkdir", "fsync", "replace", "unlink", "listdir"):
        monkeypatch.setattr(os, name, patched(getattr(os, name)))
    monkeypatch.setattr(storage._Hashed, "write", patched(storage._Hashed.write))
    return lambda: count


@pytest.mark.parametrize("error", [KilledError(), OSError(errno.ENOSPC, "No space left")], ids=["kill", "full"])
@pytest.mark.parametrize("fresh", [False, True])
def test_interrupted_at_any_moment(tmp_path: Path, fresh: bool, error: BaseException) -> None:
    """Each of the two parts is what it was or what it should be, and what is left behind goes with the next save."""
    old, new = taught(HierarchyDrafter(VOCAB, learn=True), 2), taught(HierarchyDrafter(VOCAB, learn=True), 4)

    def learned(drafter: HierarchyDrafter) -> list[list[int]]:
        return [document.tolist() for document in drafter.model_database.documents()]

    seen: set[tuple[int, bool]] = set()
    steps, step = 99, 0
    while step < steps:
        step += 1
        folder = tmp_path / str(step)
        if not fresh:
            old.save(folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            count = killed_at(monkeypatch, step, error)
            try:
                new.save(folder)
                steps = min(steps, count())
            except (KilledError, DatabaseError) as caught:
                assert "\n" not in str(caught)
        if not folder.exists():
            continue
        found = HierarchyDrafter(VOCAB, learn=True)
        found.load(folder)
        assert learned(found) in ([] if fresh else learned(old), learned(new))
        rates = [each.experience.snapshot().tokens for each in (HierarchyDrafter(VOCAB) if fresh else old, new)]
        assert found.experience.snapshot().tokens in rates
        seen.add((len(learned(found)), found.experience.snapshot().tokens == rates[1]))
        new.save(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted([*EXPERIENCES, LEARNED])
        assert len(list((folder / LEARNED).iterdir())) == 4
    assert steps > 10
    assert {(4, True), (0 if fresh else 2, True), (0 if fresh else 2, False)} <= seen


SAVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_state import *
drafter = taught(HierarchyDrafter(VOCAB, learn=True), 2)
for _ in range(10000):
    drafter.save(sys.argv[1])
    print("saved", flush=True)
    serve(drafter, 5)
"""


def test_a_process_killed_while_it_saves_leaves_what_can_be_loaded(tmp_path: Path) -> None:
    for turn in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path / "state"], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"saved\n"
        time.sleep(0.003 * turn)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        drafter = HierarchyDrafter(VOCAB, learn=True)
        drafter.load(tmp_path / "state")
        assert len(list(drafter.model_database.documents())) >= 2
        assert drafter.experience.snapshot().tokens > 0
    drafter.save(tmp_path / "state")
    assert len(list((tmp_path / "state").rglob("*"))) == 7


def test_two_processes_that_save_at_once_harm_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    processes = [subprocess.Popen([sys.executable, "-c", SAVER, folder], stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"saved\n"
    for _ in range(20):
        drafter = HierarchyDrafter(VOCAB, learn=True)
        drafter.load(folder)
        assert len(list(drafter.model_database.documents())) >= 2
    for process in processes:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"saved\n"
        process.kill()
        process.communicate()


def test_a_save_waits_for_another_and_says_so_where_it_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = taught(HierarchyDrafter(VOCAB, learn=True), 1)
    drafter.save(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        with files.exclusive(tmp_path):
            with monkeypatch.context() as patched:
                patched.setattr(state, "_PATIENCE", 0.0)
                with pytest.raises(DatabaseError, match=r"cannot save to .*: another process is writing it"):
                    drafter.save(tmp_path)
            waiting = threads.submit(drafter.save, tmp_path)
            time.sleep(0.2)
            assert not waiting.done()
        waiting.result()


def test_saving_and_loading_while_requests_run(tmp_path: Path) -> None:
    drafter = taught(HierarchyDrafter(VOCAB, learn=True), 3)
    drafter.save(tmp_path)
    done = threading.Event()

    def keep() -> None:
        while not done.is_set():
            drafter.save(tmp_path)
            HierarchyDrafter(VOCAB).load(tmp_path)
            drafter.load(tmp_path)

    keeping = threading.Thread(target=keep)
    keeping.start()
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda seed: serve(drafter, seed), range(40)))
    done.set()
    keeping.join()
    drafter.save(tmp_path)
    again = HierarchyDrafter(VOCAB, learn=True)
    again.load(tmp_path)
    assert drafts(again) == drafts(drafter)


def test_a_request_that_runs_while_another_experience_is_loaded_harms_none(tmp_path: Path) -> None:
    taught(HierarchyDrafter(VOCAB), 1).save(tmp_path)
    drafter = taught(HierarchyDrafter(VOCAB), 30)
    session = drafter.session(list(range(1, 20)))
    session.extend([1, 2, 3, 4, 5])
    drafter.load(tmp_path)  # which has learnt less than the request began with
    session.close()
    assert drafter.experience.snapshot().sound()


def test_an_empty_folder_is_a_state_in_which_nothing_was_learnt(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".keep").touch()
    drafter = HierarchyDrafter(VOCAB, learn=True)
    drafter.load(tmp_path)
    assert drafts(drafter) == drafts(HierarchyDrafter(VOCAB))
    drafter.save(tmp_path)
    drafter.load(tmp_path)


def refused(call: Callable[..., None], folder: Path, said: str) -> None:
    with pytest.raises(DatabaseError, match=said) as caught:
        call(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    drafter = HierarchyDrafter(VOCAB)
    refused(drafter.load, tmp_path / "nothing", "nothing does not exist: give the folder that a drafter was saved to")
    (tmp_path / "file").touch()
    for call in (drafter.load, drafter.save):
        refused(call, tmp_path / "file", "file is a file")
        refused(call, tmp_path, "holds other files, and nothing that a drafter has learnt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    ModelDatabase.from_documents([[1, 2]], VOCAB, 0).save_pretrained(tmp_path / "D_m")
    refused(drafter.save, tmp_path / "D_m", "holds other files")
    assert list(ModelDatabase.from_pretrained(tmp_path / "D_m").documents())


def test_another_vocabulary_or_tokenizer_is_refused(tmp_path: Path) -> None:
    taught(HierarchyDrafter.for_model(VOCAB, TOKENIZER, learn=True)).save(tmp_path)
    refused(HierarchyDrafter(VOCAB + 1).load, tmp_path, f"was saved for a vocabulary of {VOCAB} ids and .* has 61")
    drafter = HierarchyDrafter.for_model(VOCAB, OTHER, learn=True)
    refused(drafter.load, tmp_path, f"another tokenizer than this drafter's, token id {VOCAB - 1} is another token")
    assert drafts(drafter) == drafts(HierarchyDrafter(VOCAB))  # as it was
    general = StatisticsDatabase.from_documents([[1, 2]], VOCAB, 0, OTHER)
    refused(HierarchyDrafter.for_model(VOCAB, None, None, general).load, tmp_path, "another tokenizer")
    HierarchyDrafter.for_model(VOCAB, TOKENIZER, learn=True).load(tmp_path)
    HierarchyDrafter(VOCAB).load(tmp_path)  # which knows no tokenizer
    for name in EXPERIENCES:  # where only the text says so
        (tmp_path / name).unlink()
    refused(HierarchyDrafter(VOCAB - 1).load, tmp_path, f"was saved for a vocabulary of {VOCAB} ids and .* has 59")


def test_experience_of_another_version_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taught(HierarchyDrafter(VOCAB, learn=True)).save(tmp_path)
    drafter = HierarchyDrafter(VOCAB, learn=True)
    monkeypatch.setattr(mixing, "VERSION", mixing.VERSION + 1)
    with caplog.at_level(logging.WARNING, "hdraft"):
        drafter.load(tmp_path)
    assert len(caplog.records) == len(EXPERIENCES) and "is of another version of hdraft" in caplog.text
    assert drafter.experience.snapshot().tokens == 0
    assert len(list(drafter.model_database.documents())) == 12


def with_values(content: bytes, change: Callable[[np.ndarray[Any, Any]], None]) -> bytes:
    header, _, rest = content.partition(b"\n")
    values = np.frombuffer(rest, "<f8").copy()
    change(values)
    return header + b"\n" + values.tobytes()


def put(place: int, value: float) -> Callable[[bytes], bytes]:
    return lambda content: with_values(content, lambda values: values.__setitem__(place, value))


def certain(values: np.ndarray[Any, Any]) -> None:
    """A match that is always believed leaves nothing for what it did not foresee: taken as often as reached."""
    values[0] = values[len(mixing.initial_weights().taken)]


def header_with(**fields: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        header, _, rest = content.partition(b"\n")
        return json.dumps(json.loads(header) | fields).encode() + b"\n" + rest

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "long": lambda content: content + b"\0",
    "no header": lambda content: content.partition(b"\n")[2],
    "pickle": lambda content: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "deep": lambda content: b"[" * 4000,
    "not a number": put(0, np.nan),
    "infinite": put(2000, np.inf),
    "negative": put(5, -1.0),
    "certain": lambda content: with_values(content, certain),
    "immense factor": put(10000, 1e9),
    "negative factor": put(10000, -2.0),
    "no gradient": put(-1, 0.0),
    "rate": header_with(tokens=1e9, time=1e-9),
    "time": header_with(time=-1),
    "number": header_with(tokens="many"),
    "format": header_with(format="another"),
}


@pytest.mark.parametrize("name", EXPERIENCES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_experience_is_refused_and_the_drafter_is_as_it_was(tmp_path: Path, damage: str, name: str) -> None:
    taught(HierarchyDrafter(VOCAB, learn=True)).save(tmp_path)
    path = tmp_path / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    drafter = HierarchyDrafter(VOCAB, learn=True)
    refused(drafter.load, tmp_path, f"{name} is damaged: remove it")
    assert drafts(drafter) == drafts(HierarchyDrafter(VOCAB))
    path.unlink()  # as it says
    drafter.load(tmp_path)
    assert list(drafter.model_database.documents())


def test_damaged_text_is_refused(tmp_path: Path) -> None:
    taught(HierarchyDrafter(VOCAB, learn=True)).save(tmp_path)
    tokens = next((tmp_path / LEARNED).glob("tokens-*"))
    tokens.write_bytes(tokens.read_bytes()[:-2])
    drafter = HierarchyDrafter(VOCAB, learn=True)
    refused(drafter.load, tmp_path, "is damaged")
    assert drafts(drafter) == drafts(HierarchyDrafter(VOCAB))


def test_an_index_of_the_right_size_that_lies_is_not_believed(tmp_path: Path) -> None:
    taught(HierarchyDrafter(VOCAB, learn=True)).save(tmp_path)
    suffixes = next((tmp_path / LEARNED).glob("suffixes-*"))
    suffixes.write_bytes(suffixes.read_bytes()[:128] + b"\xff" * (suffixes.stat().st_size - 128))
    drafter = HierarchyDrafter(VOCAB, learn=True)
    drafter.load(tmp_path)
    again = taught(HierarchyDrafter(VOCAB, learn=True))
    for seed in range(12, 20):
        serve(drafter, seed)
        serve(again, seed)
    assert drafts(drafter) == drafts(again)
