"""The same tokens as `model.generate`, on every family, with drafts that branch, are accepted, and are wrong."""

import copy

import numpy as np
import pytest
import torch
import transformers
from architectures import CHAINS, DEVICE, FAMILIES, NEW, PROMPT, SWITCH, UNLISTED, VOCABULARY, attentions, build
from oracle import OracleDrafter
from recording import record

from hdraft.decoding import Statistics, UnsupportedError, generate
from hdraft.decoding.models.probe import draft_shape, probe
from hdraft.decoding.models.support import known_shape, restore_frequencies
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.methods import PublishedDrafter

SAMPLING = {
    "temperature": {"do_sample": True, "temperature": 0.7},
    "top-k": {"do_sample": True, "top_k": 5},
    "top-p": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.05, "top_k": 0},
    "repetition-penalty": {"repetition_penalty": 1.3},
    "no-repeat-ngrams": {"no_repeat_ngram_size": 2},
    "all": {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.97,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 4,
    },
}
TABLE = [(name, attention) for name in FAMILIES | UNLISTED for attention in attentions(name)]


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(function, *args, seed=1, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def compare(model, ids, options, drafter_seed=0, new=NEW, step=None):
    """Tokens with an oracle equal those of model.generate; returns the oracle and the statistics."""
    restore_frequencies(model.modules())  # model.generate leaves those of its longest text behind
    expected = seeded(model.generate, ids, max_new_tokens=new, **options)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), ids.shape[1], seed=drafter_seed)
    statistics = Statistics()
    tokens = seeded(generate, model, ids, oracle, max_new_tokens=new, statistics=statistics, step=step, **options)
    assert tokens.tolist() == expected.tolist()
    return oracle, statistics


@pytest.mark.parametrize("step", ["dynamic", "captured"])
@pytest.mark.parametrize("options", [{}, SAMPLING["all"]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name, attention", TABLE)
def test_same_tokens(name, attention, options, step, monkeypatch):
    monkeypatch.setattr("hdraft.decoding.graphed.static_step.capture", record)
    model = build(name, attention)
    shape = draft_shape(model)
    assert shape == ("chain" if name in CHAINS else "tree")
    oracle, statistics = compare(model, prompt(), options, step=step)
    limited = "dynamic" in name
    assert sum(statistics.accepted.values()) > (20 if limited else 40)
    assert max(statistics.accepted_lengths) > 3
    assert statistics.mean_accepted_tokens > (1.4 if limited else 2.5)
    assert oracle.closed == 1
    branching = [tree for tree in oracle.trees if np.bincount(tree.parents + 1).max() > 1]
    assert len(branching) > 3


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek-v3", "phi3-longrope", "mpt"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_many_trees(name, seed, step):
    options = SAMPLING["temperature"] if seed % 2 else {}
    compare(build(name, "eager"), prompt(10 + 20 * seed, seed), options, drafter_seed=seed, new=60, step=step)


@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_sampling(options, step):
    _, statistics = compare(build("llama"), prompt(), options, step=step)
    assert sum(statistics.accepted.values()) > 30


@pytest.mark.parametrize("options", [{}, SAMPLING["all"]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name, attention", [("llama", "sdpa"), ("gemma3", "eager"), ("bloom", "eager")])
def test_same_scores(name, attention, options):
    model, ids = build(name, attention), prompt()
    options = options | {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "max_new_tokens": 40,
    }
    expected = seeded(model.generate, ids, **options)
    oracle = OracleDrafter(VOCABULARY, expected.sequences[0].tolist(), PROMPT)
    output = seeded(generate, model, ids, oracle, **options)
    assert type(output) is type(expected)
    assert output.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in ((output.scores, expected.scores), (output.logits, expected.logits)):
        assert len(ours) == len(theirs) == 40
        for row, reference in zip(ours, theirs, strict=True):
            assert row.shape == reference.shape and row.dtype == reference.dtype
            torch.testing.assert_close(row, reference, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("length", [1, 4000])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3"])
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_prompt_lengths(name, length, step):
    new = 20 if length > 1 else NEW
    compare(build(name), prompt(length), {}, new=new, step=step)
    compare(build(name), prompt(length), SAMPLING["temperature"], new=new, step=step)


def test_the_first_step_verifies_a_draft():
    runs = [compare(build("llama"), prompt(), {}, seed) for seed in range(4)]
    assert all(len(oracle.trees) == statistics.steps for oracle, statistics in runs)
    assert any(statistics.accepted_lengths[0] > 0 for _, statistics in runs)


@pytest.mark.parametrize("name", ["llama-dynamic-ntk", "phi3-longrope", "llama-longrope"])
def test_no_draft_passes_a_switch(name):
    oracle, _ = compare(build(name), prompt(), {})
    proposals = zip(oracle.lengths, oracle.trees, strict=True)
    reached = [(length, length + tree.depths.max(initial=0)) for length, tree in proposals]
    assert all(deepest <= SWITCH for length, deepest in reached if length <= SWITCH)
    assert any(length > SWITCH for length, _ in reached) == ("ntk" not in name)


@pytest.mark.parametrize("start", range(SWITCH - 3, SWITCH + 4))
@pytest.mark.parametrize("name", ["llama-dynamic-ntk", "phi3-longrope", "llama-longrope"])
def test_prompts_around_a_switch(name, start):
    compare(build(name, "eager"), prompt(start), {}, new=20)


def test_earlier_requests_leave_no_frequencies_behind():
    model, ids = build("llama-dynamic-ntk"), prompt(SWITCH + 10)
    restore_frequencies(model.modules())
    expected = model.generate(ids, max_new_tokens=20).tolist()  # leaves those of its last token
    for _ in range(2):
        assert generate(model, ids, None, max_new_tokens=20).tolist() == expected
    assert model.generate(ids, max_new_tokens=20).tolist() == expected


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj", "mpt"])
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_drafts_end_with_the_position_table(name, step):
    compare(build(name, "eager"), prompt(100), {}, new=28, step=step)  # tables hold 128


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "falcon-alibi", "mistral-sliding", "opt"])
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_padding_in_the_prompt(name, step):
    model, ids = build(name, "eager"), prompt()
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    _, statistics = compare(model, ids, {"attention_mask": mask}, step=step)
    assert sum(statistics.accepted.values()) > 30
    mask[:, 11] = 0
    compare(model, ids, {"attention_mask": mask} | SAMPLING["temperature"], step=step)


def test_pad_tokens_in_the_prompt_are_masked_as_generate_masks_them():
    ids = prompt()
    ids[0, 7] = 1
    compare(build("llama"), ids, {"pad_token_id": 1, "eos_token_id": 0})


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("make", [HierarchyDrafter, PublishedDrafter], ids=["hierarchy", "published"])
def test_our_drafters(name, make):
    model, ids = build(name, "eager"), prompt().repeat(1, 3)
    costs = np.linspace(1, 1.5, 65)  # as measured on a busy machine, drafts may not pay
    for options in ({}, {"do_sample": True, "temperature": 0.3}):
        expected = seeded(model.generate, ids, max_new_tokens=100 if name != "bloom" else 40, **options)
        # the request is repeated inside the prompt, so that D_c has what to draft
        ids2 = torch.cat((expected, ids), dim=1)
        expected = seeded(model.generate, ids2, max_new_tokens=60, **options)
        statistics = Statistics()
        drafter = make(vocab_size=VOCABULARY)
        tokens = seeded(
            generate, model, ids2, drafter, max_new_tokens=60, statistics=statistics, costs=costs, **options
        )
        assert tokens.tolist() == expected.tolist()
        assert statistics.drafted > 0


def test_the_probe_finds_what_the_tested_families_are_known_for():
    for name in ("llama", "gpt2", "gemma3", "deepseek-v3"):
        assert probe(build(name, "eager")) == known_shape(build(name, "eager")) == "tree"
    for name in CHAINS & set(FAMILIES):
        assert probe(build(name, "eager")) == known_shape(build(name, "eager")) == "chain"


def test_bfloat16_runs():
    model = transformers.LlamaForCausalLM(build("llama").config).to(DEVICE, torch.bfloat16)
    model.load_state_dict(build("llama").state_dict())
    ids = prompt()
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        expected = model.generate(ids, max_new_tokens=30)
        tokens = generate(model, ids, OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT), max_new_tokens=30)
        assert tokens.shape == expected.shape


@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_chunks_count_from_the_first_token_behind_padding(step):
    for length, padding in ((62, 3), (40, 9), (24, 20)):
        mask = (torch.arange(length, device=DEVICE) >= padding).long()[None]
        _, statistics = compare(build("llama4"), prompt(length), {"attention_mask": mask}, new=40, step=step)
        assert sum(statistics.accepted.values()) > 20


@pytest.mark.parametrize("first", [20, SWITCH - PROMPT, SWITCH - PROMPT + 1])
def test_going_on_from_a_cache_across_a_switch(first):
    model = build("phi3-longrope")
    options = {"max_new_tokens": first, "return_dict_in_generate": True}
    plain = model.generate(prompt(), **options)
    ours = generate(model, prompt(), OracleDrafter(VOCABULARY, plain.sequences[0].tolist(), PROMPT), **options)
    longer = torch.cat((plain.sequences, prompt(40, seed=77)), dim=1)
    expected = model.generate(longer, past_key_values=plain.past_key_values, max_new_tokens=30)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), longer.shape[1])
    tokens = generate(model, longer, oracle, past_key_values=ours.past_key_values, max_new_tokens=30)
    assert tokens.tolist() == expected.tolist() == model.generate(longer, max_new_tokens=30).tolist()


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-longrope", "llama-dynamic-ntk"])
@pytest.mark.parametrize("length, chunk", [(24, 7), (60, 59), (61, 1), (70, 20), (80, 60), (80, 61), (90, 25)])
def test_prefilling_in_chunks_across_a_switch(name, length, chunk):
    compare(build(name), prompt(length), {"prefill_chunk_size": chunk}, new=12)


@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_a_wrapped_forward(shape):
    model = copy.deepcopy(build("llama"))
    forward = model.forward
    if shape == "tree":  # that the model takes positions is known from its class
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    else:  # and here from nothing
        model.__class__ = type("Wrapper", (type(model),), {"forward": lambda self, **kwargs: forward(**kwargs)})
    assert draft_shape(model) == shape
    for options in ({}, {"attention_mask": (torch.arange(PROMPT) >= 5).long()[None]}):
        _, statistics = compare(model, prompt(), options)
        assert sum(statistics.accepted.values()) > 30


def test_windows_that_the_masks_of_a_model_ignore():
    """The cache keeps a window, and masks that the model makes itself do not know it."""

    class Unwindowed(transformers.MistralForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            if attention_mask is None and kwargs.get("past_key_values") is None:
                n = input_ids.shape[1]
                attention_mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            return super().forward(input_ids, attention_mask=attention_mask, **kwargs)

    config = copy.deepcopy(build("mistral-sliding").config)
    config.model_type = "unheard-of"
    model = Unwindowed(config).eval()
    model.load_state_dict(build("mistral-sliding").state_dict())
    with pytest.raises(UnsupportedError, match="tree: logits differ"):
        draft_shape(model)


@pytest.mark.parametrize("inside_first", [True, False])
def test_inference_mode_on_one_side_only(inside_first):
    model = build("llama")
    expected = model.generate(prompt(), max_new_tokens=20)
    with torch.inference_mode(inside_first):
        first = generate(model, prompt(), None, max_new_tokens=10, return_dict_in_generate=True)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT + 10)
    with torch.inference_mode(not inside_first):
        cache = first.past_key_values
        tokens = generate(model, first.sequences, oracle, past_key_values=cache, max_new_tokens=10)
    assert tokens.tolist() == expected.tolist()
