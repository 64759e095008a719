"""Models that several processes run together: which of them hdraft takes, and that all ranks take the same steps.

Every forward pass of such a model waits for all ranks. Under tensor parallelism they decode one sequence: if two ranks
drafted different trees, they would wait for each other with tensors of different shapes. So whatever may differ between
them (a clock, a drafter, a random number) comes from rank 0. Where each rank has a sequence of its own (FSDP, ZeRO-3),
they would take different numbers of passes: that is refused.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hdraft.decoding.models.support import UnsupportedError
from hdraft.decoding.models.walking import modules_of, parameters_of
from hdraft.drafting.tree import DraftTree


class Ranks:
    """The processes that run one model together on one sequence; most often this one alone.

    Attributes:
        alone: whether this is the only process; then everything is left as it is.
    """

    def __init__(self, group: Any = None, device: torch.device | None = None) -> None:
        """Of the process group `group`, which exchanges tensors on `device`; None for this process alone."""
        self.alone = group is None
        self.group = group
        self.device = device

    def tensor(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, which has the same shape on all ranks."""
        if self.alone:
            return tensor
        sent = tensor.to(self.device, copy=True).contiguous()
        dist.broadcast(sent, src=dist.get_global_rank(self.group, 0), group=self.group)
        return sent.to(tensor.device)

    def number(self, number: float) -> float:
        """Rank 0's number."""
        return number if self.alone else float(self.tensor(torch.tensor([number], dtype=torch.float64)))

    def tokens(self, tokens: list[int]) -> list[int]:
        """Rank 0's tokens, as many as on all ranks."""
        return tokens if self.alone else self.tensor(torch.tensor(tokens)).tolist()

    def tree(self, tree: DraftTree, budget: int) -> DraftTree:
        """Rank 0's tree, of at most `budget` nodes."""
        if self.alone:
            return tree
        sent: npt.NDArray[np.float64] = np.zeros((5, budget + 1))  # holds every int32 and float32 exactly
        sent[0, budget] = len(tree)
        sent[:, : len(tree)] = tree.tokens, tree.parents, tree.sources, tree.probabilities, tree.depths
        sent = self.tensor(torch.from_numpy(sent)).numpy()
        return DraftTree(*sent[:, : int(sent[0, budget])])


ALONE = Ranks()


def ranks_of(model: nn.Module) -> Ranks:
    """The processes that run the model together: those of the mesh that it or one of its parameters is spread over."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None:
        meshes = (getattr(parameter, "device_mesh", None) for parameter in parameters_of(model))
        mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None or mesh.size() == 1:
        return ALONE
    spread = [dimension for dimension in range(mesh.ndim) if mesh.size(dimension) > 1]
    group = mesh.get_group(spread[0]) if len(spread) == 1 else dist.group.WORLD
    device = torch.device(mesh.device_type)
    return Ranks(group, torch.device("cpu") if device.type == "cpu" else model.device)  # type: ignore[arg-type]


def check_processes(model: nn.Module) -> None:
    """Refuse a model whose ranks would wait for each other for ever.

    Raises:
        UnsupportedError: its message names what stands in the way, and the way out.
    """
    if (kind := _sequences_apart(model)) is not None:
        raise UnsupportedError(
            f"{kind} is not supported: its ranks must take equally many forward passes, and drafts would make them"
            " differ: use model.generate, or load the whole model on each rank"
        )
    if getattr(getattr(model, "_pp_stage", None), "pp_size", 1) > 1:
        raise UnsupportedError(
            "pipeline parallelism is not supported: a rank has the cache of its own layers only: use model.generate,"
            " or tensor parallelism"
        )


def _sequences_apart(model: nn.Module) -> str | None:
    """The library that shards the model among ranks that have a sequence each; None if there is none."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters_of(model)):
        return "DeepSpeed ZeRO-3"
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    if is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
        return "DeepSpeed ZeRO-3"
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # takes a while to import

    sharded = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in modules_of(model))
    return "FSDP" if sharded or getattr(model, "_is_fsdp_managed_module", False) else None
