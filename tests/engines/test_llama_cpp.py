"""The draft model in a `Llama` that does what llama-cpp-python's does; `test_llama_cpp_engine` is in the real one."""

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_loop import Llama, take, writer

from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.kernel_cache import NotCompiledError
from hdraft.drafting.tree import DraftTree
from hdraft.engines import llama_cpp
from hdraft.engines.llama_cpp import HierarchyDraftModel, UnsupportedLlamaError

VOCABULARY = 100
FREE = np.ones(17)  # costs of a machine where draft tokens take no time


def phrases(rng: np.random.Generator, length: int) -> list[int]:
    """Text that repeats itself, more or less."""
    stock = rng.integers(1, VOCABULARY, (4, 5))
    text = [int(token) for _ in range(length // 5 + 1) for token in stock[rng.integers(4)]]
    return [int(rng.integers(1, VOCABULARY)) if rng.random() < 0.1 else token for token in text][:length]


def model(learn: bool = False, **options: Any) -> HierarchyDraftModel:
    return HierarchyDraftModel(HierarchyDrafter(VOCABULARY, learn=learn), **{"costs": FREE} | options)


def known(draft_model: HierarchyDraftModel) -> list[int]:
    """The text that the session has."""
    session = draft_model._session
    assert session is not None
    session.propose(1)  # what was emitted last joins D_c with the next tree
    return session._context.trie.text[: len(session._context)].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("logits_all", [False, True])
def test_texts_are_those_of_a_llama_without_drafts_in_fewer_passes(seed: int, logits_all: bool) -> None:
    rng = np.random.default_rng(seed)
    tested = model(learn=seed % 2 == 0, budget=int(rng.integers(1, 17)))
    texts = [phrases(rng, 200) for _ in range(5)]
    drafting = Llama(writer(texts), n_batch=32, n_ctx=220, logits_all=logits_all, draft_model=tested)
    plain = Llama(writer(texts), n_batch=32, n_ctx=220)
    for text in texts:
        prompt, count = text[: int(rng.integers(1, 80))], int(rng.integers(1, 100))
        assert take(drafting.generate(prompt), count) == take(plain.generate(prompt), count)
    assert tested.accepted > 20
    assert sum(event[0] == "eval" for event in drafting.events) < sum(event[0] == "eval" for event in plain.events)


def test_each_step_goes_on_with_its_request_and_a_next_turn_begins_one(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[HierarchySession] = []
    begin = HierarchySession.__init__

    def watched(self: HierarchySession, *arguments: Any, **options: Any) -> None:
        begun.append(self)
        begin(self, *arguments, **options)

    monkeypatch.setattr(HierarchySession, "__init__", watched)
    tested = model(learn=True)
    first = [1, 2, 3, 4] * 6
    second = [*first, 50, 51, *[5, 6, 7] * 8]  # a user's turn behind an answer
    llama = Llama(writer([first, second]), draft_model=tested)
    begun.clear()  # what warms up
    assert take(llama.generate(first[:6]), 18) == first[6:]
    assert len(begun) == 1
    assert known(tested) == first[: len(known(tested))]
    assert take(llama.generate(second[:30]), 12) == second[30:42]
    assert len(begun) == 2
    assert known(tested) == second[: len(known(tested))]
    learnt = [each.tolist() for each in tested.drafter.model_database.documents()]
    assert learnt == [first[6 : 6 + len(learnt[0])]], "an answer is learnt, and no prompt"
    assert len(learnt[0]) > 6


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_prompt_again_is_another_request(count: int) -> None:
    tested = model(learn=True)
    text = [9, 8, 7, 9, 8, 7, 9, 8, 7, 9, 8, 7, 9, 8, 7]
    llama = Llama(writer([text]), draft_model=tested)
    for _ in range(4):
        assert take(llama.generate(text[:6]), count) == text[6 : 6 + count]
        if tested._session is not None:
            assert known(tested) == text[: len(known(tested))]
    tested.close()
    for document in tested.drafter.model_database.documents():
        assert document.tolist() == text[6 : 6 + len(document)]


def test_close_lets_a_learning_drafter_take_the_answer_in_without_a_next_request() -> None:
    tested = model(learn=True)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    take(Llama(writer([text]), draft_model=tested).generate(text[:2]), 6)
    tested.close()
    tested.close()
    assert [each.tolist() for each in tested.drafter.model_database.documents()] == [text[2:-1]]


def test_what_is_handed_over_is_copied() -> None:
    tested = model(learn=True)
    llama = Llama(writer([[]]), draft_model=tested)
    handed = np.array([5, 6, 7, 5, 6, 7, 5], np.intc)
    tested(handed)
    handed[:] = 99
    assert known(tested) == [5, 6, 7, 5, 6, 7, 5]
    assert tested._text.tolist() == [5, 6, 7, 5, 6, 7, 5]
    del llama


def test_without_logits_all_prompts_behind_n_batch_are_read_and_only_drafts_have_all_their_logits() -> None:
    text = [int(token) for token in np.random.default_rng(0).integers(1, 50, 90)] * 2
    llama = Llama(writer([text]), n_ctx=256, n_batch=16, draft_model=model())
    scores = llama.scores
    assert take(llama.generate(text[:120]), 40) == text[120:160]
    passes = [event for event in llama.events if event[0] == "eval"]
    assert not any(every_row for _, before, _, every_row in passes if before < 120)
    assert any(every_row for *_, every_row in passes)
    assert all(every_row == (len(tokens) > 1) for _, before, tokens, every_row in passes if before >= 120)
    assert llama.scores is scores
    assert not scores.any()
    assert llama._logits_all is False  # so logprobs are refused as without a draft model


def test_with_logits_all_the_logits_of_every_row_are_kept() -> None:
    text = [1, 2, 3] * 20
    llama = Llama(writer([text]), n_ctx=128, logits_all=True, draft_model=model())
    assert take(llama.generate(text[:10]), 40) == text[10:50]
    assert llama._logits_all is True
    assert llama.scores[:48].argmax(1).tolist() == text[1:49]


def test_a_logits_processor_sees_the_verified_text_and_no_draft_behind_it() -> None:
    text = [1, 2, 3] * 4

    def answer(draft_model: Any) -> tuple[list[int], list[list[int]]]:
        seen: list[list[int]] = []

        def process(ids: npt.NDArray[np.intc], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            seen.append(ids.tolist())
            if len(ids) % 7 == 0:
                scores[42] = 2.0
            return scores

        llama = Llama(lambda ids: text[len(ids) % 12], draft_model=draft_model)
        return take(llama.generate(text, logits_processor=process), 30), seen

    tested = model()
    assert answer(tested) == answer(None)
    assert tested.accepted > 5


def test_another_draft_model_in_its_place_has_the_logits_of_all_rows_and_none_those_of_the_last() -> None:
    text = [1, 2, 3] * 20
    tested = model()
    llama = Llama(writer([text]), draft_model=tested)
    llama.draft_model = lambda ids: np.array([text[len(ids)]], np.intc)
    assert take(llama.generate(text[:4]), 20) == text[4:24]
    assert all(every_row for kind, *_, every_row in llama.events if kind == "eval")
    llama.draft_model, llama.events = None, []
    assert take(llama.generate(text[:8]), 20) == text[8:28]
    assert not any(event[-1] for event in llama.events if event[0] == "eval")
    llama.draft_model = tested
    assert take(llama.generate(text[:9]), 20) == text[9:29]
    assert tested.accepted > 5


@pytest.mark.parametrize(("kind", "name"), [("_is_recurrent", "recurrent"), ("_is_hybrid", "hybrid")])
def test_a_model_whose_state_cannot_go_back_is_refused_by_name(kind: str, name: str) -> None:
    llama = Llama(writer([[]]))
    setattr(llama, kind, True)
    with pytest.raises(UnsupportedLlamaError, match=rf"written.gguf is a {name} model.*leave draft_model out"):
        model().attach(llama)
    assert llama.draft_model is None
    assert "eval" not in vars(llama)


def test_a_cache_that_keeps_rejected_tokens_is_refused_before_they_change_the_text() -> None:
    text = [1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2, 6, 1, 2, 7]
    llama = Llama(writer([text]), draft_model=model())
    llama._ctx.takes_back = False
    tokens = llama.generate(text[:6])
    got = []
    with pytest.raises(UnsupportedLlamaError, match="cannot take rejected draft tokens back"):
        for token in tokens:
            got.append(token)
    assert got == text[6 : 6 + len(got)]


@pytest.mark.parametrize("size", [VOCABULARY - 1, VOCABULARY + 1])
def test_a_drafter_for_another_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(UnsupportedLlamaError, match=rf"{size} ids and written.gguf has {VOCABULARY}"):
        HierarchyDraftModel(HierarchyDrafter(size)).attach(Llama(writer([[]])))


def test_a_llama_of_another_version_is_refused_by_what_it_lacks() -> None:
    llama = Llama(writer([[]]))
    del llama._is_hybrid
    with pytest.raises(UnsupportedLlamaError, match=r"has no _is_hybrid: install a version that docs/llama-cpp.md"):
        model().attach(llama)


def test_one_draft_model_is_for_one_llama_until_that_is_gone() -> None:
    tested = model()
    first = Llama(writer([[]]), draft_model=tested)
    with pytest.raises(ValueError, match="another Llama's: make one for each, of the same drafter"):
        Llama(writer([[]]), draft_model=tested)
    gone = weakref.ref(first)
    del first
    assert gone() is None, "a draft model keeps no Llama alive"
    text = [1, 2] * 20
    assert take(Llama(writer([text]), draft_model=tested).generate(text[:8]), 20) == text[8:28]


def test_one_that_was_never_attached_says_so() -> None:
    text = [1, 2] * 20
    llama = Llama(writer([text]))
    llama.draft_model = model()
    with pytest.raises(RuntimeError, match=r"give it as Llama\(draft_model=…\), or call attach\(llama\)"):
        take(llama.generate(text[:8]), 2)
    llama.draft_model.attach(llama)
    assert take(llama.generate(text[:8]), 20) == text[8:28]


@pytest.mark.parametrize("options", [{"budget": 0}, {"costs": []}, {"costs": [0.0, 1.0]}, {"costs": [[1.0]]}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"budget is 0|costs must be"):
        model(**options)


def test_no_draft_reaches_past_the_context_or_a_batch() -> None:
    text = [1, 2, 3] * 30
    for n_ctx, n_batch, room in ((64, 512, None), (512, 4, 3), (512, 1, 0)):
        tested = model()
        llama = Llama(writer([text]), n_ctx=n_ctx, n_batch=n_batch, draft_model=tested)
        tokens = llama.generate(text[:20])
        for expected in text[20:60]:
            assert next(tokens) == expected
            assert len(tested._text) + len(tested.draft) <= n_ctx
            assert room is None or len(tested.draft) <= room
        assert (tested.accepted > 0) == (room != 0)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(llama_cpp, "perf_counter", clock)
    return clock


@pytest.mark.parametrize("pause", [0.0, 5.0])
def test_costs_are_learnt_from_passes_and_a_consumer_that_pauses_does_not_count(clock: Clock, pause: float) -> None:
    rng = np.random.default_rng(1)
    text = phrases(rng, 4000)
    tested = model(costs=None)
    llama = Llama(writer([text]), n_ctx=4096, n_batch=4096, draft_model=tested)
    llama.pause = lambda rows: clock.sleep(0.010 + 0.001 * (rows - 1))
    for _ in llama.generate(text[:50]):
        clock.sleep(pause)
        if llama.n_tokens > 3800:
            break
    costs = np.asarray(tested._costs)
    assert costs[[0, 1, 4]] == pytest.approx([1.0, 1.1, 1.4], rel=0.05)
    assert tested._costs.ordinary == pytest.approx(0.010, rel=0.05)  # type: ignore[union-attr]


def test_where_a_draft_token_costs_as_much_as_a_pass_none_is_verified() -> None:
    text = phrases(np.random.default_rng(2), 300)
    tested = model(costs=1.0 + np.arange(17))
    llama = Llama(writer([text]), draft_model=tested)
    assert take(llama.generate(text[:50]), 200) == text[50:250]
    assert tested.drafted <= 20  # those that are as good as sure
    assert tested.accepted >= 0.9 * tested.drafted


def test_where_nothing_is_worth_its_place_few_steps_look_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    propose = HierarchySession.propose

    def watched(self: HierarchySession, *arguments: Any) -> DraftTree:
        nonlocal looks
        looks += 1
        return propose(self, *arguments)

    monkeypatch.setattr(HierarchySession, "propose", watched)
    once = np.random.default_rng(3).permutation(np.arange(1, VOCABULARY)).tolist()
    tested = model()
    llama = Llama(writer([once + once]), draft_model=tested)
    looks = 0  # but for those that warm up
    assert take(llama.generate(once[:10]), 89) == once[10:]
    assert looks < 89 / 2
    steps = tested.steps
    assert take(llama.generate(once + once[:1]), 90) == once[1:91]
    assert tested.steps - steps < 8, "what repeats itself is found at once in a new request"


def test_a_text_that_begins_to_repeat_itself_after_long_is_drafted_from_soon() -> None:
    once = np.random.default_rng(4).permutation(np.arange(1, VOCABULARY)).tolist()
    tested = model()
    llama = Llama(writer([once + once]), draft_model=tested)
    assert take(llama.generate(once[:10]), 89 + 99) == once[10:] + once
    assert 99 / 17 < tested.steps - 89 < 99 / 17 + 5


@pytest.mark.parametrize("count", range(40, 45))
@pytest.mark.parametrize("closed", [False, True])
def test_what_is_emitted_between_two_looks_is_learnt_too(count: int, closed: bool) -> None:
    once = np.random.default_rng(5).permutation(np.arange(1, VOCABULARY)).tolist()
    tested = model(learn=True)
    llama = Llama(writer([once, once[1:]]), draft_model=tested)
    assert take(llama.generate(once[:10]), count) == once[10 : 10 + count]
    if closed:
        tested.close()
    else:
        take(llama.generate(once[1:30]), 2)
    assert [each.tolist() for each in tested.drafter.model_database.documents()] == [once[10 : 9 + count]]


def test_a_first_draft_token_that_costs_much_is_drafted_only_with_those_behind_it() -> None:
    """A path is weighed by what all of it costs: each token by itself would seem worth it, or not."""
    tree = DraftTree([5, 6, 7], [-1, 0, 1], probabilities=[0.5, 0.45, 0.4])
    steep_then_flat = np.array([1.0, 1.9, 1.95, 2.0])
    assert tree.best_chain(3, steep_then_flat).tokens.tolist() == [5, 6, 7]
    assert tree.best_chain(1, steep_then_flat[:2]).tokens.tolist() == []


def test_measured_costs_are_frozen_and_leave_the_cache_as_it_was(clock: Clock) -> None:
    text = [1, 2, 3] * 30
    tested = model(costs=None, budget=12)
    llama = Llama(writer([text]), draft_model=tested)
    llama.pause = lambda rows: clock.sleep(0.010 + 0.002 * (rows - 1))
    assert take(llama.generate(text[:20]), 10) == text[20:30]
    before, handed = llama.n_tokens, llama.input_ids.copy()
    costs = tested.measure(llama)
    assert costs == pytest.approx(0.010 + 0.002 * np.arange(13))
    assert (llama.n_tokens, llama.input_ids.tolist()) == (before, handed.tolist())
    assert tested._costs is costs
    llama.events.clear()
    assert take(llama.generate(text[:30]), 10) == text[30:40]
    assert llama.events[0][1] > 20, "the cache is gone on with"


def test_measuring_an_unused_llama_attaches_it_and_leaves_it_empty(clock: Clock) -> None:
    tested = HierarchyDraftModel(HierarchyDrafter(VOCABULARY))
    llama = Llama(writer([[]]), n_ctx=24, n_batch=8)
    llama.pause = lambda rows: clock.sleep(1.0 + rows)
    costs = tested.measure(llama)
    assert llama.draft_model is tested
    assert llama.n_tokens == 0
    assert costs.shape == (17,)
    assert (np.diff(costs) >= 0).all()
    assert clock.now < 200, "a slow model is measured at its least rounds"


def test_a_drafter_that_fails_costs_drafts_and_no_text_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = [1, 2, 3] * 20
    tested = model()
    llama = Llama(writer([text]), draft_model=tested)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(HierarchySession, "propose", fail)
    with caplog.at_level(logging.ERROR):
        assert take(llama.generate(text[:8]), 20) == text[8:28]
    assert [record.message for record in caplog.records] == ["hdraft failed, and drafts nothing for this request"]
    monkeypatch.undo()
    assert take(llama.generate(text[:9]), 20) == text[9:29]
    assert tested.accepted > 5


def test_while_kernels_lack_there_are_no_drafts_and_then_the_request_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiling:
        def __init__(self) -> None:
            self.asked = 0

        def running(self) -> bool:
            self.asked += 1
            return self.asked < 6

    def lack(self: HierarchyDrafter) -> None:
        raise NotCompiledError("propose")

    monkeypatch.setattr(HierarchyDrafter, "warm_up", lack)
    monkeypatch.setattr(llama_cpp, "compile_beside", lambda drafter: Compiling())
    text = [1, 2, 3] * 20
    tested = model()
    llama = Llama(writer([text]), draft_model=tested)
    assert take(llama.generate(text[:8]), 5) == text[8:13]
    assert tested.drafted == 0
    assert take(llama.generate(text[:13]), 20) == text[13:33]
    assert tested.accepted > 5


def test_references_are_drafted_from_in_requests_that_begin_from_then_on() -> None:
    rng = np.random.default_rng(3)
    text = rng.permutation(np.arange(1, 90)).tolist()
    tested = model()
    llama = Llama(writer([text]), draft_model=tested)
    assert take(llama.generate(text[:5]), 30) == text[5:35]
    assert tested.accepted == 0
    tested.references = [text[5:60]]
    assert take(llama.generate(text[:5]), 30) == text[5:35]
    assert tested.accepted > 10


def test_positions_of_an_image_hold_no_tokens_and_the_text_behind_it_is_drafted_from() -> None:
    tested = model()
    llama = Llama(writer([[]]), draft_model=tested)
    tested(np.array([4, 4, -1, VOCABULARY, 5, 6, 7, 5, 6], np.intc))
    assert known(tested) == [5, 6, 7, 5, 6]
    assert tested.draft.tokens[:1].tolist() == [7]
    del llama


def test_a_llama_is_freed_with_its_draft_model_and_its_session() -> None:
    text = [1, 2, 3] * 20
    llama = Llama(writer([text]), draft_model=model())
    take(llama.generate(text[:8]), 20)
    session, gone = weakref.ref(llama.draft_model._session), weakref.ref(llama)
    del llama
    gc.collect()
    assert gone() is None
    assert session() is None
