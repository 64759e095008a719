"""PEFT's adapters: weights that change decode as in `model.generate`; prompts that are learnt are refused by name."""

import copy

import pytest
import torch
from architectures import PROMPT, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import Statistics, UnsupportedError, custom_generate, generate, stream
from hdraft.drafting.drafter import vocabulary_size
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

peft = pytest.importorskip("peft")

SAMPLED = {"do_sample": True, "temperature": 0.8}


def prompt(seed=5):
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(seed))


def wrapped(name="llama", adapters=("first",), config=peft.LoraConfig, **options):
    """A model with random adapters, strong enough to change what it says."""
    model = copy.deepcopy(build(name))
    for adapter in adapters:
        made = config(task_type="CAUSAL_LM", **options)
        if adapter == adapters[0]:
            model = peft.get_peft_model(model, made, adapter_name=adapter)
        else:
            model.add_adapter(adapter, made)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if any(adapter in weight_name.split(".") for adapter in adapters):
                weight.normal_(0, 0.3)
    return model.eval()


def compare(model, plain=None, step=None, **options):
    """The same tokens as the model's own `generate`, with drafts accepted; returns them."""
    torch.manual_seed(1)
    expected = (model if plain is None else plain).generate(input_ids=prompt(), max_new_tokens=40, **options)
    statistics = Statistics()
    for method in (generate, streamed):
        oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
        torch.manual_seed(1)
        tokens = method(model, prompt(), oracle, max_new_tokens=40, statistics=statistics, step=step, **options)
        assert tokens.tolist() == expected.tolist()
    assert max(statistics.accepted_lengths) > 3
    return expected.tolist()


def streamed(model, ids, drafter, **options):
    tokens = [token.id for token in stream(model, ids, drafter, **options)]
    return torch.cat((ids, torch.tensor([tokens])), dim=1)


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_lora_unmerged_merged_switched_and_disabled(step, options):
    model = wrapped(adapters=("first", "second"), **LORA)
    texts = {}
    for turn in range(2):
        for adapter in ("first", "second"):
            model.set_adapter(adapter)
            text = compare(model, step=step, **options)
            assert texts.setdefault(adapter, text) == text, turn
    with model.disable_adapter():
        texts["disabled"] = compare(model, step=step, **options)
    model.merge_adapter()
    texts["merged"] = compare(model, step=step, **options)
    model.unmerge_adapter()
    texts["base"] = compare(build("llama"), step=step, **options)
    texts["unloaded"] = compare(model.merge_and_unload(), step=step, **options)
    assert texts["disabled"] == texts["base"] and len({str(texts[name]) for name in ("first", "second", "base")}) == 3


@pytest.mark.parametrize(
    "config, options",
    [
        (peft.LoraConfig, LORA | {"use_dora": True}),
        (peft.LoraConfig, LORA | {"use_rslora": True, "bias": "all"}),
        (peft.LoraConfig, {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}),
        (peft.LoraConfig, LORA | {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (peft.LoraConfig, LORA | {"trainable_token_indices": [5, 9]}),
        (peft.LoHaConfig, LORA),
        (peft.IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        (peft.VeraConfig, {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
    ],
    ids=["dora", "rslora", "embeddings", "saved", "tokens", "loha", "ia3", "vera"],
)
def test_other_adapters_of_weights(config, options):
    model = wrapped(config=config, **options)
    assert vocabulary_size(model) == VOCABULARY
    compare(model)
    drafter = HierarchyDrafter.for_model(model)
    expected = model.generate(input_ids=prompt(), max_new_tokens=12)
    assert generate(model, prompt(), drafter, max_new_tokens=12).tolist() == expected.tolist()


def test_adapters_named_for_a_request():
    model = wrapped(adapters=("first", "second"), **LORA)
    for name in ("second", "__base__"):
        expected = model.generate(input_ids=prompt(), max_new_tokens=30, adapter_names=[name])
        oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
        tokens = generate(model, prompt(), oracle, max_new_tokens=30, adapter_names=[name])
        assert tokens.tolist() == expected.tolist()
    with pytest.raises(UnsupportedError, match=r"^adapter_names is not supported in a stream"):
        stream(model, prompt(), adapter_names=["second"])


def test_bare_custom_generate_in_a_wrapper():
    model = wrapped(**LORA)
    expected = model.generate(input_ids=prompt(), max_new_tokens=30)
    method = custom_generate(OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT))
    tokens = model.generate(input_ids=prompt(), max_new_tokens=30, custom_generate=method)
    assert tokens.tolist() == expected.tolist()


def test_a_cache_of_one_adapter_is_no_cache_of_another():
    model = wrapped(adapters=("first", "second"), **LORA)
    cache = generate(model, prompt(), None, max_new_tokens=9, return_dict_in_generate=True)[-1]
    model.set_adapter("second")
    longer = torch.cat((prompt(), prompt(7)), dim=1)
    expected = model.generate(input_ids=longer, max_new_tokens=20)
    for _ in range(2):
        assert generate(model, longer, None, cache=cache, max_new_tokens=20).tolist() == expected.tolist()


LEARNT = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P_TUNING": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "MULTITASK_PROMPT_TUNING": lambda: peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=2, prompt_tuning_init="RANDOM"
    ),
}


@pytest.mark.parametrize("kind", LEARNT)
def test_learnt_prompts_are_refused(kind):
    model = peft.get_peft_model(copy.deepcopy(build("llama")), LEARNT[kind]()).eval()
    for refused in (
        lambda: generate(model, prompt(), max_new_tokens=3),
        lambda: stream(model, prompt(), max_new_tokens=3),
        lambda: model.generate(input_ids=prompt(), custom_generate=custom_generate(), max_new_tokens=3),
    ):
        with pytest.raises(UnsupportedError, match=f"^{kind} puts a learnt prompt before the text.*model.generate"):
            refused()


def test_an_activated_lora_is_refused():
    model = wrapped(**LORA, alora_invocation_tokens=[3, 4])
    for refused in (
        lambda: generate(model, prompt(), max_new_tokens=3),
        lambda: model.generate(input_ids=prompt(), custom_generate=custom_generate(), max_new_tokens=3),
    ):
        with pytest.raises(UnsupportedError, match=r"^an activated LoRA.*model\.generate"):
            refused()
