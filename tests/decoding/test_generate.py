"""Every option that is honoured does what it does in `model.generate`, token by token, drafts or not."""

import copy
import time
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from architectures import NEW, PROMPT, VOCABULARY, build, build_tokenizer
from oracle import OracleDrafter
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation.streamers import BaseStreamer

from hdraft.decoding import GrowingCache, Statistics, custom_generate, generate, measure_costs, stream
from hdraft.decoding.costs import step_costs
from hdraft.drafting.costs import StepCosts
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.tree import DraftTree


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def plain(model, ids, **options):
    torch.manual_seed(1)
    return model.generate(ids, **options)


def drafted(model, ids, sequence, statistics=None, seed=0, **options):
    """`generate` with an oracle for `sequence`, which it should emit or a beginning of it."""
    oracle = OracleDrafter(model.config.vocab_size, sequence, ids.shape[1], seed=seed, right=1.0)
    torch.manual_seed(1)
    return generate(model, ids, oracle, statistics=statistics, **options), oracle


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def text(model):
    """The greedy continuation, without a stop."""
    return plain(model, prompt(), max_new_tokens=NEW)[0].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 17},
        {"max_length": PROMPT + 9},
        {"min_new_tokens": 20, "max_new_tokens": 40},
        {"min_length": PROMPT + 3, "max_new_tokens": 9},
        {},  # 20 tokens
    ],
    ids=str,
)
def test_lengths(model, text, options, seed):
    expected = plain(model, prompt(), **options)
    tokens, _ = drafted(model, prompt(), text, seed=seed, **options)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_end_of_sequence_in_mid_draft(model, text, many, sampled):
    options = {"do_sample": True, "temperature": 0.8} if sampled else {}
    text = plain(model, prompt(), max_new_tokens=NEW, **options)[0].tolist() if sampled else text
    stopped_in_draft = 0
    for seed in range(12):
        first = PROMPT + 5 + 3 * seed
        eos = [text[first], text[first + 7], 0] if many else text[first]
        expected = plain(model, prompt(), max_new_tokens=NEW, eos_token_id=eos, **options)
        statistics = Statistics()
        tokens, oracle = drafted(
            model, prompt(), text, statistics, seed, max_new_tokens=NEW, eos_token_id=eos, **options
        )
        assert tokens.tolist() == expected.tolist()
        assert list(chain(*oracle.extended)) == tokens[0, PROMPT:].tolist()
        assert statistics.tokens == tokens.shape[1] - PROMPT
        stopped_in_draft += oracle.trees[-1].depths.max(initial=0) > len(oracle.extended[-1])
    assert stopped_in_draft > 2


def test_no_end_of_sequence(model, text):
    tokens, _ = drafted(model, prompt(), text, max_new_tokens=NEW, eos_token_id=None)
    assert tokens[0].tolist() == text


def test_start_from_bos(model):
    expected = plain(model, None, max_new_tokens=20)
    tokens, _ = drafted(model, torch.tensor([[1]]), expected[0].tolist(), max_new_tokens=20)
    assert tokens.tolist() == expected.tolist() == generate(model, drafter=None, max_new_tokens=20).tolist()


def test_stop_strings_in_mid_draft():
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("The model writes: ", return_tensors="pt").input_ids
    text = plain(model, ids, max_new_tokens=NEW)[0].tolist()
    assert len(tokenizer) <= model.config.vocab_size
    stopped_in_draft = 0
    for seed in range(8):
        begin = ids.shape[1] + 4 + 4 * seed
        stop = tokenizer.decode(text[begin : begin + 2])[1:]
        options = {"max_new_tokens": NEW, "stop_strings": [stop, "never this"], "tokenizer": tokenizer}
        if seed % 2:
            options["generation_config"] = GenerationConfig(
                max_new_tokens=NEW, stop_strings=options.pop("stop_strings")
            )
            del options["max_new_tokens"]
        expected = plain(model, ids, **options)
        assert expected.shape[1] < ids.shape[1] + NEW
        tokens, oracle = drafted(model, ids, text, seed=seed, **options)
        assert tokens.tolist() == expected.tolist()
        stopped_in_draft += oracle.trees[-1].depths.max(initial=0) > len(oracle.extended[-1])
    assert stopped_in_draft > 0


class Ban(LogitsProcessor):
    """Bans the likeliest token at every fifth call; remembers the sequences it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        assert scores.dtype == torch.float32 and scores.shape == (1, VOCABULARY) and len(input_ids) == 1
        self.seen.append(input_ids[0].tolist())
        if len(self.seen) % 5 == 0:
            scores[:, scores.argmax()] = -torch.inf
        return scores


class StopAfter(StoppingCriteria):
    """Stops at a given call; remembers what it saw."""

    def __init__(self, calls):
        self.calls, self.seen = calls, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append((input_ids[0].tolist(), len(scores)))
        return torch.tensor([len(self.seen) >= self.calls])


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("stop", [1, 23, 30])
def test_processors_and_criteria_are_called_as_in_generate(model, stop, sampled):
    records = []
    for ours in (False, True):
        processor, criterion = Ban(), StopAfter(stop)
        options = {"max_new_tokens": NEW, "do_sample": sampled, "return_dict_in_generate": True, "output_scores": True}
        options["logits_processor"] = transformers.LogitsProcessorList([processor])
        options["stopping_criteria"] = transformers.StoppingCriteriaList([criterion])
        if ours:
            output, oracle = drafted(model, prompt(), records[0][0], **options)
            assert max(map(len, oracle.extended)) > 2 or stop == 1
        else:
            output = plain(model, prompt(), **options)
        records.append((output.sequences[0].tolist(), processor.seen, criterion.seen))
    assert records[0] == records[1]
    assert len(records[0][1]) == len(records[0][2]) == stop


def test_prefix_allowed_tokens(model):
    def allowed(batch, ids):
        assert ids.ndim == 1
        return [int(ids[-1]) // 2, int(ids[-1] * 7 + len(ids)) % VOCABULARY, 3]

    expected = plain(model, prompt(), max_new_tokens=40, prefix_allowed_tokens_fn=allowed)
    tokens, oracle = drafted(model, prompt(), expected[0].tolist(), max_new_tokens=40, prefix_allowed_tokens_fn=allowed)
    assert tokens.tolist() == expected.tolist() and max(map(len, oracle.extended)) > 3


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.5},
        {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6, 7]])},
        {"bad_words_ids": [[5], [7, 9]]},
        {"suppress_tokens": [4, 8]},
        {"begin_suppress_tokens": [4, 8]},
        {"forced_bos_token_id": 3},
        {"forced_eos_token_id": 3},
        {"sequence_bias": [[[5], 3.0]]},
        {"encoder_repetition_penalty": 1.2},
        {"encoder_no_repeat_ngram_size": 2},
        {"remove_invalid_values": True},
        {"exponential_decay_length_penalty": (10, 1.1), "eos_token_id": 9},
        {"renormalize_logits": True, "do_sample": True, "temperature": 0.7},
        {"do_sample": True, "typical_p": 0.7},
        {"do_sample": True, "top_h": 0.6},
        {"do_sample": True, "epsilon_cutoff": 0.01},
        {"do_sample": True, "eta_cutoff": 0.01},
        {"do_sample": True, "watermarking_config": transformers.WatermarkingConfig()},
        {
            "do_sample": True,
            "watermarking_config": transformers.SynthIDTextWatermarkingConfig(ngram_len=4, keys=[654, 400, 836]),
        },
        {"prefill_chunk_size": 7},
        {"use_cache": False},
        {"max_time": 1000.0},
        {"generation_config": GenerationConfig(do_sample=True, top_k=5, max_new_tokens=40, eos_token_id=[0, 1])},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(model, options):
    options = {"max_new_tokens": 40} | options if "generation_config" not in options else options
    expected = plain(model, prompt(), **options)
    statistics = Statistics()
    tokens, _ = drafted(model, prompt(), expected[0].tolist(), statistics, **options)
    assert tokens.tolist() == expected.tolist()
    assert sum(statistics.accepted.values()) > 15 or "exponential" in str(options)
    if "prefill_chunk_size" in options:
        assert statistics.accepted_lengths[:3] == [0, 0, 0]


def test_max_time_stops_in_mid_draft(model, text):
    class Slow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            time.sleep(0.03)
            return scores

    slow = transformers.LogitsProcessorList([Slow()])
    tokens, _ = drafted(model, prompt(), text, max_new_tokens=NEW, max_time=0.3, logits_processor=slow)
    new = tokens.shape[1] - PROMPT
    assert 1 <= new <= 11
    assert tokens[0].tolist() == text[: PROMPT + new]


class Collector(BaseStreamer):
    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        self.puts.append(value.tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_streamer(model, options):
    theirs, ours = Collector(), Collector()
    expected = plain(model, prompt(), max_new_tokens=30, streamer=theirs, **options)
    drafted(model, prompt(), expected[0].tolist(), max_new_tokens=30, streamer=ours, **options)
    assert ours.puts == theirs.puts and ours.ended == theirs.ended == 1


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3"])
def test_dictionary_output_and_its_cache(name):
    model, options = build(name), {"return_dict_in_generate": True, "max_new_tokens": 30}
    expected = plain(model, prompt(), **options)
    for seed in range(3):
        output, _ = drafted(model, prompt(), expected.sequences[0].tolist(), seed=seed, **options)
        assert type(output) is type(expected)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert output.scores is output.logits is output.attentions is output.hidden_states is None
        cache = output.past_key_values
        assert isinstance(cache, GrowingCache)
        assert cache.get_seq_length() == expected.past_key_values.get_seq_length() == PROMPT + 29
        for layer, reference in zip(cache.layers, expected.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys, reference.keys, atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(layer.values, reference.values, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3-longrope", "bloom"])
def test_going_on_from_a_cache(name):
    model = build(name, "eager")
    first = plain(model, prompt(), max_new_tokens=20, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, prompt(6, seed=9)), dim=1)
    expected = plain(model, longer, max_new_tokens=30)
    start, _ = drafted(model, prompt(), first.sequences[0].tolist(), max_new_tokens=20, return_dict_in_generate=True)
    statistics = Statistics()
    tokens, _ = drafted(
        model,
        longer,
        expected[0].tolist(),
        statistics,
        max_new_tokens=30,
        past_key_values=start.past_key_values,
    )
    assert tokens.tolist() == expected.tolist()
    assert sum(statistics.accepted.values()) > 10


def test_model_generate_goes_on_from_our_cache(model):
    first = generate(model, prompt(), None, max_new_tokens=20, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, prompt(6, seed=9)), dim=1)
    expected = plain(model, longer, max_new_tokens=20)
    assert plain(model, longer, max_new_tokens=20, past_key_values=first.past_key_values).tolist() == expected.tolist()


@pytest.mark.parametrize("options", [{"budget": 0}, {"budget": 1}, {"budget": 5}], ids=str)
def test_budget(model, text, options):
    statistics = Statistics()
    tokens, oracle = drafted(model, prompt(), text, statistics, max_new_tokens=NEW, **options)
    assert tokens[0].tolist() == text
    assert max((len(tree) for tree in oracle.trees), default=0) <= options["budget"]
    if options["budget"] == 0:
        assert statistics.steps == statistics.tokens == NEW and statistics.drafted == 0
        assert oracle.closed == 0 and not oracle.trees


def test_no_drafter_is_ordinary_decoding(model, text):
    statistics = Statistics()
    assert generate(model, prompt(), None, max_new_tokens=NEW, statistics=statistics)[0].tolist() == text
    assert statistics.mean_accepted_tokens == 1.0


def test_statistics_add_up(model, text):
    statistics = Statistics()
    _, oracle = drafted(model, prompt(), text, statistics, max_new_tokens=NEW)
    assert statistics.tokens == NEW
    assert statistics.steps == len(statistics.accepted_lengths) == len(oracle.extended)
    assert statistics.kinds == {"dynamic": statistics.steps}
    assert statistics.drafted == sum(map(len, oracle.trees))
    assert sum(statistics.accepted.values()) == sum(statistics.accepted_lengths)
    assert all(statistics.accepted.values())  # the oracle's sources are random
    emitted = [len(extended) for extended in oracle.extended]
    assert all(0 <= e - a <= 1 for e, a in zip(emitted, statistics.accepted_lengths, strict=True))
    assert statistics.mean_accepted_tokens == NEW / statistics.steps
    names = ("drafting", "inputs", "model", "verification", "cache")
    parts = [getattr(statistics, f"seconds_{name}") for name in names]
    assert min(parts) > 0 and 0.5 * statistics.seconds < sum(parts) < statistics.seconds
    assert "tokens in" in str(statistics)


def test_bare_custom_generate(model, text):
    oracle, collector = OracleDrafter(VOCABULARY, text, PROMPT), Collector()
    method = custom_generate(oracle, streamer=collector)
    tokens = model.generate(prompt(), custom_generate=method, max_new_tokens=NEW)
    assert tokens[0].tolist() == text
    assert collector.puts[0] == prompt().tolist() and list(chain(*collector.puts[1:])) == text[PROMPT:]


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_bare_custom_generate_streams_text_as_generate_does(skip_prompt, capsys):
    model, tokenizer = build("llama-text"), build_tokenizer()
    ids = tokenizer("def get", return_tensors="pt").input_ids
    expected = model.generate(ids, streamer=TextStreamer(tokenizer, skip_prompt), max_new_tokens=30)
    shown = capsys.readouterr().out
    oracle = OracleDrafter(len(tokenizer), expected[0].tolist(), ids.shape[1])
    method = custom_generate(oracle, streamer=TextStreamer(tokenizer, skip_prompt))
    model.generate(ids, custom_generate=method, max_new_tokens=30)
    assert capsys.readouterr().out == shown and shown


def test_input_ids_as_keywords(model, text):
    batch = {"input_ids": prompt(), "attention_mask": torch.ones_like(prompt())}
    assert generate(model, **batch, drafter=None, max_new_tokens=NEW)[0].tolist() == text
    assert generate(model, inputs=prompt(), drafter=None, max_new_tokens=NEW)[0].tolist() == text


def test_session_closes_when_the_model_fails(model, text):
    oracle = OracleDrafter(VOCABULARY, text, PROMPT)

    class Broken(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise RuntimeError("broken")

    broken = transformers.LogitsProcessorList([Broken()])
    with pytest.raises(RuntimeError, match="broken"):
        generate(model, prompt(), oracle, max_new_tokens=9, logits_processor=broken)
    assert oracle.closed == 1


def test_costs_are_learnt_by_all_requests_of_a_model_unless_they_are_given(model, text):
    class Weighing(OracleDrafter):
        uses_costs = True

        def session(self, prompt_ids, costs=None):
            self.costs = costs
            return super().session(prompt_ids)

    first, second = (Weighing(VOCABULARY, text, PROMPT) for _ in range(2))
    for drafter in (first, second):
        generate(model, prompt(), drafter, max_new_tokens=5)
    learnt = step_costs(model, "dynamic")
    assert first.costs is second.costs is learnt
    assert np.asarray(learnt).shape == (65,)
    given = np.arange(1.0, 66.0)
    generate(model, prompt(), first, max_new_tokens=5, costs=given)
    assert first.costs is given
    generate(model, prompt(), OracleDrafter(VOCABULARY, text, PROMPT), max_new_tokens=5)


def test_costs_that_are_measured_are_measured_once(model):
    costs = measure_costs(model)
    assert costs is measure_costs(model) and costs.shape == (65,) and costs.dtype == np.float64
    assert (np.diff(costs) >= 0).all() and costs[0] > 0


def told(monkeypatch):
    """What is told of the steps of requests from now on: sizes, with the seconds that each took."""
    steps = []
    monkeypatch.setattr(StepCosts, "record", lambda self, drafted, seconds: steps.append((drafted, seconds)))
    return steps


@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_every_step_behind_the_prompt_teaches_what_steps_cost(text, step, monkeypatch):
    model, steps, statistics = copy.deepcopy(build("llama")), told(monkeypatch), Statistics()
    oracle = OracleDrafter(VOCABULARY, text, PROMPT)
    for _ in range(2):
        generate(model, prompt(), oracle, max_new_tokens=NEW, statistics=statistics, step=step, budget=3)
    assert all(seconds > 0 for _, seconds in steps)
    assert {drafted for drafted, _ in steps} <= {0, 1, 2, 3}
    made = 2 if step == "static" else 0  # a static step that is met for the first time is made, and tells nothing
    assert statistics.steps - 2 - made <= len(steps) <= statistics.steps - 2


def test_ordinary_decoding_teaches_it_too_and_a_request_without_a_past_pays_nothing(model, monkeypatch):
    steps = told(monkeypatch)
    passes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **named: passes.append(1) or forward(*args, **named))
    statistics = Statistics()
    for drafter, budget in ((None, 64), (HierarchyDrafter(VOCABULARY), 0), (HierarchyDrafter(VOCABULARY), 64)):
        generate(model, prompt(), drafter, budget=budget, max_new_tokens=9, statistics=statistics)
    assert len(passes) == statistics.steps == len(steps) + 3
    assert [drafted for drafted, _ in steps[:16]] == [0] * 16


def test_a_budget_beyond_what_is_ever_measured_needs_no_costs(model, text):
    drafter = OracleDrafter(VOCABULARY, text, PROMPT)
    assert generate(model, prompt(), drafter, max_new_tokens=NEW, budget=100)[0].tolist() == text
    assert generate(model, prompt(), HierarchyDrafter(VOCABULARY), max_new_tokens=NEW, budget=100)[0].tolist() == text


@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama-dynamic-ntk", "mistral-sliding"])
def test_costs_of_models_with_limits(name):
    costs = measure_costs(build(name, "eager"))
    assert np.isfinite(costs).all() and (np.diff(costs) >= 0).all()


def test_a_drafter_that_never_proposes(model, text):
    class Silent(OracleDrafter):
        def propose(self, budget, max_depth):
            return DraftTree.empty()

    statistics = Statistics()
    tokens = generate(model, prompt(), Silent(VOCABULARY, text, PROMPT), max_new_tokens=NEW, statistics=statistics)
    assert tokens[0].tolist() == text and statistics.steps == NEW


def test_a_stream_begun_in_inference_mode_goes_on_outside():
    model = build("llama")
    ids = torch.tensor([[5, 6, 7]])
    options = {"do_sample": True, "top_k": 5, "max_new_tokens": 12}
    torch.manual_seed(3)
    expected = model.generate(ids, **options)[0, 3:].tolist()
    with torch.inference_mode():
        tokens = stream(model, ids, None, **options)
    torch.manual_seed(3)
    assert [token.id for token in tokens] == expected


def test_a_length_may_be_a_tensor():
    model, ids = build("llama"), prompt()
    expected = plain(model, ids, max_new_tokens=9)
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    assert torch.equal(generate(model, ids, drafter, max_new_tokens=torch.tensor(9)), expected)
    drafter = HierarchyDrafter(VOCABULARY)
    assert torch.equal(generate(model, ids, drafter, max_new_tokens=torch.tensor(9)), expected)


def test_costs_that_are_none_are_refused_at_the_call():
    with pytest.raises(ValueError, match="costs must be"):
        stream(build("llama"), prompt(), HierarchyDrafter(VOCABULARY), costs=np.array([0.0, 1.0]))
