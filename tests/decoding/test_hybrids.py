"""The same tokens as `model.generate` where a model keeps recurrent or convolutional states."""

import copy
import gc

import pytest
import torch
import transformers
from architectures import DEVICE, HYBRIDS, NEW, PROMPT, VOCABULARY, build, build_tokenizer
from oracle import OracleDrafter

from hdraft.decoding import GrowingCache, Statistics, UnsupportedError, generate, measure_costs, stream
from hdraft.decoding.cache import keeps_states
from hdraft.decoding.models.names import output_cache_field
from hdraft.decoding.models.probe import draft_shape, probe
from hdraft.decoding.state_layer import HeldStates, HybridLayer, StateLayer
from hdraft.decoding.target import MOST_UNREAD, Target
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.tree import DraftTree

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 20}
HAD = [name for name, (prefix, _) in HYBRIDS.items() if hasattr(transformers, f"{prefix}Config")]  # in this version
FEW = ["qwen3-next", "lfm2", "falcon-h1", "mamba2"]


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(function, *args, **kwargs):
    torch.manual_seed(1)
    return function(*args, **kwargs)


class ChainOracle(OracleDrafter):
    """Proposes chains of the recorded continuation, every other one wrong from some place on."""

    def propose(self, budget, max_depth=2**31 - 1):
        rest = self.sequence[self.length :]
        chain = rest[: min(len(rest), max_depth, budget, int(self.random.integers(1, 7)))]
        if self.random.random() > self.right and chain:
            place = int(self.random.integers(len(chain)))
            chain[place:] = self.random.integers(self.vocab_size, size=len(chain) - place).tolist()
        return DraftTree(chain, range(-1, len(chain) - 1))


def compare(model, ids, options=None, seed=0, new=NEW, right=0.5, kind=ChainOracle):
    """Tokens with an oracle equal those of model.generate; returns the oracle and the statistics."""
    options = options or {}
    expected = seeded(model.generate, ids, max_new_tokens=new, **options)
    oracle = kind(VOCABULARY, expected[0].tolist(), ids.shape[1], seed=seed, right=right)
    statistics = Statistics()
    tokens = seeded(generate, model, ids, oracle, max_new_tokens=new, statistics=statistics, **options)
    assert tokens.tolist() == expected.tolist()
    return oracle, statistics


def chains(model, ids, options=None, seed=0, new=NEW):
    """As `compare`; returns how many chains were accepted wholly, partly and not at all."""
    counts, forward = [0, 0, 0], Target.keep

    def keep(self, path):
        drafted = len(self._pass[1])
        if drafted:
            counts[0 if len(path) == drafted else 1 if path else 2] += 1
        forward(self, path)

    Target.keep = keep
    try:
        _, statistics = compare(model, ids, options, seed, new)
    finally:
        Target.keep = forward
    return counts, statistics


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", HAD)
def test_same_tokens_with_chains_accepted_wholly_partly_and_not_at_all(name, options):
    model = build(name)
    assert keeps_states(model.config) and draft_shape(model) == "chain"
    counts, accepted = torch.zeros(3), 0
    for seed in range(3):
        found, statistics = chains(model, prompt(seed=seed), options, seed)
        counts += torch.tensor(found)
        accepted += sum(statistics.accepted.values())
        assert statistics.mean_accepted_tokens > 1.3
    assert counts.min() > 3 and accepted > 60


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 17, 64, 65, 700, 4000])
@pytest.mark.parametrize("name", FEW)
def test_prompt_lengths(name, length):
    new = 24 if length > 100 else NEW
    for options in ({}, SAMPLED):
        compare(build(name), prompt(length), options, new=new)


@pytest.mark.parametrize("name", FEW)
def test_padding(name):
    mask = torch.ones_like(prompt())
    mask[0, :5] = 0
    _, statistics = compare(build(name), prompt(), {"attention_mask": mask})
    assert statistics.mean_accepted_tokens > 1.3


@pytest.mark.parametrize("name", ["qwen3-next", "lfm2", "falcon-h1"])  # of mamba2, generate cannot
def test_chunks_of_the_prompt(name):
    compare(build(name), prompt(50), {"prefill_chunk_size": 7})


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("place", range(3, 12))
def test_an_end_in_mid_draft(name, place):
    model = build(name)
    expected = model.generate(prompt(), max_new_tokens=40)
    end = int(expected[0, PROMPT + place])
    compare(model, prompt(), {"eos_token_id": end, "pad_token_id": 0}, seed=place, new=40)


def test_stop_strings_in_mid_draft():
    model, tokenizer = build("lfm2-text"), build_tokenizer()
    ids = torch.tensor([tokenizer.encode("def ")])
    whole = model.generate(ids, max_new_tokens=40)[0]
    text = tokenizer.decode(whole[ids.shape[1] :])
    options = {"max_new_tokens": 40, "stop_strings": [text[12:15]], "tokenizer": tokenizer}
    expected = model.generate(ids, **options)
    oracle = OracleDrafter(320, whole.tolist(), ids.shape[1], right=1.0)
    assert generate(model, ids, oracle, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", HAD)
def test_hybrids_go_on_from_a_cache(name):
    """The next turn; an edited text; the same again; and a cache that somebody else has gone on with."""
    model = build(name)
    output = generate(model, prompt(), None, max_new_tokens=12, return_dict_in_generate=True)
    told, cache = output.sequences, output[output_cache_field()]
    edited = told.clone()
    edited[0, 7] = (edited[0, 7] + 1) % VOCABULARY
    longer = torch.cat((told, prompt(6, seed=9)), dim=1)
    for ids in (longer, torch.cat((edited, prompt(6, seed=9)), dim=1), prompt(), told[:, :10], prompt(1, seed=13)):
        for given in (copy.deepcopy(cache), cache):
            expected = model.generate(ids, max_new_tokens=16)
            oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), ids.shape[1], right=0.7)
            tokens = generate(model, ids, oracle, cache=given, max_new_tokens=16)
            assert tokens.tolist() == expected.tolist()
    told, cache = (
        output.sequences,
        generate(model, prompt(), None, max_new_tokens=12, return_dict_in_generate=True)[output_cache_field()],
    )
    with torch.no_grad():
        model(prompt(5, seed=20), **{output_cache_field(): cache}, use_cache=True)
    assert generate(model, longer, None, cache=cache, max_new_tokens=9).tolist() == (
        model.generate(longer, max_new_tokens=9).tolist()
    )


@pytest.mark.parametrize("name", FEW)
def test_what_a_cache_holds_is_not_read_again(name, monkeypatch):
    model, rows, forward = build(name), [], Target.forward

    def count(self, text, *args):
        rows.append(len(text))
        return forward(self, text, *args)

    output = generate(model, prompt(), None, max_new_tokens=12, return_dict_in_generate=True)
    monkeypatch.setattr(Target, "forward", count)
    longer = torch.cat((output.sequences, prompt(6, seed=9)), dim=1)
    generate(model, longer, None, cache=output[output_cache_field()], max_new_tokens=2)
    assert rows == [7, 1]


@pytest.mark.parametrize("name", FEW)
def test_a_stream_left_half_way_and_two_at_once(name):
    model = build(name)
    expected = [model.generate(prompt(seed=seed), max_new_tokens=40)[0].tolist() for seed in (1, 2)]

    def begin(seed, **options):
        oracle = OracleDrafter(VOCABULARY, expected[seed - 1], PROMPT, seed=seed, right=0.7)
        return stream(model, prompt(seed=seed), oracle, max_new_tokens=40, **options)

    cache = GrowingCache(model.config)
    left = begin(1, cache=cache)
    begun = [next(left).id for _ in range(9)]
    assert begun == expected[0][PROMPT : PROMPT + 9]
    left.close()
    told = torch.tensor([expected[0][: PROMPT + 9]])
    oracle = OracleDrafter(VOCABULARY, expected[0], PROMPT + 9, right=0.7)
    assert generate(model, told, oracle, cache=cache, max_new_tokens=31)[0].tolist() == expected[0]
    both = [begin(1), begin(2)]
    told = [[], []]
    for _ in range(40):
        for index in (0, 1):
            told[index].append(next(both[index]).id)
    assert [prompt(seed=seed)[0].tolist() + told[seed - 1] for seed in (1, 2)] == expected


def test_a_processor_that_fails_leaves_a_cache_that_can_be_used():
    model = build("qwen3-next")
    cache = GrowingCache(model.config)
    calls = []

    def fail(ids, scores):
        calls.append(ids)
        if len(calls) == 5:
            raise RuntimeError("processor")
        return scores

    expected = model.generate(prompt(), max_new_tokens=20)
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    with pytest.raises(RuntimeError, match="processor"):
        generate(model, prompt(), oracle, cache=cache, max_new_tokens=20, logits_processor=[fail])
    oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    assert generate(model, prompt(), oracle, cache=cache, max_new_tokens=20).tolist() == expected.tolist()


def test_in_inference_mode_and_outside():
    model = build("mamba2")
    expected = model.generate(prompt(), max_new_tokens=30)[0].tolist()
    oracle = OracleDrafter(VOCABULARY, expected, PROMPT, right=0.7)
    told = stream(model, prompt(), oracle, max_new_tokens=30)
    tokens = []
    for place in range(30):
        with torch.inference_mode(place % 3 == 0):
            tokens.append(next(told).id)
    assert tokens == expected[PROMPT:]


@pytest.mark.parametrize("name", [name for name in ("qwen3-next", "lfm2") if name in HAD])
def test_three_hundred_requests_of_one_model(name):
    model, drafter = build(name), HierarchyDrafter(VOCABULARY, learn=True)
    drafter.uses_costs = False
    drafted = 0
    for seed in range(300):
        ids = prompt(4 + seed % 9, seed=seed % 23)
        options = SAMPLED if seed % 2 else {}
        expected = seeded(model.generate, ids, max_new_tokens=8, **options)
        statistics = Statistics()
        tokens = seeded(generate, model, ids, drafter, max_new_tokens=8, statistics=statistics, **options)
        assert tokens.tolist() == expected.tolist()
        drafted += sum(statistics.accepted.values())
    assert drafted > 100


def test_a_thousand_requests_leave_nothing_behind():
    model = build("lfm2")

    def run(times):
        for _ in range(times):
            generate(model, prompt(4), OracleDrafter(VOCABULARY, [*prompt(4)[0].tolist(), 3, 4], 4), max_new_tokens=2)
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    before = run(20)
    assert run(1000) <= before + 5


def test_what_is_read_again_is_bounded_and_convolutions_read_nothing_again():
    for name, bounded in (("qwen3-next", MOST_UNREAD), ("lfm2", 1), ("lfm3", 1)):
        if name not in HAD:
            continue
        model, most, forward = build(name), [], Target.forward

        def count(self, text, *others, most=most, forward=forward):
            most.append(len(self.unread) + len(text) if self.length else 0)
            return forward(self, text, *others)

        Target.forward = count
        try:
            compare(model, prompt(), right=0.3)
        finally:
            Target.forward = forward
        assert max(most) <= bounded + 9  # the step whose rejection exceeds it takes no draft
        assert bounded > 1 or max(most) == 1


@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba", "Zamba"])
def test_layers_that_ignore_their_state_are_refused_by_name(name):
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": None}
    small |= {
        "Mamba": {"state_size": 8},
        "FalconMamba": {"state_size": 8},
        "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}
        | {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "num_experts": 2}
        | {"bos_token_id": 1, "eos_token_id": None},
        "Zamba": {"mamba_d_state": 8, "use_mamba_kernels": False, "num_attention_heads": 2, "intermediate_size": 32}
        | {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "bos_token_id": 1}
        | {"eos_token_id": None},
    }[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**small)).eval()
    reason = "ignores the recurrent states|does not verify"
    with pytest.raises(UnsupportedError, match=f"{name}ForCausalLM.*({reason}).*model.generate"):
        generate(model, prompt(), max_new_tokens=5)


@pytest.mark.parametrize("name", FEW)
def test_a_cache_that_takes_no_state_back_is_found_by_the_probe(name, monkeypatch):
    monkeypatch.setattr(HeldStates, "drop", lambda self, tokens: True)
    with pytest.raises(UnsupportedError, match="logits differ"):
        probe(build(name), ("chain",))


@pytest.mark.parametrize("name", FEW)
def test_costs_can_be_measured(name):
    costs = measure_costs(build(name))
    assert (costs > 0).all() and len(costs) == 65


@pytest.mark.parametrize("name", ["qwen3.5", "mamba2", "falcon-h1", "lfm2"])
def test_sixteen_bits_are_taken_for_rounding_and_a_wrong_state_is_not(name, monkeypatch):
    model = copy.deepcopy(build(name)).to(torch.bfloat16)
    assert probe(model, ("chain",)) == "chain"
    monkeypatch.setattr(HeldStates, "drop", lambda self, tokens: True)
    with pytest.raises(UnsupportedError, match="logits differ"):
        probe(model, ("chain",))


def test_static_steps_are_not_taken_and_that_is_said(caplog):
    model = copy.deepcopy(build("falcon-h1"))
    with caplog.at_level("WARNING"):
        generate(model, prompt(), None, max_new_tokens=3, step="captured")
    assert "dynamic and not captured: it keeps recurrent or convolutional states" in caplog.text


class TestStateLayer:
    def read(self, layer, inputs, kernel=3):
        return layer.update_conv_state(inputs, conv_kernel_size=kernel)

    @pytest.mark.parametrize("dropped", range(5))
    @pytest.mark.parametrize("before", [1, 2, 7])
    def test_inputs_of_a_convolution_are_cut_off(self, before, dropped):
        inputs = torch.randn(1, 2, before + 5)
        layer, plain = StateLayer(), StateLayer()
        states = HeldStates([layer])
        self.read(layer, inputs[..., :before])
        states.hold()
        self.read(layer, inputs[..., before:])
        if dropped:
            assert states.drop(dropped)
        states.release()
        self.read(plain, inputs[..., : before + 5 - dropped])
        assert torch.equal(layer.conv_states[0], plain.conv_states[0])

    def test_recurrent_states_are_put_back(self):
        layer = HybridLayer(window=4, number_of_states=2)
        states = HeldStates([layer])
        first = torch.randn(1, 2, 3)
        for index in (0, 1):
            layer.update_conv_state(first, index, conv_kernel_size=3)
            layer.update_recurrent_state(first + index, index)
        for _ in range(3):
            states.hold()
            for index in (0, 1):
                layer.update_conv_state(torch.randn(1, 2, 4), index, conv_kernel_size=3)
                layer.recurrent_states[index].add_(1)
            assert not states.drop(1)
            assert torch.equal(layer.recurrent_states[1], first + 1) and torch.equal(layer.conv_states[0], first)

    def test_inputs_are_not_kept_when_nobody_asks(self):
        layer = StateLayer()
        layer.update_conv_state(torch.ones(1, 3, 5000), conv_kernel_size=3)
        kept = [each for each in gc.get_referents(vars(layer)) if isinstance(each, torch.Tensor)]
        assert not kept and layer._inputs is None


def test_only_chains_reach_such_a_model():
    oracle, _ = compare(build("lfm2"), prompt(4), kind=OracleDrafter)
    assert any(len(set(tree.parents.tolist())) < len(tree) for tree in oracle.trees)  # though trees were proposed
    assert isinstance(oracle.trees[0], DraftTree)


@pytest.mark.parametrize("name", FEW)
def test_a_fork_of_a_cache_goes_its_own_way(name):
    model = build(name)
    output = generate(model, prompt(), None, max_new_tokens=12, return_dict_in_generate=True)
    told, cache = output.sequences, output[output_cache_field()]
    fork = cache.fork(len(cache.tokens))
    assert fork.nbytes > 0
    for given, seed in ((cache, 9), (fork, 10)):
        longer = torch.cat((told, prompt(6, seed)), dim=1)
        assert generate(model, longer, cache=given, max_new_tokens=9).tolist() == (
            model.generate(longer, max_new_tokens=9).tolist()
        )
