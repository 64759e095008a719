"""A model that is given no drafter drafts by itself: one drafter, kept with it, for all ways to call it."""

import copy
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from architectures import PROMPT, VOCABULARY, build
from oracle import OracleDrafter
from test_lossless import prompt

import hdraft
from hdraft.decoding.models import drafters
from hdraft.decoding.models.drafters import kept_drafter
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

NEW = 40
COSTS = np.ones(65)  # a busy machine measures what it likes


def by_generate(model, ids, **options):
    return hdraft.generate(model, ids, max_new_tokens=NEW, costs=COSTS, **options)


def by_stream(model, ids, **options):
    tokens = [token.id for token in hdraft.stream(model, ids, max_new_tokens=NEW, costs=COSTS, **options)]
    return torch.cat((ids, torch.tensor([tokens])), dim=1)


def by_custom_generate(model, ids, **options):
    method = hdraft.custom_generate(costs=COSTS, **options)
    return model.generate(input_ids=ids, custom_generate=method, max_new_tokens=NEW)


WAYS = [by_generate, by_stream, by_custom_generate]


@pytest.fixture
def model():
    """One that no drafter is kept with."""
    return copy.deepcopy(build("llama"))


@pytest.mark.parametrize("way", WAYS)
def test_a_call_without_a_drafter_drafts(model, way):
    expected = model.generate(prompt(), max_new_tokens=NEW)
    statistics = hdraft.Statistics()
    assert torch.equal(way(model, prompt(), statistics=statistics), expected)
    assert statistics.drafted > 0


def test_the_drafter_is_kept_and_learns_from_request_to_request(model):
    assert torch.equal(by_generate(model, prompt()), model.generate(prompt(), max_new_tokens=NEW))
    drafter = kept_drafter(model)
    learnt = drafter.experience.start()[0]
    for way in WAYS:
        way(model, prompt(seed=7))
        assert kept_drafter(model) is drafter
    assert np.any(drafter.experience.start()[0].lasting != learnt.lasting)
    assert not list(drafter.model_database.documents())  # text is kept by who asks for it


def test_the_drafter_goes_with_the_model():
    model = copy.deepcopy(build("llama"))
    by_generate(model, prompt())
    drafter, gone = weakref.ref(kept_drafter(model)), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and drafter() is None


def test_two_models_have_two_drafters(model):
    assert kept_drafter(model) is not kept_drafter(copy.deepcopy(model))


def test_another_vocabulary_is_another_drafter(model):
    by_generate(model, prompt())
    before = kept_drafter(model)
    model.resize_token_embeddings(VOCABULARY + 8)
    expected = model.generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(by_generate(model, prompt()), expected)
    assert kept_drafter(model) is not before and kept_drafter(model).vocab_size == VOCABULARY + 8


@pytest.mark.parametrize("way", WAYS)
def test_a_wrapper_and_the_model_in_it_share_their_drafter(model, way):
    peft = pytest.importorskip("peft")
    by_generate(model, prompt())
    drafter = kept_drafter(model)
    learnt = drafter.experience.start()[0]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    wrapper = peft.get_peft_model(model, config).eval()
    kept = len(drafters._kept)
    assert torch.equal(way(wrapper, prompt()), wrapper.generate(input_ids=prompt(), max_new_tokens=NEW))
    assert len(drafters._kept) == kept
    assert np.any(drafter.experience.start()[0].lasting != learnt.lasting)


def test_first_requests_at_once_make_one_drafter(model, monkeypatch):
    made = []

    def slow(*arguments):
        made.append(HierarchyDrafter(*arguments))
        time.sleep(0.1)
        return made[-1]

    monkeypatch.setattr(drafters, "HierarchyDrafter", slow)
    prompts = [prompt(seed=seed) for seed in range(4)]
    expected = [model.generate(ids, max_new_tokens=NEW) for ids in prompts]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda ids: by_generate(model, ids), prompts))
    assert all(map(torch.equal, outputs, expected))
    assert len(made) == 1


def test_no_drafter_is_made_that_is_not_used(model, monkeypatch):
    monkeypatch.setattr(drafters, "HierarchyDrafter", None)
    expected = model.generate(prompt(), max_new_tokens=NEW)
    for way in WAYS:
        assert torch.equal(way(model, prompt(), drafter=None), expected)
        assert torch.equal(way(model, prompt(), budget=0), expected)
    own = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
    assert torch.equal(by_generate(model, prompt(), drafter=own), expected)
    model.config.is_encoder_decoder = True
    with pytest.raises(hdraft.UnsupportedError, match="encoder-decoder"):
        by_generate(model, prompt())


@pytest.mark.parametrize(
    "drafter, said",
    [
        ("fast", "'fast'"),
        ("a\nb" * 30, r"'a\\nb"),
        (torch.ones(1, 4), "a Tensor"),
        (HierarchyDrafter, "a type"),
        (build("llama"), "a LlamaForCausalLM"),
        (False, "a bool"),
    ],
    ids=["name", "long", "tensor", "class", "model", "bool"],
)
def test_what_is_no_drafter_is_named_at_the_call(model, drafter, said):
    for way in (hdraft.generate, hdraft.stream):
        with pytest.raises(ValueError, match=rf'^the drafter is {said}.* must be "auto", None for ordinary') as caught:
            way(model, prompt(), drafter)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^the drafter is"):
        hdraft.custom_generate(drafter)
