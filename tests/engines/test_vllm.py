"""The proposer against batches that do what vLLM's do; `test_vllm_engine` is against vLLM itself."""

import gc
import logging
import re
import sys
import weakref
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batch import Batch, Request, check, vllm_config
from numba.core.dispatcher import Dispatcher

from hdraft import drafting
from hdraft.demo import MODEL, MODEL_DATABASE
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.storage import DatabaseError
from hdraft.drafting.hierarchy.drafter import HierarchySession
from hdraft.drafting.kernel_cache import NotCompiledError
from hdraft.engines import batch as batches
from hdraft.engines.batch import BatchDrafter
from hdraft.engines.vllm import HierarchyProposer

WORDS = 12  # tokens of a request's own alphabet


def batch_of(proposer: HierarchyProposer) -> BatchDrafter:
    assert proposer._batch is not None
    return proposer._batch


def learned(proposer: HierarchyProposer) -> ModelDatabase:
    """D_m when all is in that has ended."""
    learner = batch_of(proposer).learner
    assert learner is not None
    learner.flush()
    return batch_of(proposer).drafter.model_database


def proposer(vocab_size: int, settings: Any = None, **options: Any) -> HierarchyProposer:
    return HierarchyProposer(vllm_config(vocab_size, settings, **options))


def phrases(rng: np.random.Generator, alphabet: int, length: int) -> list[int]:
    """Text that repeats itself, in tokens that no other alphabet has."""
    phrase = alphabet * WORDS + rng.integers(0, WORDS, 5)
    return [
        int(token)
        for _ in range(length // 5 + 1)
        for token in (phrase if rng.random() < 0.8 else alphabet * WORDS + rng.integers(0, WORDS, 5))
    ][:length]


def request(rng: np.random.Generator, alphabet: int, longest: int = 60) -> Request:
    return Request(
        phrases(rng, alphabet, int(rng.integers(2, longest))), phrases(rng, alphabet, int(rng.integers(1, longest)))
    )


def always(proposer: HierarchyProposer) -> HierarchyProposer:
    """Without the clock, so that a test does the same on every machine."""
    if proposer._batch is not None:
        proposer._batch._measure = lambda *_: None  # type: ignore[method-assign]
    return proposer


@pytest.mark.parametrize(("seed", "learn", "chunk"), [(0, False, 10**9), (1, True, 10**9), (2, True, 16)])
def test_500_requests_enter_leave_move_and_are_aborted_and_nothing_is_crossed_or_leaked(
    seed: int, learn: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    sessions: list[weakref.ref[HierarchySession]] = []
    begin = HierarchySession.__init__

    def watched(self: HierarchySession, *arguments: Any) -> None:
        sessions.append(weakref.ref(self))
        begin(self, *arguments)

    tested = always(proposer(500 * WORDS, {"learn": learn}))
    monkeypatch.setattr(HierarchySession, "__init__", watched)
    batch = Batch(tested, 16, chunk=chunk)
    waiting = [request(rng, alphabet) for alphabet in range(500)]
    owner = {id(each): number for number, each in enumerate(waiting)}
    preempted: list[Request] = []
    while waiting or preempted or batch.rows:
        running = [each for each in batch.rows if each]
        for each in batch.finished():
            batch.remove(each)
            running.remove(each)
        if running and rng.random() < 0.1:
            batch.remove(running.pop())  # aborted
        if running and rng.random() < 0.05:
            batch.remove(running[0])
            preempted.append(running.pop(0))
        while len(running) < 16 and (waiting or preempted) and rng.random() < 0.7:
            running.append(preempted.pop() if preempted and rng.random() < 0.5 else (waiting or preempted).pop())
            batch.add(running[-1])
        batch.condense()
        if len(batch.rows) > 1 and rng.random() < 0.1:
            batch.swap(0, len(batch.rows) - 1)
        batch.step()
        check(tested, batch)
        for each in batch.rows:
            assert each is not None
            assert {token // WORDS for token in each.draft} <= {owner[id(each)]}
        assert sum(session() is not None for session in sessions) <= 16 * 18
    assert batch.accepted > 3000
    for _ in range(20):
        tested.propose([], batch.lengths, batch.tokens)
    assert not any(tested._requests)
    assert not tested._absent
    gc.collect()
    assert [session for session in sessions if session() is not None] == []


def test_what_is_learnt_is_what_was_generated_and_no_prompt() -> None:
    rng = np.random.default_rng(3)
    tested = always(proposer(40 * WORDS, {"learn": True}))
    batch = Batch(tested, 4)
    requests = [request(rng, alphabet) for alphabet in range(40)]
    waiting = list(requests)
    while waiting or batch.rows:
        for each in batch.finished():
            batch.remove(each)
        while waiting and sum(each is not None for each in batch.rows) < 4:
            batch.add(waiting.pop())
        batch.condense()
        batch.step()
    for _ in range(20):
        tested.propose([], batch.lengths, batch.tokens)
    learnt = [document.tolist() for document in learned(tested).documents()]
    for alphabet, each in enumerate(requests):
        first, *others = (document for document in learnt if document[0] // WORDS == alphabet)
        assert [*first, *(token for piece in others for token in piece[8:])] == each.output, "with 8 tokens before each"


def test_what_a_request_generates_is_learnt_while_it_runs() -> None:
    output = list(range(20, 120))
    tested = always(proposer(200, {"learn": True}))
    batch = Batch(tested, 2)
    batch.add(one := Request([1, 2, 9], list(output)))
    while one.emitted < 40:
        batch.step()
    assert [document.tolist() for document in learned(tested).documents()] == [output[:32]]
    batch.add(other := Request([3, 4, 5, 9], list(output)))
    before = batch.accepted
    while other.emitted < 25:
        batch.step()
    assert batch.accepted > before + 15


def test_requests_that_run_together_learn_from_each_other() -> None:
    common = list(range(20, 80))
    tested = always(proposer(300, {"learn": True}))
    batch = Batch(tested, 2)
    batch.add(Request([1, 2, 9], [*common, *range(80, 180)]))
    batch.add(other := Request([3, 4, 9], [*range(200, 300), *common]))
    while other.emitted < 102:
        batch.step()
        learned(tested)
    before = batch.accepted
    while other.emitted < 150:
        batch.step()
    assert batch.accepted > before + 30


def test_what_was_learnt_is_drafted_for_the_next_request_and_without_learning_is_not() -> None:
    output = list(range(20, 60))
    for learn in (True, False):
        tested = always(proposer(100, {"learn": learn}))
        batch = Batch(tested, 2)
        for prompt in ([1, 2], [3, 4, 5]):
            batch.add(once := Request([*prompt, 9], list(output)))
            while once.emitted < len(output):
                batch.step()
                if learn:
                    learned(tested)
            if prompt == [1, 2]:
                assert batch.accepted == 0
                batch.remove(once)
        assert (batch.accepted > 20) is learn


def test_learning_is_bounded() -> None:
    tested = always(proposer(100, {"learn": True}))
    database = learned(tested)
    database.capacity = 300
    batch = Batch(tested, 1)
    for number in range(40):
        batch.add(once := Request([number], list(range(50, 80))))
        while once.emitted < 30:
            batch.step()
        batch.remove(once)
        learned(tested)
    assert 0 < len(database.snapshot()[1].tokens) <= 300


def test_a_moved_row_keeps_its_session_and_a_new_request_in_its_place_does_not_take_it() -> None:
    rng = np.random.default_rng(4)
    tested = always(proposer(5 * WORDS))
    batch = Batch(tested, 4)
    first, second, third, fourth = (Request(phrases(rng, i, 30), phrases(rng, i, 200)) for i in range(4))
    for each in (first, second, third):
        batch.add(each)
    batch.step()
    sessions = [each.session for each in tested._requests if each]
    batch.remove(first)
    batch.step()  # the third moves into the first row
    assert [each.session for each in tested._requests if each] == [sessions[2], sessions[1]]
    batch.swap(0, 1)
    batch.add(fourth)
    batch.step()
    kept = [each.session for each in tested._requests if each]
    assert kept[:2] == [sessions[1], sessions[2]]
    assert kept[2] not in sessions


def test_a_request_that_had_no_place_in_a_step_goes_on_with_its_session() -> None:
    rng = np.random.default_rng(5)
    tested = always(proposer(5 * WORDS))
    batch = Batch(tested, 4)
    first, second = (Request(phrases(rng, i, 30), phrases(rng, i, 200)) for i in range(2))
    batch.add(first)
    batch.add(second)
    batch.step()
    sessions = [each.session for each in tested._requests if each]
    batch.remove(first)
    batch.step()
    batch.add(first)
    batch.step()
    assert {id(each.session) for each in tested._requests if each} == {id(session) for session in sessions}


def test_the_same_prompt_twice_is_two_requests() -> None:
    tested = always(proposer(100))
    batch = Batch(tested, 2)
    prompt = list(range(30)) * 2
    one, other = Request(prompt, list(range(60, 99)) * 2), Request(prompt, list(range(30)) * 2)
    batch.add(one)
    batch.add(other)
    for _ in range(8):
        batch.step()
        check(tested, batch)
    assert batch.accepted > 0


def test_long_texts_that_end_alike_are_told_apart() -> None:
    rng = np.random.default_rng(9)
    tested = always(proposer(4 * WORDS))
    batch = Batch(tested, 3)
    common = phrases(rng, 0, 300)
    beginnings, outputs = (20, 31, 31), (12, 40, 70)
    for i, (beginning, output) in enumerate(zip(beginnings, outputs, strict=True)):
        batch.add(Request([*phrases(rng, 1 + i, beginning), *common], phrases(rng, i, output)))
    while any(batch.rows):
        batch.step()
        check(tested, batch)
        for each in batch.finished():
            batch.remove(each)
    assert batch.accepted > 0


def test_calls_that_are_left_out_near_the_longest_text_lose_nothing_but_their_drafts() -> None:
    rng = np.random.default_rng(6)
    tested = always(proposer(3 * WORDS, max_model_len=128))
    batch = Batch(tested, 2, max_model_len=128)
    batch.add(long := Request(phrases(rng, 0, 100), phrases(rng, 0, 27)))
    batch.add(other := Request(phrases(rng, 1, 10), phrases(rng, 1, 100)))
    steps = 0
    while long.emitted < 27:
        batch.step()
        steps += 1
    assert batch.calls < steps
    batch.remove(long)
    before = batch.accepted
    while other.emitted < 100:
        batch.step()
        check(tested, batch)
    assert batch.accepted > before


def test_no_draft_reaches_past_the_longest_text() -> None:
    tested = always(proposer(10, max_model_len=64))
    ids = np.tile(np.arange(4, dtype=np.int32), 20)[None]
    for length in range(50, 65):
        [draft] = tested.propose([[int(ids[0, length - 1])]], np.array([length], np.int32), ids)
        assert len(draft) == max(min(6, 64 - length - 1), 0)


def test_a_chain_is_cut_where_its_place_costs_more_than_it_brings() -> None:
    tested = always(proposer(200))
    text = [*range(100, 110), 7, *range(100, 110)]
    assert len(propose(tested, text)) == 6
    batch_of(tested).load.price = lambda rows: 0.999  # type: ignore[method-assign]
    assert propose(tested, [*text, 7, 100, 101]) == []


def propose(tested: HierarchyProposer, *texts: list[int]) -> list[int]:
    """The first row's draft, for rows that have just emitted their last token."""
    ids = np.zeros((len(texts), 256), np.int32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    lengths = np.array([len(text) for text in texts], np.int32)
    return tested.propose([text[-1:] for text in texts], lengths, ids)[0]


def test_more_rows_than_max_batch_and_matches_shorter_than_min_match_have_no_drafts() -> None:
    text = [1, 2, 3, 4, 5, 1, 2]
    assert propose(always(proposer(10, {"max_batch": 1})), text) != []
    assert propose(always(proposer(10, {"max_batch": 1})), text, text) == []
    assert propose(always(proposer(10, {"min_match": 2})), text) != []
    assert propose(always(proposer(10, {"min_match": 3})), text) == []


def test_ranks_that_vllm_does_not_hear_open_no_database_and_draft_nothing() -> None:
    settings = {"model_database": "/no/such/folder"}
    for rank, size in ((1, 2), (5, 4)):
        assert propose(proposer(10, settings, rank=rank, tensor_parallel_size=size), [1, 2, 1]) == []
    assert propose(proposer(10, rank=4, tensor_parallel_size=4), [1, 2, 1]) != []


def test_a_failure_is_logged_once_and_the_other_rows_are_drafted_for(caplog: pytest.LogCaptureFixture) -> None:
    tested = always(proposer(10))
    good, bad = [1, 2, 3, 1], [1, 99, 1]
    with caplog.at_level(logging.ERROR, "vllm.hdraft"):
        assert propose(tested, bad) == []
        assert propose(tested, good, bad) != []
        assert propose(tested, [*bad, 2]) == []
    assert [record.name for record in caplog.records] == ["vllm.hdraft"]
    assert "outside the vocabulary" in caplog.text


@pytest.mark.parametrize("kind", [list, np.array])
def test_a_row_that_emits_no_id_suffers_alone(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A negative id, or one beyond the vocabulary: the other rows go on, and are learnt in one piece."""
    tested = always(proposer(60, {"learn": True}))
    prompts = [[number, number + 1, number + 2] * 2 for number in (1, 11, 21, 31)]
    bad = {0: {3: -1}, 3: {2: 70, 4: -1}}  # rows, and what they emit at which step
    ids = np.zeros((4, 64), np.int32)
    texts = [list(prompt) for prompt in prompts]
    sessions = set()
    rows = [0, 1, 2, 3]
    for number in range(8):
        if number == 5:
            rows = [1, 2]  # the others have ended
        for place, row in enumerate(rows):
            texts[row].append(bad.get(row, {}).get(number, prompts[row][number % 3]))
            ids[place, : len(texts[row])] = texts[row]
        lengths = np.array([len(texts[row]) for row in rows], np.int32)
        drafts = tested.propose([kind(texts[row][-1:]) for row in rows], lengths, ids)
        assert all(drafts[rows.index(row)] for row in (1, 2))
        sessions |= {id(each.session) for each in tested._requests if each and each.known[0] in (11, 21)}
    assert len(sessions) == 2
    for _ in range(20):
        tested.propose([], lengths, ids)
    database = learned(tested)
    learnt = sorted(document.tolist() for document in database.documents())
    whole = [[prompts[row][number % 3] for number in range(8)] for row in range(4)]
    assert learnt == sorted([whole[0][:3], whole[0][4:5], whole[1], whole[2], whole[3][:2], whole[3][3:4]])
    assert len(caplog.records) == 1


def test_a_row_of_what_are_no_ids_is_a_row_without_any() -> None:
    tested = always(proposer(10))
    ids = np.array([[1, 2, 1, 0], [1, 2, 1, 0]], np.int32)
    lengths = np.array([3, 3], np.int32)
    for wrong in (None, ["a"], [2**40], [[1], [2, 3]]):
        drafts = tested.propose([wrong, [1]], lengths, ids)  # type: ignore[list-item]
        assert drafts[0] == [] and drafts[1] != []


def test_nothing_that_vllm_could_hand_over_raises() -> None:
    tested = proposer(50)
    rng = np.random.default_rng(7)
    for _ in range(300):
        rows = int(rng.integers(0, 5))
        ids = rng.integers(-3, 60, (max(rows, 1), 32)).astype(np.int32)
        lengths = rng.integers(-1, 40, max(rows, 1)).astype(np.int32)
        sampled = [rng.integers(0, 50, rng.integers(0, 4)).tolist() for _ in range(rows)]
        assert len(tested.propose(sampled, lengths, ids)) == rows
    assert propose(tested, [1, 2, 1]) != []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "must be an object"),
        ({"max_batches": 3}, "no setting 'max_batches': there are model_database, statistics_database, learn"),
        ({"max_batch": 0}, "max_batch is 0: it must be a number, at least 1"),
        ({"max_batch": "many"}, "max_batch is 'many'"),
        ({"min_match": 1.5}, "min_match is 1.5"),
        ({"min_match": True}, "min_match is True"),
        ({"learn": 1}, "learn is 1: it must be true or false"),
        ({"learn": True, "drafter_state": 1}, "drafter_state is 1: it must be a folder"),
        ({"learn": True, "drafter_state": ""}, "drafter_state is '': it must be a folder"),
        ({"drafter_state": "state"}, "drafter_state is for what is learnt: set learn to true"),
        ({"model_database": 3}, "model_database is 3: it must be a folder"),
        ({"model_database": "/no/such/folder"}, "no database at /no/such/folder"),
        ({"statistics_database": str(MODEL_DATABASE)}, "statistics"),
    ],
)
def test_bad_settings_are_refused_at_the_start(settings: Any, reason: str) -> None:
    with pytest.raises((ValueError, DatabaseError), match=re.escape(reason)) as refused:
        proposer(8192, settings)
    assert "\n" not in str(refused.value)


def test_a_database_of_another_tokenizer_is_refused_and_the_models_own_is_taken(tmp_path: Path) -> None:
    ModelDatabase.from_documents([[1, 2, 3]], 8192, 0, "another").save_pretrained(tmp_path / "other")
    with pytest.raises(DatabaseError, match="tokenizer"):
        proposer(8192, {"model_database": str(tmp_path / "other")}, tokenizer=str(MODEL))
    proposer(8192, {"model_database": str(MODEL_DATABASE)}, tokenizer=str(MODEL))


def test_nothing_is_compiled_after_the_constructor() -> None:
    modules = [import_module(f"{drafting.__name__}.{module.name}") for module in iter_modules(drafting.__path__)]
    kernels = [value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)]
    tested = always(proposer(8192, {"model_database": str(MODEL_DATABASE), "learn": True}))
    before = [(kernel, len(kernel.signatures)) for kernel in kernels]
    batch = Batch(tested, 3)
    rng = np.random.default_rng(8)
    for alphabet in range(6):
        batch.add(once := request(rng, alphabet, 400))
        while once.emitted < len(once.output):
            batch.step()
        batch.remove(once)
    once_more = batch_of(tested).drafter.session([1, 2, 3])
    once_more.extend([4])
    once_more.close()
    assert [kernel.__name__ for kernel, count in before if len(kernel.signatures) != count] == []


class Compilation:
    """A process that compiles, until it is told to end."""

    def __init__(self) -> None:
        self.ended = False

    def running(self) -> bool:
        return not self.ended


@pytest.mark.parametrize("comes_to_nothing", [False, True])
def test_rows_go_without_drafts_while_kernels_are_compiled(
    comes_to_nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilation, compiled, begin = Compilation(), False, HierarchySession.__init__

    def lacking(self: HierarchySession, *arguments: Any) -> None:
        if not compiled:
            raise NotCompiledError("a kernel")
        begin(self, *arguments)

    monkeypatch.setattr(HierarchySession, "__init__", lacking)
    monkeypatch.setattr(batches, "compile_beside", lambda drafter: None if comes_to_nothing else compilation)
    tested = always(proposer(8 * WORDS))  # does not wait
    batch = Batch(tested, 1)
    batch.add(Request([1, 2, 3] * 8, [1, 2, 3] * 30))
    for _ in range(10):
        batch.step()
        assert batch.rows[0] is not None and batch.rows[0].draft == []
    compiled = compilation.ended = True
    for _ in range(4):
        batch.step()
    assert bool(batch.accepted) != comes_to_nothing
    assert not batch_of(tested).failed


def test_on_a_processor_a_place_costs_more_until_steps_have_told() -> None:
    config = vllm_config(8)
    on_gpu = batch_of(HierarchyProposer(config)).load.price(8)
    config.device_config = SimpleNamespace(device_type="cpu")
    assert batch_of(HierarchyProposer(config)).load.price(8) == 2 * on_gpu


def test_it_needs_no_vllm() -> None:
    assert "vllm" not in sys.modules or hasattr(sys.modules["vllm"], "__version__")
    module = import_module("hdraft.engines.vllm")
    assert not [name for name in vars(module) if name in ("torch", "vllm")]
