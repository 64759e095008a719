"""Models whose weights are loaded as they are needed: accelerate's offloading to memory, to disk, and in part."""

import copy

import pytest
import torch
from architectures import PROMPT, VOCABULARY, build
from oracle import OracleDrafter

from hdraft.decoding import generate, logs, measure_costs, stream
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

accelerate = pytest.importorskip("accelerate")


def prompt(seed=5):
    return torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(seed))


def to_memory(model, folder):
    return accelerate.cpu_offload(model, execution_device="cpu")


def to_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device="cpu")


def in_part(model, folder):
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "disk"}
    places |= {"model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def first_layers(model, folder):
    places = {"model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.layers": "cpu", "model.norm": "cpu"}
    return accelerate.dispatch_model(model, places | {"lm_head": "cpu"}, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("offload", [to_memory, to_disk, in_part, first_layers])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
def test_the_same_tokens(offload, options, tmp_path, caplog):
    logs._said.clear()
    model = offload(copy.deepcopy(build("llama")), tmp_path)
    torch.manual_seed(1)
    expected = model.generate(prompt(), max_new_tokens=30, **options)
    for step in (None, "static"):
        oracle = OracleDrafter(VOCABULARY, expected[0].tolist(), PROMPT)
        torch.manual_seed(1)
        tokens = generate(model, prompt(), oracle, max_new_tokens=30, step=step, **options)
        assert tokens.tolist() == expected.tolist()
        assert max(map(len, oracle.extended)) > 3
    assert caplog.text.count("steps are dynamic and not static") == 1
    torch.manual_seed(1)
    tokens = [token.id for token in stream(model, prompt(), None, max_new_tokens=30, **options)]
    assert tokens == expected[0, PROMPT:].tolist()


def test_costs_are_measured_and_an_unknown_family_is_tried(tmp_path):
    model = to_disk(copy.deepcopy(build("glm4")), tmp_path)
    assert len(measure_costs(model)) == 65
    expected = model.generate(prompt(), max_new_tokens=20)
    drafter = HierarchyDrafter.for_model(model)
    assert generate(model, prompt(), drafter, max_new_tokens=20).tolist() == expected.tolist()
