"""Several processes that run one model: they draft the same, or are refused by name."""

import copy
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from architectures import PROMPT, VOCABULARY, build
from test_refused import refusal
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from hdraft import HierarchyDrafter
from hdraft.decoding import custom_generate, generate, measure_costs, stream
from hdraft.decoding.models.ranks import ALONE, ranks_of
from hdraft.decoding.target import Target

HERE = Path(__file__).parent
SECONDS = 600  # for a machine on which much else runs; it takes ten, and a minute to compile kernels


def run_on_two_ranks(script, *arguments, **variables):
    """The output of a script that torchrun starts twice; whatever it started is gone afterwards."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    environment |= variables
    process = subprocess.Popen(
        [*command, str(HERE / script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_two_ranks_of_tensor_parallelism_give_the_tokens_of_generate(cache, tmp_path):
    pytest.importorskip("accelerate")  # transformers wants it for a tp_plan
    build("llama").save_pretrained(tmp_path / "model")
    variables = {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")} if cache == "cold" else {}
    output = run_on_two_ranks("two_ranks.py", tmp_path / "model", **variables)
    assert "rank 0 agrees" in output and "rank 1 agrees" in output


@pytest.fixture
def two_processes():
    """As if this were the first of two processes; collectives of the other one are made up."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.fixture
def model():
    """A model that must not be run."""
    model = copy.deepcopy(build("llama"))

    def forbidden(*args, **kwargs):
        raise AssertionError("a forward pass before the refusal")

    for module in model.modules():
        module.register_forward_pre_hook(forbidden)
    return model


PROMPTS = torch.arange(2, 2 + PROMPT)[None]


def ways(model):
    """All that a user may call with a model."""
    yield lambda: generate(model, PROMPTS, max_new_tokens=4)
    yield lambda: stream(model, PROMPTS, max_new_tokens=4)
    yield lambda: model.generate(PROMPTS, custom_generate=custom_generate(), max_new_tokens=4)
    yield lambda: measure_costs(model)


def sharded_whole(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def sharded_by_layer(model):
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


@pytest.mark.parametrize("shard", [sharded_whole, sharded_by_layer])
def test_fsdp_is_refused_by_name(two_processes, model, shard):
    model = shard(model)
    for way in ways(model):
        assert refusal(way).startswith("FSDP")


def test_zero_3_is_refused_by_name(two_processes, model):
    class Configuration:
        def is_zero3(self):
            return True

    configuration = Configuration()
    set_hf_deepspeed_config(configuration)
    try:
        for way in ways(model):
            assert refusal(way).startswith("DeepSpeed ZeRO-3")
    finally:
        unset_hf_deepspeed_config()


def test_a_model_partitioned_by_zero_3_is_refused_by_name(model):
    model.lm_head.weight.ds_id = 7  # as DeepSpeed marks what it has partitioned
    for way in ways(model):
        assert refusal(way).startswith("DeepSpeed ZeRO-3")


def test_pipeline_parallelism_is_refused_by_name(two_processes, model):
    model._pp_stage = SimpleNamespace(pp_size=2)
    for way in ways(model):
        assert refusal(way).startswith("pipeline parallelism")


def test_the_model_in_a_wrapper_is_no_matter_of_other_processes(two_processes):
    inner = nn.parallel.DistributedDataParallel(copy.deepcopy(build("llama"))).module
    assert ranks_of(inner) is ALONE
    expected = inner.generate(PROMPTS, max_new_tokens=12)
    assert torch.equal(generate(inner, PROMPTS, HierarchyDrafter(VOCABULARY), max_new_tokens=12), expected)


def test_a_model_spread_by_dtensors_is_recognised(two_processes):
    model = copy.deepcopy(build("llama"))
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model, mesh, {"model.layers.*.mlp.up_proj": ColwiseParallel()})
    ranks = ranks_of(model)
    assert not ranks.alone and dist.get_world_size(ranks.group) == 2
    target = Target(model, step="static")
    assert target.static is None  # on one rank there may be no memory for static steps
