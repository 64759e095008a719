"""A cache saves time and changes nothing: whatever the next prompt is, its tokens are those without a cache."""

import copy
import functools

import pytest
import torch
from architectures import PROMPT, SWITCH, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import GrowingCache, Statistics, generate, stream
from hdraft.decoding.models.names import output_cache_field
from hdraft.decoding.models.support import restore_frequencies

NAMES = ["llama", "mistral-sliding", "gemma3", "phi3-longrope", "llama-dynamic-ntk", "bloom", "gpt2"]


def prompt(length=PROMPT, seed=5):
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def first(model, ids, step=None, **options):
    """The sequence and the cache of a request."""
    output = generate(model, ids, None, max_new_tokens=12, return_dict_in_generate=True, step=step, **options)
    return output.sequences, output[output_cache_field()]


def rows_forwarded(model, monkeypatch):
    """Filled in with the tokens of each forward pass."""
    rows, forward = [], model.forward

    def count(input_ids=None, **kwargs):
        rows.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "forward", functools.update_wrapper(count, forward))
    return rows


def compare(model, ids, cache, step=None, **options):
    restore_frequencies(model.modules())  # model.generate leaves those of its longest text behind
    expected = model.generate(ids, max_new_tokens=16, **options)
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), ids.shape[1])
    tokens = generate(model, ids, drafter, past_key_values=cache, max_new_tokens=16, step=step, **options)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("step", ["dynamic", "static"])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_differ_from_the_cached_text(name, step):
    """As chat templates make them that drop what a model thought, and users who ask again or edit."""
    model = build(name, "eager")
    told, cache = first(model, prompt(), step)
    edited = told.clone()
    edited[0, 7] = (edited[0, 7] + 1) % VOCABULARY
    dropped = torch.cat((told[:, :20], told[:, 26:]), dim=1)
    for ids in (
        torch.cat((told, prompt(6, seed=9)), dim=1),  # the next turn
        torch.cat((edited, prompt(6, seed=9)), dim=1),
        torch.cat((dropped, prompt(5, seed=10)), dim=1),
        prompt(),  # once more
        told[:, :10],
        prompt(30, seed=11),  # another text
        torch.cat((prompt(30, seed=11), prompt(40, seed=12)), dim=1),
        prompt(1, seed=13),
    ):
        compare(model, ids, copy.deepcopy(cache), step)
        compare(model, ids, cache, step)  # and one after the other


@pytest.mark.parametrize(
    "name, step, cut, rows",
    [
        ("llama", "dynamic", 20, 20),
        ("bloom", "dynamic", 20, 20),
        ("gemma3", "dynamic", 20, 20),
        ("mistral-sliding", "static", 35, 5),
        ("mistral-sliding", "static", 20, 40),  # a window that has slid cannot go back: all of it
    ],
)
def test_what_the_texts_share_is_not_computed_again(name, step, cut, rows, monkeypatch):
    model = build(name, "eager")
    forwarded = rows_forwarded(model, monkeypatch)
    told, cache = first(model, prompt(), step)
    ids = torch.cat((told[:, :cut], prompt(40 - cut, seed=9)), dim=1)
    generate(model, ids, None, past_key_values=cache, max_new_tokens=3)
    assert forwarded[-3:] == [rows, 1, 1]


def test_padding_and_positions_are_a_part_of_the_text():
    model = build("llama")
    mask = torch.ones_like(prompt())
    mask[0, :5] = 0
    told, cache = first(model, prompt(), attention_mask=mask)
    longer = torch.cat((told, prompt(6, seed=9)), dim=1)
    padded = torch.cat((mask, torch.ones(1, 18, dtype=mask.dtype)), dim=1)
    for _ in range(2):
        compare(model, longer, cache, attention_mask=padded)
        compare(model, longer, cache)


def test_a_cache_of_a_model_whose_weights_have_changed():
    model = copy.deepcopy(build("llama"))
    told, cache = first(model, prompt())
    longer = torch.cat((told, prompt(6, seed=9)), dim=1)
    compare(build("llama"), longer, cache)
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 96))
    compare(model, longer, cache)


def test_a_cache_that_others_have_gone_on_with_or_cut():
    model = build("llama")
    told, cache = first(model, prompt())
    longer = torch.cat((told, prompt(6, seed=9)), dim=1)
    model.generate(longer, max_new_tokens=9, past_key_values=cache)
    compare(model, torch.cat((told, prompt(20, seed=10)), dim=1), cache)
    cache.crop(-20)
    assert len(cache.tokens) == cache.get_seq_length()
    model.generate(prompt(cache.get_seq_length() + 4, seed=11), max_new_tokens=9, past_key_values=cache)
    compare(model, longer, cache)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_empty_cache_is_filled_by_a_stream(name):
    model = build(name)
    cache = GrowingCache(model.config)
    told = [token.id for token in stream(model, prompt(), None, cache=cache, max_new_tokens=12)]
    assert cache.get_seq_length() == PROMPT + 11
    longer = torch.cat((prompt(), torch.tensor([told]), prompt(6, seed=9)), dim=1)
    compare(model, longer, cache)


def test_a_cache_filled_by_hand_is_not_trusted():
    model = build("llama")
    cache = GrowingCache(model.config)
    model(prompt(30, seed=3), past_key_values=cache)
    compare(model, prompt(40, seed=4), cache)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding"])
def test_a_cache_left_by_a_request_that_failed(name, monkeypatch):
    model = build(name)
    told, cache = first(model, prompt())
    longer = torch.cat((told, prompt(6, seed=9)), dim=1)
    layer = model.model.layers[1]

    def fail(*args, **kwargs):
        raise RuntimeError("in the middle of a pass")

    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            generate(model, longer, None, past_key_values=cache, max_new_tokens=4)
    compare(model, longer, cache)


@pytest.mark.parametrize("length", [SWITCH - 15, SWITCH - 3, SWITCH + 4])
def test_a_text_that_was_beyond_the_switch_of_its_frequencies(length):
    for name in ("phi3-longrope", "llama-longrope", "llama-dynamic-ntk"):
        model = build(name)
        _, cache = first(model, prompt(length))
        longer = prompt(length + 15)
        compare(model, longer[:, : length - 4], copy.deepcopy(cache))
        longer[0, length - 10] = 3
        compare(model, longer, cache)


def test_a_conversation_that_is_edited_at_random():
    model, statistics = build("gemma3"), Statistics()
    random = torch.Generator().manual_seed(0)
    sequence, cache = first(model, prompt())
    for _ in range(12):
        cut = int(torch.randint(1, sequence.shape[1] + 1, (1,), generator=random))
        more = torch.randint(2, VOCABULARY, (1, int(torch.randint(1, 12, (1,), generator=random))), generator=random)
        ids = torch.cat((sequence[:, :cut], more), dim=1)
        expected = model.generate(ids, max_new_tokens=8)
        sequence = generate(model, ids, None, past_key_values=cache, max_new_tokens=8, statistics=statistics)
        assert sequence.tolist() == expected.tolist()
