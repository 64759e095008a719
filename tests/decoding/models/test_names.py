"""Whatever a version of transformers calls things, and adds to them, the tokens stay the same."""

import functools
import inspect

import pytest
import torch
import transformers
from architectures import PROMPT, VOCABULARY, build
from oracle import OracleDrafter
from transformers import Cache, DynamicCache

from hdraft.decoding import UnsupportedError, custom_generate, generate, logs
from hdraft.decoding.models import names
from hdraft.decoding.models.names import cache_argument, output_cache_field, prepared_cache_argument
from hdraft.decoding.models.probe import draft_shape


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def said(caplog):
    logs._said.clear()
    return caplog


@pytest.fixture(scope="module")
def expected():
    return build("llama").generate(prompt(), max_new_tokens=40)


def oracle(expected):
    return OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)


def rebuilt(cls):
    """A model of another class with the weights of the tested Llama."""
    model = cls(build("llama").config).eval()
    model.load_state_dict(build("llama").state_dict())
    return model


def renamed(name):
    """A Llama whose forward and `prepare_inputs_for_generation` call the cache by another name."""
    known = cache_argument(build("llama"))

    class Renamed(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, **kwargs):
            if name in kwargs:
                kwargs[known] = kwargs.pop(name)
            elif known in kwargs:
                raise TypeError(f"unexpected argument {known}")
            return super().forward(input_ids, **kwargs)

        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
            if known in inputs:
                inputs[name] = inputs.pop(known)
            return inputs

    given = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Cache | None, default=None)
    parameters = inspect.signature(transformers.LlamaForCausalLM.forward).parameters.values()
    parameters = [given if parameter.name == known else parameter for parameter in parameters]
    parameters.sort(key=lambda parameter: parameter.kind)
    Renamed.forward.__signature__ = inspect.Signature(parameters)
    return rebuilt(Renamed)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "kv_store"])
@pytest.mark.parametrize("step", ["dynamic", "static"])
def test_a_model_may_call_its_cache_as_it_likes(name, step, expected):
    model = renamed(name)
    assert cache_argument(model) == name
    assert generate(model, prompt(), oracle(expected), max_new_tokens=40, step=step).tolist() == expected.tolist()


def test_the_names_of_this_version():
    model = build("llama")
    assert cache_argument(model) in inspect.signature(model.forward).parameters
    assert prepared_cache_argument(model) in inspect.signature(model.prepare_inputs_for_generation).parameters
    output = model.generate(prompt(), max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(output[output_cache_field()], Cache)


@pytest.mark.parametrize("name", names.CACHE[:2])
def test_a_cache_is_taken_by_the_name_of_any_version(name, expected):
    first = generate(build("llama"), prompt(), None, max_new_tokens=10, return_dict_in_generate=True)
    cache = first[output_cache_field()]
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT + 10)
    tokens = generate(build("llama"), first.sequences, drafter, max_new_tokens=30, **{name: cache})
    assert tokens.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="pass one"):
        generate(build("llama"), first.sequences, cache=cache, past_key_values=cache)
    with pytest.raises(UnsupportedError, match=f"^{name} of type DynamicCache"):
        generate(build("llama"), first.sequences, **{name: DynamicCache()})


def with_added(monkeypatch, model, **added):
    """Let this version's `generate` hand more to the decoding method than it does."""
    prepare = model._prepare_cache_for_generation

    def add(generation_config, model_kwargs, *args, **kwargs):
        prepare(generation_config, model_kwargs, *args, **kwargs)
        model_kwargs.update(added)

    monkeypatch.setattr(model, "_prepare_cache_for_generation", add)


@pytest.fixture(scope="module")
def open_llama():
    class Open(transformers.LlamaForCausalLM):
        given = ()

        def forward(self, input_ids=None, new_flag=None, **kwargs):
            type(self).given += (new_flag,)
            return super().forward(input_ids, **kwargs)

    Open.forward = functools.update_wrapper(Open.forward, transformers.LlamaForCausalLM.forward)
    del Open.forward.__wrapped__
    parameters = dict(inspect.signature(transformers.LlamaForCausalLM.forward).parameters)
    flag = inspect.Parameter("new_flag", inspect.Parameter.KEYWORD_ONLY, default=None)
    kinds = [*parameters.values(), flag]
    Open.forward.__signature__ = inspect.Signature(sorted(kinds, key=lambda parameter: parameter.kind))
    return rebuilt(Open)


def test_what_generate_adds_goes_to_a_model_that_takes_it(monkeypatch, open_llama, expected):
    with_added(monkeypatch, open_llama, new_flag="on")
    assert draft_shape(open_llama) == "tree"
    monkeypatch.setattr(type(open_llama), "given", ())
    assert generate(open_llama, prompt(), oracle(expected), max_new_tokens=40).tolist() == expected.tolist()
    assert set(type(open_llama).given) == {"on"}


@pytest.mark.parametrize("value", ["on", torch.zeros(1, PROMPT)], ids=["a-setting", "a-row-for-each-token"])
def test_what_generate_adds_is_left_out_where_it_cannot_be_handed_on(monkeypatch, said, expected, value):
    model = build("llama")
    with_added(monkeypatch, model, new_flag=value)
    assert generate(model, prompt(), oracle(expected), max_new_tokens=40).tolist() == expected.tolist()
    assert said.text.count("new_flag of this version's generate is left") == 1


@pytest.mark.parametrize("name", ["encoder_outputs", "encoder_attention_mask", "pixel_values"])
def test_what_generate_adds_is_refused_where_the_answer_depends_on_it(monkeypatch, name):
    model = build("llama")
    with_added(monkeypatch, model, **{name: torch.zeros(1, 2, 64)})
    with pytest.raises(UnsupportedError, match=f"^{name} is not supported"):
        generate(model, prompt())


def test_bare_what_a_caller_gives_is_refused_and_what_generate_gives_is_not(monkeypatch, open_llama, expected):
    model, method = open_llama, custom_generate(oracle(expected))
    tokens = model.generate(prompt(), custom_generate=method, max_new_tokens=40)
    assert tokens.tolist() == expected.tolist()
    with pytest.raises(UnsupportedError, match=r"^new_flag is not supported"):
        model.generate(prompt(), custom_generate=custom_generate(), max_new_tokens=4, new_flag="on")


def test_a_padded_prompt_for_a_model_without_masks_is_refused():
    class Unmasked(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, cache=None, use_cache=None, return_dict=None):
            raise AssertionError("a forward pass before the refusal")

    model = rebuilt(Unmasked)
    mask = torch.ones_like(prompt())
    mask[0, :3] = 0
    with pytest.raises(UnsupportedError, match="Unmasked takes no attention_mask"):
        generate(model, prompt(), attention_mask=mask, max_new_tokens=4)


@pytest.mark.parametrize("version, lines", [("5.17.0", 0), (names.NEWEST, 0), ("5.99.0.dev0", 1), ("6.0.0", 1)])
def test_a_version_newer_than_those_tested_is_said_once(monkeypatch, said, version, lines):
    monkeypatch.setattr(names, "transformers_version", version)
    for _ in range(2):
        generate(build("llama"), prompt(), None, max_new_tokens=2)
    assert said.text.count("is newer than those tested") == lines


@pytest.mark.parametrize(
    "name, value",
    [
        ("cache_implementation", "static"),
        ("cache_implementation", "hybrid"),
        ("cache_implementation", "offloaded"),
        ("cache_implementation", "quantized"),
        ("prompt_lookup_num_tokens", 3),
        ("output_attentions", True),
    ],
)
@pytest.mark.parametrize("bare", [False, True], ids=["", "bare"])
def test_settings_that_come_with_a_model_and_change_no_token_are_ignored(said, expected, name, value, bare):
    if bare and value in ("quantized", "static"):
        pytest.skip("generate itself makes that cache, or refuses to, before it calls a method")
    model = rebuilt(transformers.LlamaForCausalLM)
    setattr(model.generation_config, name, value)
    if bare:
        method = custom_generate(oracle(expected))
        tokens = model.generate(prompt(), custom_generate=method, max_new_tokens=40)
    else:
        tokens = generate(model, prompt(), oracle(expected), max_new_tokens=40)
        assert generate(model, prompt(), None, max_new_tokens=40).tolist() == expected.tolist()
    assert tokens.tolist() == expected.tolist()
    assert said.text.count(f"{name}={value!r} of the model's generation_config is ignored") == (value != "hybrid")


def test_settings_that_come_with_a_model_and_change_tokens_are_refused():
    model = rebuilt(transformers.LlamaForCausalLM)
    model.generation_config.num_beams = 3
    with pytest.raises(UnsupportedError, match=r"^num_beams=3"):
        generate(model, prompt())
    assert generate(model, prompt(), None, num_beams=1, max_new_tokens=2).shape[1] == PROMPT + 2


def test_no_names_are_looked_up_in_vain():
    with pytest.raises(LookupError, match="no function"):
        names._cache_name(lambda input_ids: None)
