"""Whatever fails in a drafter costs speed and no text, and is said once a request."""

import logging

import pytest
import torch
from architectures import NEW, PROMPT, VOCABULARY, build
from transformers import LlamaConfig, LlamaForCausalLM

from hdraft.building import generate_outputs
from hdraft.decoding import Statistics, drafts, generate, stream
from hdraft.drafting import DraftTree
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.kernel_cache import NotCompiledError
from hdraft.drafting.methods import LookaheadDrafter, PromptLookupDrafter, PublishedDrafter

LOG = "hdraft.decoding"


def prompt(length=PROMPT):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(5))


class Broken:
    """A drafter that fails where it is told to, at the third time that it is asked to."""

    vocab_size = VOCABULARY

    def __init__(self, where):
        self.where = where
        self.calls = []

    def _call(self, name):
        self.calls.append(name)
        if name == self.where and self.calls.count(name) == (3 if name in ("propose", "extend") else 1):
            raise KeyError(f"broken {name}")

    def session(self, prompt_ids, costs=None):
        self._call("session")
        return self

    def propose(self, budget, max_depth):
        self._call("propose")
        return DraftTree([3, 4], [-1, -1])

    def extend(self, token_ids, ngrams=None, candidates=None):
        self._call("extend")

    def close(self):
        self._call("close")


@pytest.mark.broken
@pytest.mark.parametrize("where", ["session", "propose", "extend", "close"])
def test_a_drafter_that_fails_loses_no_text_and_is_named_once(where, caplog):
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    drafter = Broken(where)
    statistics = Statistics()
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW, statistics=statistics), expected)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.exc_info) == (LOG, logging.WARNING, False)
    assert f"Broken fails, and drafts no more for this request: KeyError: 'broken {where}'" in record.getMessage()
    assert drafter.calls.count("close") == (where != "session")
    assert drafter.calls.count("propose") == {"session": 0, "propose": 3, "extend": 3}.get(where, statistics.steps - 1)


@pytest.mark.broken
def test_a_stream_goes_on_and_every_request_says_it(caplog):
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=NEW)[0, PROMPT:].tolist()
    for _ in range(2):
        assert [token.id for token in stream(model, prompt(), Broken("extend"), max_new_tokens=NEW)] == expected
    assert len(caplog.records) == 2


@pytest.mark.broken
@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (DraftTree([3, 4], [-1, 7], depths=[1, 2]), "malformed at node 1"),
        (DraftTree([3, VOCABULARY], [-1, 0]), "malformed at node 1"),
        (DraftTree([3] * 65, [-1] * 65), "more than the budget"),
        (DraftTree([3, 4], [-1, 0], probabilities=[0.5]), "different lengths"),
        (None, "NoneType"),
    ],
)
def test_a_tree_that_is_none_is_named_and_not_run(tree, fault, caplog, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(Broken, "propose", lambda *_: tree)
    expected = model.generate(prompt(), max_new_tokens=9)
    assert torch.equal(generate(model, prompt(), Broken("nowhere"), max_new_tokens=9), expected)
    (record,) = caplog.records
    assert fault in record.getMessage()


@pytest.mark.broken
def test_the_traceback_is_there_for_who_asks(caplog):
    caplog.set_level(logging.DEBUG, LOG)
    generate(build("llama"), prompt(), Broken("propose"), max_new_tokens=9)
    assert "broken propose" in caplog.text and "Traceback" in caplog.text


def larger_head(seed=0):
    """A Llama that knows 60 ids and can emit 64: the last four end a text, so they are never embedded."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=[60, 61, 62, 63],
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head = torch.nn.Linear(32, 64, bias=False)
    torch.nn.init.normal_(model.lm_head.weight, 0, 0.4)
    torch.nn.init.normal_(model.model.embed_tokens.weight, 0, 1)
    return model


DRAFTERS = {
    "hd": lambda: HierarchyDrafter(60, learn=True),
    "published": lambda: PublishedDrafter(60, window=5),
    "lookahead": lambda: LookaheadDrafter(60, window=5),
    "pld": lambda: PromptLookupDrafter(60, draft=3),
}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_head_larger_than_the_embeddings(kind):
    drafter = DRAFTERS[kind]()
    ends = 0
    for seed in range(6):
        model = larger_head(seed)
        ids = torch.randint(2, 60, (1, 8), generator=torch.Generator().manual_seed(seed))
        for options in ({}, {"do_sample": True, "top_k": 0}):
            torch.manual_seed(seed)
            expected = model.generate(ids, max_new_tokens=60, **options)
            torch.manual_seed(seed)
            assert torch.equal(generate(model, ids, drafter, max_new_tokens=60, **options), expected)
            ends += int(expected[0, -1] >= 60)
    assert ends > 3
    if kind == "hd":
        assert drafter.model_database.snapshot()[1].tokens.max() == 60  # what separates documents


def test_what_a_larger_head_writes_makes_a_database(tmp_path):
    model = larger_head(1)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt_ids": [{i}, {i + 1}]}}\n' for i in range(2, 30)))
    answers = tmp_path / "answers.jsonl"
    options = {"max_new_tokens": 20, "do_sample": True, "top_k": 0}
    assert generate_outputs(model, None, tmp_path / "prompts.jsonl", answers, **options) == 28
    whole = answers.read_bytes()
    answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:9]))  # as a kill would leave it
    generate_outputs(model, None, tmp_path / "prompts.jsonl", answers, **options)
    assert answers.read_bytes() == whole
    from hdraft.building import build_model

    assert isinstance(build_model(answers, tmp_path / "D_m", None, 60), ModelDatabase)


class Lacking:
    """A drafter whose kernels are compiled beside its requests: it lacks them in the sessions, or drafts, named."""

    vocab_size = VOCABULARY

    def __init__(self, *lacks):
        self.lacks = list(lacks)
        self.texts = []  # of each session, what it was told of
        self.closed = 0

    def _look(self, what):
        if self.lacks and self.lacks[0] == what:
            self.lacks.pop(0)
            raise NotCompiledError(what)

    def session(self, prompt_ids, costs=None):
        self._look("session")
        self.texts.append(list(prompt_ids))
        return self

    def propose(self, budget, max_depth):
        self._look("propose")
        return DraftTree([3], [-1])

    def extend(self, token_ids, ngrams=None, candidates=None):
        self.texts[-1] += list(token_ids)

    def close(self):
        self.closed += 1


class Compilation:
    """A process that has ended each second time that it is looked at."""

    def __init__(self):
        self.looked = 0

    def running(self):
        self.looked += 1
        return self.looked % 2 == 1


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(drafts, "_PATIENCE", 0.0)
    monkeypatch.setattr(drafts, "_EVERY", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lacks", [["session"], ["session", "session", "session"], ["propose"], ["session", "propose"]])
def test_a_request_drafts_from_when_its_kernels_are_compiled_and_has_all_of_its_text(lacks, monkeypatch, caplog):
    compilation = Compilation()
    monkeypatch.setattr(drafts, "compile_beside", lambda drafter: compilation)
    model, drafter, statistics = build("llama"), Lacking(*lacks), Statistics()
    expected = model.generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW, statistics=statistics), expected)
    assert not drafter.lacks
    assert drafter.texts[-1] == expected[0].tolist()
    assert drafter.closed == 1
    assert 0 < statistics.drafted < statistics.steps
    assert caplog.records == []


@pytest.mark.usefixtures("impatient")
def test_a_request_whose_kernels_cannot_be_compiled_does_without_drafts(monkeypatch):
    monkeypatch.setattr(drafts, "compile_beside", lambda drafter: None)
    model, drafter, statistics = build("llama"), Lacking("session"), Statistics()
    expected = model.generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=NEW, statistics=statistics), expected)
    assert (statistics.drafted, statistics.steps, drafter.texts) == (0, NEW, [])


def test_a_short_request_has_kernels_compiled_behind_it(monkeypatch):
    started = []
    monkeypatch.setattr(drafts, "_PATIENCE", 1e9)
    monkeypatch.setattr(drafts, "compile_beside", lambda drafter: started.append(len(emitted)))
    model, drafter, emitted = build("llama"), Lacking(*["session"] * 99), []
    for token in stream(model, prompt(), drafter, max_new_tokens=NEW):
        emitted.append(token)
    assert started == [NEW]


@pytest.mark.usefixtures("impatient")
def test_a_request_that_ends_before_its_kernels_are_there_is_learnt_from_where_they_are_by_then(monkeypatch):
    compilation = Compilation()
    compilation.running = lambda: False
    monkeypatch.setattr(drafts, "compile_beside", lambda drafter: compilation)
    model, drafter = build("llama"), Lacking("session")
    expected = model.generate(prompt(), max_new_tokens=1)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=1), expected)
    assert drafter.texts == [expected[0].tolist()] and drafter.closed == 1


class Told(Broken):
    """A drafter that wants to know whether tokens are drawn."""

    takes_draws = True

    def session(self, prompt_ids, costs=None, draws=None):
        self.calls.append(draws is not None)
        return self


def test_a_drafter_is_told_that_tokens_are_drawn_if_it_asks():
    model = build("llama")
    told, other = Told(None), Broken(None)
    options = {"do_sample": True, "temperature": 1.2, "max_new_tokens": 4}
    for drafter in (told, other):
        generate(model, prompt(), drafter, max_new_tokens=4)
        generate(model, prompt(), drafter, **options)
        list(stream(model, prompt(), drafter, **options))
    assert [call for call in told.calls if type(call) is bool] == [False, True, True]
    assert other.calls.count("session") == 3
