"""Static steps: the same program every time, and the same tokens; what cannot be had is said in one line."""

import copy
import gc
import logging
import threading
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from architectures import DEVICE, NEW, PROMPT, VOCABULARY, build
from hypothesis import given
from hypothesis import strategies as st
from oracle import OracleDrafter
from recording import REFUSED, Recording, nothing_read, record, refuse, tensors
from test_lossless import compare, prompt
from torch.utils._python_dispatch import TorchDispatchMode

from hdraft.decoding import Statistics, generate, logs, measure_costs, stream
from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.graphed import static_step as static
from hdraft.decoding.graphed.static_cache import SPARE, StaticCache, bucket
from hdraft.decoding.graphed.static_step import PROGRAMS, ROWS, padded, static_budget
from hdraft.decoding.masks import Span, padded_rows, tree_mask
from hdraft.decoding.target import Target
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PublishedDrafter
from hdraft.drafting.tree import DraftTree

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a recording on the CPU stands for graphs here")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(static, "capture", record)
    return copy.deepcopy(build("llama"))


def idle(model):
    return static._idle[model]


@given(st.integers(1, 2**20))
def test_a_bucket_wastes_at_most_a_quarter(slots):
    size = bucket(slots)
    assert slots <= size <= max(256, slots + max(256, size / 4)) and size % 256 == 0
    assert bucket(size) == size <= bucket(slots + 1)


def test_there_are_four_buckets_to_a_doubling():
    assert len({bucket(slots) for slots in range(1, 16385)}) == 4 + 4 * 4


@given(st.integers(1, 300))
def test_rows_are_padded_to_the_next_size(rows):
    assert rows <= padded(rows) and (padded(rows) in ROWS or padded(rows) % 16 == 0)
    assert padded(padded(rows)) == padded(rows)


@given(st.integers(0, 300))
def test_a_budget_is_cut_by_one_where_the_last_draft_would_take_a_tile_for_itself(budget):
    cut = static_budget(budget, "captured")
    assert cut == budget - 1 if budget and padded(1 + budget) - budget == 16 else cut == budget
    assert static_budget(1, "captured") == 1 and static_budget(64, "captured") == 63


@given(
    st.lists(st.integers(-1, 20), max_size=20),
    st.integers(1, 90),
    st.integers(0, 8),
    st.integers(2, 24),
    st.booleans(),
    st.integers(0, 12),
)
def test_padded_rows_see_what_the_tree_mask_shows(parents, cached, more, size, chunked, padding):
    tree = DraftTree(range(len(parents)), [min(parent, node - 1) for node, parent in enumerate(parents)])
    for span in (Span(), Span(size, chunked)):
        padding = min(padding, cached)
        offered = min(cached, span.size - 1)
        expected = tree_mask(cached, 1, tree, span, padding)[0, 0].numpy()
        known = np.arange(expected.shape[1]) >= padding - (cached - offered)
        expected = expected & known
        rows, dropped = 1 + len(tree) + more, cached - offered
        earliest, among = np.empty(rows, np.int64), np.empty((rows, rows), np.bool_)
        padded_rows(earliest, among, cached, dropped, tree, span, padding)
        before = np.arange(offered) >= earliest[:, None]
        assert np.array_equal(before[: 1 + len(tree)], expected[:, :offered])
        assert np.array_equal(among[: 1 + len(tree), : 1 + len(tree)], expected[:, offered:])
        assert not among[: 1 + len(tree), 1 + len(tree) :].any()
        assert not before[1 + len(tree) :].any() and (among[1 + len(tree) :].sum(1) == 1).all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek-v3"])
def test_the_cache_holds_what_a_growing_one_does(name):
    model, generator = build(name), np.random.default_rng(3)
    targets = [Target(model, step=step, budget=20) for step in ("dynamic", "static")]
    text = prompt(30)[0].numpy()
    with torch.no_grad():
        for target in targets:
            target.forward(text)
            target.keep([])
        for step in range(120):
            n = int(generator.integers(0, 20))
            nearest = 3 if step % 3 == 0 else n + 1  # of some trees the paths are long
            parents = [int(generator.integers(max(node - nearest, -1), node)) for node in range(n)]
            tree = DraftTree(generator.integers(VOCABULARY, size=n), parents)
            path, node = [], n - 1
            while node >= 0:
                path.insert(0, node)
                node = parents[node]
            logits = [target.forward(text[-1:], tree).clone() for target in targets]
            torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
            for target in targets:
                target.keep(path)
        growing, fixed = targets[0].cache, targets[1].static.stepper.cache
        assert targets[0].length == targets[1].length > 400
        window = fixed.layouts.get(17)
        assert window is None or window.capacity <= 256  # buffers of a window do not grow with the text
        targets[1].close(np.zeros(targets[1].length, np.int64))
        for ours, theirs in zip(targets[1].cache.layers, growing.layers, strict=True):
            assert ours.get_seq_length() == theirs.get_seq_length()
            torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)


def test_a_step_is_one_program_for_its_size_and_bucket(model):
    compare(model, prompt(200), {}, new=400, step="captured")
    compare(model, prompt(200, seed=6), {}, new=400, step="captured", drafter_seed=1)
    programs = idle(model).programs
    assert {rows for rows, _ in programs} <= set(ROWS) and len({rows for rows, _ in programs}) > 3
    assert {columns for _, columns in programs} == {256, 512, 768}
    before = dict(programs)
    compare(model, prompt(200), {}, new=400, step="captured")
    assert dict(programs) == before  # a request finds what the one before it made


def test_a_graph_that_holds_a_number_of_its_first_step_would_be_noticed(model, monkeypatch):
    """What the recording is there for: a length compiled in, and not read from a buffer, gives other tokens."""
    run = static.StaticStepper._run

    def numbers(self, forward, rows, columns):
        there = self.there
        self.there = there._replace(starts=there.starts * 0 + int(self.host.starts[0]))
        run(self, forward, rows, columns)
        self.there = there

    monkeypatch.setattr(static.StaticStepper, "_run", numbers)
    with pytest.raises(AssertionError):
        compare(model, prompt(), {}, step="captured")


def test_graphs_are_bounded_and_the_one_not_used_for_longest_goes(model, monkeypatch):
    monkeypatch.setattr(static, "PROGRAMS", 3)
    compare(model, prompt(200), {}, new=300, step="captured")
    assert len(idle(model).programs) == 3 < PROGRAMS
    target = Target(model, step="captured")
    with torch.no_grad():
        target.forward(prompt()[0].numpy())
        for nodes in (0, 3, 7, 0, 15):
            target.forward(np.array([3]), DraftTree(range(nodes), [-1] * nodes))
            target.forget(PROMPT)
    assert [rows for rows, _ in target.static.stepper.programs] == [8, 1, 16]


def test_a_window_makes_no_graph_twice(monkeypatch):
    monkeypatch.setattr(static, "capture", record)
    made, program = [], static.StaticStepper._program
    monkeypatch.setattr(static.StaticStepper, "_program", lambda self, *key: (made.append(key), program(self, *key))[1])
    config = copy.deepcopy(build("gemma3").config)
    config.sliding_window = 150
    model = transformers.Gemma3ForCausalLM(config).eval()
    model.load_state_dict(build("gemma3").state_dict())
    compare(model, prompt(50), {}, new=900, step="captured")
    assert len(made) == len(set(made)) == len(idle(model).programs)
    small, large = zip(*(columns for _, columns in made), strict=True)
    assert set(small) == {256, 512} and set(large) == {256, 512, 768, 1024}


@pytest.mark.usefixtures("queueing")
def test_a_greedy_step_waits_for_nothing_before_its_logits(model):
    class Forbidding(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            refuse(operation, args)
            return operation(*args, **(kwargs or {}))

    target = Target(model, step="captured", budget=8)
    with torch.no_grad():
        target.forward(prompt()[0].numpy())
        target.keep([])
        tree = DraftTree([3, 4, 5, 6, 7], [-1, -1, 0, 1, 2])
        target.forward(np.array([3]), tree)  # makes the program
        with Forbidding(), nothing_read():
            target.keep([1, 3])
            target.forward(np.array([4]), tree, select=True)
            target.keep([0, 2, 4])
            target.forward(np.array([4]), tree, select=True)


@pytest.fixture
def queueing(monkeypatch):
    """Steps do what they do where a device works while the host goes on."""
    make = static.StaticStepper.__init__

    def made(self, *args):
        make(self, *args)
        self.queues = True

    monkeypatch.setattr(static.StaticStepper, "__init__", made)


@pytest.mark.usefixtures("queueing")
def test_a_step_finds_the_most_likely_tokens_itself_where_a_device_computes(model, monkeypatch):
    monkeypatch.setattr(static, "most_likely", none_left)
    compare(model, prompt(), {}, step="captured")


def test_a_path_that_was_kept_is_moved_once_whatever_comes_next(model, monkeypatch):
    """By the next step, or before it: where it is long, where that has one row, is new, or tokens were forgotten."""
    monkeypatch.setattr(static, "MOVED", 4)
    tree = DraftTree(range(3, 15), [-1, -1, *range(10)])
    long, short = [1, 3, 5, 7, 9, 11], [1, 3]
    targets = [Target(model, step=step, budget=20) for step in ("dynamic", "captured")]
    with torch.no_grad():
        for target in targets:
            target.forward(prompt()[0].numpy())
            target.keep([])
        for path, behind in ((long, 0), (short, 6), (long, 12), (short, 0), (long, 6), (short, 6)):
            for forget in (0, 1):
                for target in targets:
                    target.forward(np.array([2]), tree)
                    target.keep(path)
                    target.forget(target.length - forget)
                next_one = DraftTree(range(behind), range(-1, behind - 1))
                logits = [target.forward(np.array([7]), next_one).clone() for target in targets]
                torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
                for target in targets:
                    target.keep([])
        for target in targets:
            target.forward(np.array([2]), tree)
            target.keep(short)
            target.close(np.zeros(target.length, np.int64))
    for layers in zip(*(target.cache.layers for target in targets), strict=True):
        torch.testing.assert_close(layers[0].keys, layers[1].keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wait", [
    lambda states: float(states.sum()),
    lambda states: states.tolist(),
    lambda states: states.argmax(-1).cpu(),
    lambda states: states[states > 0],
    lambda states: torch.tensor([1, 2], device=states.device),
], ids=["number", "list", "copy", "selection", "constant"])  # fmt: skip
def test_a_model_that_waits_is_run_eagerly_and_says_why_once(model, caplog, wait):
    forward = model.model.forward

    def waiting(*args, **kwargs):
        output = forward(*args, **kwargs)
        wait(output.last_hidden_state)
        return output

    model.model.forward = waiting
    for seed in range(2):
        compare(model, prompt(seed=seed), {}, step="captured")
    (record,) = [each for each in caplog.records if each.name.startswith("hdraft")]
    assert record.levelno == logging.WARNING and "\n" not in record.message
    assert "LlamaForCausalLM: steps are static and not captured" in record.message
    assert REFUSED in record.message
    assert idle(model).kind == "static"


def test_compiled_code_that_is_wrong_is_not_used(model, monkeypatch, caplog):
    monkeypatch.setattr(static, "compiled", lambda forward, device: lambda *args: forward(*args) + torch.randn(1) * 9)
    compare(model, prompt(), {}, step="compiled")
    assert "steps are captured and not compiled: logits differ by" in caplog.text
    assert idle(model).kind == "captured"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compiled_steps(name, monkeypatch):
    """Traced as a whole, with guards, and once for one row and once for more, whatever the lengths; not optimised."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = copy.deepcopy(build(name))
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda forward, **options: compiler(forward, fullgraph=True, backend="aot_eager")
    )
    monkeypatch.setattr(static, "TOKENS", 1)  # so that a step is given all of its buffers
    for length, new in ((24, 40), (500, 40), (24, 400)):
        compare(model, prompt(length), {}, new=new, step="compiled")
    assert idle(model).kind == "compiled"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_many_models_are_compiled_in_one_process(monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiler(forward, fullgraph=True, backend="eager"))
    models = [copy.deepcopy(build(name)) for name in ("llama", "qwen2", "gemma")]
    with torch._dynamo.config.patch(recompile_limit=1):
        for model in models:
            generate(model, prompt(), None, max_new_tokens=4, step="compiled")
    assert {idle(model).kind for model in models} == {"compiled"}
    gone = weakref.ref(models.pop())
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name, why", [
    ("bloom", "makes its own masks"),
    ("llama-dynamic-ntk", "depend on the text's length"),
    ("phi3-longrope", "depend on the text's length"),
])  # fmt: skip
def test_what_cannot_be_static_is_dynamic_and_says_why(name, why, caplog):
    logs._said.clear()
    model = build(name, "eager")
    for _ in range(2):
        compare(model, prompt(), {}, new=40, step="captured")
    assert model not in static._idle
    (message,) = [each.message for each in caplog.records if each.name.startswith("hdraft")]
    assert f"{type(model).__name__}: steps are dynamic and not captured" in message and why in message


class Adapted(torch.nn.Module):
    """Around a head, with settings of every sort that a forward may read."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.disabled, self.sign, self.scaling, self.factors = False, -1, {"default": 1.0}, [{"of": (1.0,)}]
        self.plain = torch.ones(VOCABULARY)

    def forward(self, states):
        logits = self.head(states) * (1 if self.disabled else self.sign) * self.scaling["default"]
        return logits * self.factors[0]["of"][0] * self.plain


def negate(module, inputs, output):
    return -output


def roll(module, inputs, output):
    return output.roll(1, -1)


CHANGES = {
    "parameter": lambda head: setattr(head.head, "weight", torch.nn.Parameter(head.head.weight.detach().roll(1, 0))),
    "setting": lambda head: setattr(head, "disabled", True),
    "number": lambda head: setattr(head, "sign", 2),
    "number of the same hash": lambda head: setattr(head, "sign", -2),
    "value in a dictionary": lambda head: head.scaling.update(default=-1.0),
    "value in a tuple": lambda head: head.factors[0].update(of=(-1.0,)),
    "tensor that is no buffer": lambda head: setattr(head, "plain", -torch.ones(VOCABULARY)),
    "hook": lambda head: head.register_forward_hook(roll),
    "forward": lambda head: setattr(head, "forward", lambda states: head.head(states).roll(2, -1)),
    "module": lambda head: setattr(head, "head", copy.deepcopy(head.head).requires_grad_(False)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_changed_gets_new_programs(model, change):
    model.lm_head = Adapted(model.lm_head)
    compare(model, prompt(), {}, step="captured")
    first = idle(model)
    compare(model, prompt(), {}, step="captured")
    assert idle(model) is first
    change(model.lm_head)
    compare(model, prompt(), {}, step="captured")
    assert idle(model) is not first


def test_a_hook_in_the_place_of_another_is_seen(model):
    handle = model.lm_head.register_forward_hook(negate)
    compare(model, prompt(), {}, step="captured")
    handle.remove()
    handle = model.lm_head.register_forward_hook(roll)
    compare(model, prompt(), {}, step="captured")


def test_a_changed_configuration_is_seen(monkeypatch):
    monkeypatch.setattr(static, "capture", record)
    model = copy.deepcopy(build("granite"))
    sampled = {"do_sample": True, "temperature": 2.0}
    compare(model, prompt(), sampled, step="captured")
    model.config.logits_scaling = 0.5
    compare(model, prompt(), sampled, step="captured")
    model = copy.deepcopy(build("mistral-sliding"))
    compare(model, prompt(), {}, step="captured")
    model.config.sliding_window = 9
    compare(model, prompt(), {}, step="captured")


def test_weights_written_in_place_are_seen(model):
    compare(model, prompt(), {}, step="captured")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.roll(1, 0))
    compare(model, prompt(), {}, step="captured")


def test_requests_that_run_at_the_same_time(model):
    ids = [prompt(seed=seed) for seed in range(3)]
    expected = [model.generate(each, max_new_tokens=NEW)[0, PROMPT:].tolist() for each in ids]
    oracles = [
        OracleDrafter(VOCABULARY, [*each[0].tolist(), *text], PROMPT) for each, text in zip(ids, expected, strict=True)
    ]
    streams = [
        stream(model, each, oracle, max_new_tokens=NEW, step="captured")
        for each, oracle in zip(ids, oracles, strict=True)
    ]
    outputs = [[next(each).id for each in streams] for _ in range(NEW)]
    assert [list(each) for each in zip(*outputs, strict=True)] == expected


@pytest.mark.parametrize("kind", ["static", "captured"])
def test_requests_in_threads(model, kind, monkeypatch):
    lock = threading.Lock()  # as only one capture may be under way on a GPU

    def locked(*args):
        with lock, Recording() as recording:
            args[0]()
        return recording

    monkeypatch.setattr(static, "capture", locked)
    ids = [prompt(seed=seed) for seed in range(4)]
    expected = [model.generate(each, max_new_tokens=NEW).tolist() for each in ids]
    outputs = [None] * 4

    def request(number):
        for _ in range(3):
            outputs[number] = generate(model, ids[number], None, max_new_tokens=NEW, step=kind).tolist()

    threads = [threading.Thread(target=request, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == expected


def test_a_sequence_that_outgrows_its_buffers(model, monkeypatch):
    monkeypatch.setattr("hdraft.decoding.graphed.static_sequence.AHEAD", 10)
    monkeypatch.setattr(static, "TOKENS", 1)
    compare(model, prompt(200), {}, new=500, step="captured")
    assert idle(model).capacity > 700
    compare(copy.deepcopy(build("gemma3")), prompt(200), {}, new=300, step="captured")


def none_left(*args, **kwargs):
    raise torch.OutOfMemoryError("none left")


@pytest.mark.parametrize("what", ["__init__", "load"])
def test_without_memory_steps_are_dynamic(model, monkeypatch, caplog, what):
    logs._said.clear()
    monkeypatch.setattr(StaticCache, what, none_left)
    compare(model, prompt(), {}, step="captured")
    assert "steps are dynamic and not captured: no memory for buffers of 96 tokens" in caplog.text


def test_without_memory_to_grow_no_text_is_lost(model, monkeypatch):
    monkeypatch.setattr("hdraft.decoding.graphed.static_sequence.AHEAD", 10)
    monkeypatch.setattr(static, "TOKENS", 1)
    made, init = [], StaticCache.__init__

    def once(self, *args):
        made.append(args)
        init(self, *args) if len(made) == 1 else none_left()

    monkeypatch.setattr(StaticCache, "__init__", once)
    expected = model.generate(prompt(200), max_new_tokens=400)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), 200)
    options = {"return_dict_in_generate": True, "step": "captured"}
    output = generate(model, prompt(200), oracle, max_new_tokens=380, **options)
    assert output.sequences.tolist() == expected[:, :-20].tolist() and len(made) == 2
    cache = output.past_key_values
    assert cache.get_seq_length() == 579
    assert torch.equal(generate(model, output.sequences, None, past_key_values=cache, max_new_tokens=20), expected)


def test_without_memory_at_the_end_the_cache_takes_the_buffers(model, monkeypatch):
    store = StaticCache.store

    def no_copy(self, growing, length, copy):
        none_left() if copy else store(self, growing, length, copy)

    monkeypatch.setattr(StaticCache, "store", no_copy)
    expected = model.generate(prompt(), max_new_tokens=60)
    output = generate(model, prompt(), None, max_new_tokens=30, return_dict_in_generate=True, step="captured")
    compare(model, prompt(seed=9), {}, step="captured")  # in other buffers
    cache = output.past_key_values
    assert torch.equal(generate(model, output.sequences, None, past_key_values=cache, max_new_tokens=30), expected)


def test_a_capture_without_memory_costs_that_graph_alone(model, monkeypatch, caplog):
    captures = []

    def once(*args):
        captures.append(args)
        return none_left() if len(captures) == 1 else record(*args)

    monkeypatch.setattr(static, "capture", once)
    logs._said.clear()
    compare(model, prompt(), {}, step="captured")
    step = idle(model)
    compare(model, prompt(), {}, step="captured")
    assert step.kind == "captured" and idle(model) is step and len(step.programs) > 2
    assert len(captures) == len(step.programs) + len(step.selections)
    assert caplog.text.count("no memory to have all steps captured") == 1


def test_what_failed_is_tried_anew_on_a_model_that_changed(model, monkeypatch):
    def untrained(*args):
        if model.training:
            raise RuntimeError("random numbers")
        return record(*args)

    monkeypatch.setattr(static, "capture", untrained)
    model.train()
    compare(model, prompt(), {}, step="captured")
    assert idle(model).kind == "static"
    model.eval()
    compare(model, prompt(), {}, step="captured")
    assert idle(model).kind == "captured"


def test_logits_that_rule_a_token_out_are_captured(model):
    def rule_out(module, inputs, output):
        output[..., 7] = -torch.inf
        output[..., 8] = torch.finfo(torch.float32).min
        return output

    model.lm_head.register_forward_hook(rule_out)
    compare(model, prompt(), {}, step="captured")
    assert idle(model).kind == "captured"


def test_steps_under_autocast_are_dynamic(model, caplog):
    logs._said.clear()
    compare(model, prompt(), {}, step="captured")
    with torch.autocast("cpu", torch.bfloat16):
        generate(model, prompt(), None, max_new_tokens=20, step="captured")
    assert "steps are dynamic and not captured: autocast is on" in caplog.text
    compare(model, prompt(), {}, step="captured")


def test_layers_on_several_devices_are_dynamic(model, caplog):
    logs._said.clear()
    model.hf_device_map = {"model": 0, "lm_head": 1}
    compare(model, prompt(), {}, step="captured")
    assert "steps are dynamic and not captured: its layers are on several devices" in caplog.text


def test_buffers_are_let_go_before_others_are_made(model, monkeypatch):
    alive, init = [], StaticCache.__init__
    most = 0

    def counted(self, *args):
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        init(self, *args)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(StaticCache, "__init__", counted)
    gc.disable()
    try:
        for kind in ("static", "captured", "static", "captured"):
            generate(model, prompt(), None, max_new_tokens=10, step=kind)
    finally:
        gc.enable()
    assert len(alive) == 4 and most == 0


def test_a_lookahead_branch_fits_from_the_start(model):
    made, init = [], StaticCache.__init__
    drafter = PublishedDrafter(VOCABULARY, window=20, ngram_size=7)
    expected = model.generate(prompt(), max_new_tokens=NEW)
    with mock.patch.object(StaticCache, "__init__", lambda self, *args: (made.append(args), init(self, *args))[1]):
        assert generate(model, prompt(), drafter, max_new_tokens=NEW, step="captured").tolist() == expected.tolist()
    assert len(made) == 1


def test_a_larger_budget_than_before(model):
    compare(model, prompt(), {}, step="captured")
    expected = model.generate(prompt(), max_new_tokens=NEW)
    sequence = expected[0].tolist()

    class Wide(OracleDrafter):
        def propose(self, budget, max_depth):
            tree = super().propose(budget, max_depth)
            wrong = [token for token in range(100) if not len(tree) or token not in tree.tokens]
            more = wrong[: max(0, 90 - len(tree))]
            return DraftTree([*tree.tokens, *more], [*tree.parents, *[-1] * len(more)])

    for budget in (90, 100):
        wide = Wide(VOCABULARY, sequence, PROMPT)
        tokens = generate(model, prompt(), wide, budget=budget, max_new_tokens=NEW, step="captured")
        assert tokens.tolist() == expected.tolist()
    assert {rows for rows, _ in idle(model).programs} == {96}


@pytest.mark.parametrize("first, then", [("captured", "dynamic"), ("dynamic", "captured"), ("captured", "captured")])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_going_on_from_a_cache(name, first, then, monkeypatch):
    monkeypatch.setattr(static, "capture", record)
    model = build(name)
    expected = model.generate(prompt(), max_new_tokens=60)
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, "step": first}
    output = generate(model, prompt(), OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT), **options)
    assert isinstance(output.past_key_values, GrowingCache)
    assert output.past_key_values.get_seq_length() == output.sequences.shape[1] - 1
    generate(model, prompt(seed=9), None, max_new_tokens=30, step=first)  # another request in the same buffers
    cache = copy.deepcopy(output.past_key_values)
    assert model.generate(output.sequences, past_key_values=cache, max_new_tokens=40).tolist() == expected.tolist()
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT + 20)
    cache = output.past_key_values
    tokens = generate(model, output.sequences, oracle, past_key_values=cache, max_new_tokens=20, step=then)
    assert tokens.tolist() == expected[:, :-20].tolist()
    # the caller's cache goes on, as model.generate's does
    assert cache.get_seq_length() == tokens.shape[1] - 1
    assert generate(model, tokens, None, past_key_values=cache, max_new_tokens=20).tolist() == expected.tolist()


@pytest.mark.parametrize("inside_first", [True, False])
def test_inference_mode_on_one_side_only(inside_first, model):
    expected = model.generate(prompt(), max_new_tokens=20)
    for inside in (inside_first, not inside_first):
        with torch.inference_mode(inside):
            oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
            assert generate(model, prompt(), oracle, max_new_tokens=20, step="captured").tolist() == expected.tolist()


def test_scores_and_processors(model):
    options = {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.2, "max_new_tokens": 40}
    expected = model.generate(prompt(), **options)
    oracle = OracleDrafter(VOCABULARY, expected.sequences[0].tolist(), PROMPT)
    output = generate(model, prompt(), oracle, step="captured", **options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_a_stopped_stream_leaves_the_step_to_the_next_request(model):
    expected = model.generate(prompt(), max_new_tokens=NEW)
    tokens = stream(model, prompt(), None, max_new_tokens=NEW, step="captured")
    assert [next(tokens).id for _ in range(10)] == expected[0, PROMPT : PROMPT + 10].tolist()
    tokens.close()
    step = idle(model)
    compare(model, prompt(), {}, step="captured")
    assert idle(model) is step


def test_memory_goes_with_the_model():
    model = copy.deepcopy(build("llama"))
    generate(model, prompt(), None, max_new_tokens=10, step="static")
    step, gone = weakref.ref(idle(model)), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and step() is None


def test_stray_numbers_in_unused_slots_do_no_harm(model):
    generate(model, prompt(300), None, max_new_tokens=NEW, step="captured")
    for layout in idle(model).cache.layouts.values():
        for buffer in layout.buffers:
            buffer.fill_(1e30)  # of an earlier text, if a large one
    compare(model, prompt(), {}, step="captured")


def test_one_gather_moves_a_path_in_all_layers():
    growing = GrowingCache(build("llama").config)
    states = torch.zeros(1, 2, 5, 16)
    for layer in growing.layers:
        layer.update(states, states)
    cache = StaticCache(growing, 300, 8)
    (layout,) = cache.layouts.values()
    (buffer,) = layout.buffers
    assert cache.prepare(292, 8) == (layout.capacity,) < (buffer.shape[3],)  # no step is given all of it
    assert buffer.shape == (2, 2, 2, bucket(300) + SPARE, 16)
    assert {layer.keys.untyped_storage().data_ptr() for layer in cache.layers} == {buffer.untyped_storage().data_ptr()}
    buffer[:] = torch.arange(buffer.shape[3])[:, None]
    cache.keep(6, [1, 3, 4])
    assert buffer[1, 1, 1, :12, 0].tolist() == [0, 1, 2, 3, 4, 5, 7, 9, 10, 9, 10, 11]


def test_costs_are_those_of_the_padded_sizes(model):
    costs = measure_costs(model, "captured")
    assert costs.shape == (65,) and costs is measure_costs(model, "captured") is not measure_costs(model, "dynamic")
    for low, high in ((1, 3), (4, 7), (8, 15), (16, 31), (32, 47), (48, 64)):
        assert len(set(costs[low : high + 1])) == 1
    assert np.all(np.diff(costs) >= 0)


def test_an_unknown_step_is_refused(model):
    with pytest.raises(ValueError, match="no step 'fast': there are compiled, captured, static, dynamic"):
        generate(model, prompt(), step="fast")


def test_ordinary_decoding_takes_the_same_step(model):
    statistics = Statistics()
    expected = model.generate(prompt(), max_new_tokens=NEW)
    tokens = generate(model, prompt(), None, max_new_tokens=NEW, step="captured", statistics=statistics)
    assert tokens.tolist() == expected.tolist()
    assert statistics.mean_accepted_tokens == 1 and set(idle(model).programs) == {(1, 256)}


def test_half_precision_runs():
    model = transformers.LlamaForCausalLM(build("llama").config).to(torch.bfloat16)
    model.load_state_dict(build("llama").state_dict())
    expected = model.generate(prompt(), max_new_tokens=30)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    tokens = generate(model, prompt(), oracle, max_new_tokens=30, step="static")
    assert tokens.shape == expected.shape


class OneDevice(TorchDispatchMode):
    """Refuses operations over tensors of two devices, other than copies; on `meta`, a GPU that computes nothing."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        devices = {each.device for each in tensors((args, kwargs))}
        copies = operation in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        assert copies or len(devices) < 2, f"{operation} over {devices}"
        refuse(operation, args)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_stays_on_the_device(name, attention):
    model = copy.deepcopy(build(name, attention)).to("meta")
    target = Target(model, step="static", budget=8)
    tree = DraftTree([3, 4, 5, 6, 7], [-1, -1, 0, 1, 2])
    with torch.no_grad(), OneDevice():
        target.forward(prompt()[0].numpy())
        for path in ([], [1, 3], [0, 2, 4], [0]):
            target.keep(path)
            logits = target.forward(np.array([3]), tree)
            assert logits.device.type == "meta" and logits.shape == (6, VOCABULARY)
        target.keep([1, 3])
        target.close(np.zeros(40, np.int64))
    assert {layer.keys.device.type for layer in target.cache.layers} == {"meta"}


@pytest.mark.broken
def test_where_the_likeliest_tokens_cannot_be_found_drafts_are_lost_and_no_text(model, monkeypatch, caplog):
    monkeypatch.setattr(static, "likeliest", none_left)
    compare(model, prompt(), {}, step="captured")
    assert "likeliest tokens of" in caplog.text
    drafter = HierarchyDrafter(VOCABULARY)
    expected = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(generate(model, prompt(), drafter, max_new_tokens=20, step="captured"), expected)
    assert "drafts no more" in caplog.text
