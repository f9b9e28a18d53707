"""One small model laid out over ranks in the ways torch knows, and the whole of it read again."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|(?<!\w)module\.")


@dataclass(frozen=True)
class Layout:
    """How a model and a batch [samples, features] are laid out; `flat` lets guard() see FSDP1."""

    wrap: Callable[[nn.Module], nn.Module]
    part: Callable[[Tensor], Tensor] = lambda batch: batch
    model: Callable[[], nn.Module] = lambda: perceptron(32, 8)
    flat: bool = False


def perceptron(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, out))


def fresh(layout: Layout) -> nn.Module:
    """The model in float64 and not laid out, equal on all ranks."""
    torch.manual_seed(0)
    return layout.model().double()


def mine(batch: Tensor) -> Tensor:
    """This rank's part of a batch that is split over all ranks."""
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the whole parameters, by the names they have without wrappers."""
    if any(isinstance(one, FullyShardedDataParallel) for one in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model):
            return _copies(model)
    return _copies(model)


def unwrapped(name: str) -> str:
    return WRAPPERS.sub("", name)


def local(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(model: nn.Module) -> dict[str, Tensor]:
    full = ((name, _full(one.detach())) for name, one in model.named_parameters())
    return {unwrapped(name): one.clone() for name, one in full}


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@functools.cache
def mesh_of(*shape: int) -> DeviceMesh:
    """A mesh with named axes; made once, as each has process groups of its own."""
    return init_device_mesh("cpu", shape, mesh_dim_names=("outer", "inner")[-len(shape) :])


def line() -> DeviceMesh:
    return mesh_of(dist.get_world_size())


# --- Ways to lay out --------------------------------------------------------------------------


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp1(
    *, originals: bool, nested: bool = False, strategy: str = "FULL_SHARD"
) -> Callable[[nn.Module], nn.Module]:
    settings = {
        "device_id": torch.device("cpu"),
        "use_orig_params": originals,
        "sharding_strategy": ShardingStrategy[strategy],
    }

    def wrap(model: nn.Module) -> nn.Module:
        if nested:
            model[0] = FullyShardedDataParallel(model[0], **settings)
        return FullyShardedDataParallel(model, **settings)

    return wrap


def fsdp2(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=line())


def fsdp2_nested(model: nn.Module) -> nn.Module:
    fully_shard(model[0], mesh=line())
    fully_shard(model[2], mesh=line())
    return fully_shard(model, mesh=line())


def fsdp2_on_a_part(model: nn.Module) -> nn.Module:
    fully_shard(model[2], mesh=line())
    return model


def two_meshes(model: nn.Module) -> nn.Module:
    fully_shard(model[0], mesh=line())
    fully_shard(model[2], mesh=mesh_of(1, dist.get_world_size()))
    return model


def hybrid(replicas: int) -> Callable[[nn.Module], nn.Module]:
    mesh = mesh_of(replicas, dist.get_world_size() // replicas)
    return lambda model: fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module) -> nn.Module:
    return parallelize_module(model, line(), {"0": ColwiseParallel(), "2": RowwiseParallel()})


def tensor_parallel_on_a_part(model: nn.Module) -> nn.Module:
    return parallelize_module(model, line(), {"0": ColwiseParallel(output_layouts=Replicate())})


def sequence_parallel(model: nn.Module) -> nn.Module:
    split = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(0))
    parallelize_module(model, line(), split)
    plan = {
        "0": SequenceParallel(sequence_dim=0),
        "1": ColwiseParallel(input_layouts=Shard(0)),
        "3": RowwiseParallel(),
    }
    return parallelize_module(model, line(), plan)


def fsdp2_over_tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = mesh_of(2, 2)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["inner"], plan)
    return fully_shard(model, mesh=mesh["outer"])


def mine_of_two(batch: Tensor) -> Tensor:
    """This rank's part where pairs of ranks, neighbors, share one."""
    return batch.chunk(2)[dist.get_rank() // 2]


def _normed() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))


def layouts() -> dict[str, Layout]:
    """The layouts for as many ranks as there are."""
    return _of_two() if dist.get_world_size() == 2 else _of_four()


def _of_two() -> dict[str, Layout]:
    return {
        "ddp": Layout(data_parallel, mine),
        "fsdp1": Layout(fsdp1(originals=True), mine, flat=True),
        "fsdp1-nested": Layout(fsdp1(originals=True, nested=True), mine, flat=True),
        "fsdp1-flat": Layout(fsdp1(originals=False), mine, flat=True),
        "fsdp1-flat-nested": Layout(fsdp1(originals=False, nested=True), mine, flat=True),
        "fsdp1-unsharded": Layout(fsdp1(originals=True, strategy="NO_SHARD"), mine, flat=True),
        "fsdp2": Layout(fsdp2, mine),
        "fsdp2-nested": Layout(fsdp2_nested, mine),
        "fsdp2-uneven": Layout(fsdp2_nested, mine, model=lambda: perceptron(7, 1)),
        "fsdp2-part": Layout(fsdp2_on_a_part),
        "two-meshes": Layout(two_meshes, mine),
        "hsdp": Layout(hybrid(1), mine),
        "tp": Layout(tensor_parallel),
        "tp-part": Layout(tensor_parallel_on_a_part),
        "tp-sequence": Layout(sequence_parallel, model=_normed),
    }


def _of_four() -> dict[str, Layout]:
    return {
        "fsdp2-uneven": Layout(fsdp2_nested, mine, model=lambda: perceptron(7, 1)),
        "hsdp": Layout(hybrid(2), mine),
        "fsdp2-tp": Layout(fsdp2_over_tensor_parallel, mine_of_two),
    }
