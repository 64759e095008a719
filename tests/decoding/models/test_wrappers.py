"""Modules around a model: the model in them, or a sentence that says what to pass."""

import copy

import pytest
import torch
import torch.distributed as dist
from architectures import VOCABULARY, build
from oracle import OracleDrafter
from test_lossless import prompt
from test_refused import refusal
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from hdraft.decoding import Statistics, generate, measure_costs, stream


@pytest.fixture
def process():
    """The only process of its group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_a_wrapper_that_does_not_generate_is_named(process, wrap):
    wrapper = wrap(copy.deepcopy(build("llama")))
    assert not hasattr(wrapper, "generate")
    for way in (generate, stream, lambda model, _: measure_costs(model)):
        message = refusal(way, wrapper, prompt())
        assert message.startswith(wrap.__name__) and "model.module" in message


def test_a_module_that_does_not_generate_is_named():
    assert refusal(generate, nn.Linear(2, 2), prompt()).startswith("Linear does not generate")


class HandsOn(nn.Module):
    """As DeepSpeed's engine does: whatever it has not itself, the model in it has."""

    def __init__(self, model):
        super().__init__()
        self.module = model
        self.config = {"train_batch_size": 1}

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "module" else getattr(self.module, name)


def sharded(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


@pytest.mark.parametrize("wrap", [HandsOn, sharded])
def test_a_wrapper_that_hands_generate_on_runs_the_model_in_it(process, wrap):
    wrapper = wrap(copy.deepcopy(build("llama")))
    expected = wrapper.generate(prompt(), max_new_tokens=40)
    statistics = Statistics()
    drafter = OracleDrafter(VOCABULARY, expected[0].tolist(), prompt().shape[1])
    assert torch.equal(generate(wrapper, prompt(), drafter, max_new_tokens=40, statistics=statistics), expected)
    assert statistics.steps < 20
    assert len(measure_costs(wrapper)) == 65
