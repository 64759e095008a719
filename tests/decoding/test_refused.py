"""What cannot be honoured is refused before any forward pass, by name, with the reason and the way out."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from architectures import MOE, PROMPT, SMALL, VOCABULARY, build
from oracle import OracleDrafter
from transformers import DynamicCache, GenerationConfig

from hdraft.decoding import UnsupportedError, custom_generate, generate, options
from hdraft.decoding.masks import layer_spans
from hdraft.decoding.models import support

WAY_OUT = re.compile(
    r"model\.generate|model\.module|leave it out|call (it|generate) once for each|heal_tokens|hdraft\.generate|load "
)


def prompt(length=PROMPT):
    return torch.arange(2, 2 + length)[None]


@pytest.fixture
def model(monkeypatch):
    """A model that must not be run."""
    model = build("llama")

    def forbidden(*args, **kwargs):
        raise AssertionError("a forward pass before the refusal")

    monkeypatch.setattr(model, "forward", forbidden)
    return model


def refusal(call, *args, **kwargs):
    with pytest.raises(UnsupportedError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250
    assert WAY_OUT.search(message), message
    assert isinstance(caught.value, ValueError)
    return message


OPTIONS = {
    "num_beams": 3,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "num_return_sequences": 2,
    "constraints": ["x"],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "is_assistant": True,
    "cache_implementation": "static",
    "token_healing": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("through", ["keyword", "generation_config"])
def test_options(model, name, through):
    kwargs = {name: OPTIONS[name]}
    if through == "generation_config":
        config = GenerationConfig()
        setattr(config, name, OPTIONS[name])
        kwargs = {"generation_config": config}
    message = refusal(generate, model, prompt(), max_new_tokens=5, **kwargs)
    assert message.startswith(name)


def test_every_refused_option_is_tested():
    assert OPTIONS.keys() == options.REFUSED.keys()


def test_every_option_of_generate_is_classified():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    groups = [options.HONOURED, options.WITHOUT_EFFECT, set(options.REFUSED)]
    assert known - set().union(*groups) == set()
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_the_docs_list_every_option():
    text = (Path(__file__).parents[2] / "docs" / "generate.md").read_text()
    for name in options.HONOURED | options.WITHOUT_EFFECT | options.REFUSED.keys() | options.REFUSED_ARGUMENTS.keys():
        assert f"`{name}`" in text, name


@pytest.mark.parametrize(
    "arguments",
    [
        {"assistant_model": build("llama")},
        {"assistant_tokenizer": "x"},
        {"custom_generate": "transformers-community/dola"},
        {"synced_gpus": True},
        {"past_key_values": DynamicCache()},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments(model, arguments):
    assert refusal(generate, model, prompt(), **arguments).startswith(next(iter(arguments)))


@pytest.mark.parametrize("name", ["token_type_ids", "mm_token_type_ids"])
def test_tokens_of_several_types(monkeypatch, name):
    model = build("gpt2")
    monkeypatch.setattr(model.transformer, "forward", None)
    types = torch.zeros(1, PROMPT, dtype=torch.long)
    types[0, 3] = 1
    with pytest.raises(ValueError, match=f"{name}"):
        generate(model, prompt(), **{name: types})


def test_typos_are_reported_by_transformers(model):
    with pytest.raises(ValueError, match="max_new_token"):
        generate(model, prompt(), max_new_token=3)


def test_batches(model):
    assert "batch of 2" in refusal(generate, model, prompt().repeat(2, 1))
    assert "batch of 2" in refusal(model.generate, prompt().repeat(2, 1), custom_generate=custom_generate())


@pytest.mark.parametrize(
    "ids, reason",
    [
        (torch.empty(1, 0, dtype=torch.long), "empty"),
        (torch.tensor([3, 4]), r"shape \[1, length\]"),
        ([[3, 4]], r"shape \[1, length\]"),
    ],
    ids=["empty", "flat", "list"],
)
def test_prompts(model, ids, reason):
    with pytest.raises(ValueError, match=reason):
        generate(model, ids)


def test_two_prompts(model):
    with pytest.raises(ValueError, match="pass one"):
        generate(model, prompt(), inputs=prompt())


@pytest.mark.parametrize("more", [1, -1])
def test_a_drafter_for_another_vocabulary(model, more):
    with pytest.raises(ValueError, match=f"make the drafter with vocab_size={VOCABULARY}"):
        generate(model, prompt(), OracleDrafter(VOCABULARY + more, [], 0))


def test_a_mask_for_another_sequence(model):
    with pytest.raises(ValueError, match="pass the whole sequence"):
        generate(model, prompt(), attention_mask=torch.ones(1, PROMPT + 2, dtype=torch.long))


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3"])
def test_a_cache_of_another_model(name):
    cache = generate(build("llama"), prompt(), None, max_new_tokens=4, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match="other layers"):
        generate(build(name), prompt(PROMPT + 9), past_key_values=cache)


def test_a_prompt_in_chunks_behind_a_cache_where_generate_may_lose_it():
    model = build("llama-longrope")
    cache = generate(model, prompt(), None, max_new_tokens=4, return_dict_in_generate=True).past_key_values
    options = {"past_key_values": cache, "prefill_chunk_size": 5}
    assert refusal(generate, model, prompt(PROMPT + 9), **options).startswith("prefill_chunk_size")


def test_layers_of_an_unknown_type():
    config = transformers.LlamaConfig(**SMALL)
    config.layer_types = ["full_attention", "minimax_m3_sparse"]
    with pytest.raises(UnsupportedError, match="minimax_m3_sparse"):
        layer_spans(config)


def test_no_cache_where_that_changes_tokens():
    assert "use_cache" in refusal(generate, build("llama-dynamic-ntk"), prompt(), use_cache=False)


STATES_OF_THEIR_OWN = {
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "RecurrentGemma": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "attention_window_size": 8},
    "MiniMax": SMALL | {"head_dim": 16} | MOE,
}


@pytest.mark.parametrize("name", STATES_OF_THEIR_OWN)
def test_states_that_are_not_in_the_cache(name):
    config = getattr(transformers, f"{name}Config")(**{"vocab_size": VOCABULARY} | STATES_OF_THEIR_OWN[name])
    with torch.device("meta"):  # refused by its configuration: no weights needed
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    message = refusal(generate, model, prompt())
    assert type(model).__name__ in message and "dropped" in message


def test_an_index_beside_keys_and_values():
    config = transformers.DeepseekV32Config(vocab_size=VOCABULARY, num_hidden_layers=2)
    with torch.device("meta"):
        message = refusal(generate, transformers.DeepseekV32ForCausalLM(config), prompt())
    assert "DynamicIndexedLayer" in message and "recurrent" not in message


def test_no_number_of_layers():
    config = transformers.BltConfig()
    with torch.device("meta"):
        assert "how many layers" in refusal(generate, transformers.BltForCausalLM(config), prompt())


def test_bugs_inside_are_not_taken_for_refusals(monkeypatch):
    def fail(config):
        raise KeyError("bug")

    monkeypatch.setattr(support, "keeps_states", fail)
    with pytest.raises(KeyError):
        support.check_model(build("llama"))


def test_encoder_decoders():
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    assert "encoder-decoder" in refusal(generate, transformers.T5ForConditionalGeneration(config), prompt())


def test_no_language_modelling_head():
    assert "head" in refusal(generate, transformers.LlamaModel(build("llama").config), prompt())


def test_a_model_that_verifies_nothing():
    class Forgetful(transformers.LlamaForCausalLM):
        """Adds to its logits how many tokens it was given: a pass over several is unlike several passes."""

        def forward(self, input_ids=None, **kwargs):
            output = super().forward(input_ids, **kwargs)
            output.logits = output.logits + input_ids.shape[1] * torch.arange(output.logits.shape[-1])
            return output

    config = transformers.LlamaConfig(**SMALL)
    config.model_type = "unheard-of"
    message = refusal(generate, Forgetful(config).eval(), prompt(), OracleDrafter(VOCABULARY, [], 0))
    assert "tree" in message and "chain" in message
