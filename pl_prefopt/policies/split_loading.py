"""Loading a model with sharded weights: rank 0 reads it, and each rank receives its shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from pl_prefopt.errors import RunError, first_line
from pl_prefopt.policies.sharding import shard
from pl_prefopt.policies.spec import PolicySpec

Make = Callable[[PolicySpec], nn.Module]
"""``build_policy``, say, or ``sketch_policy``."""
_Outline = dict[str, tuple[str, torch.Size, torch.dtype, bool]]
"""By name: the first name among tied tensors, and a tensor's shape, dtype and requires_grad."""


def load_split(spec: PolicySpec, build: Make, sketch: Make, mesh: DeviceMesh, *, precision: str) -> nn.Module:
    """Return the model that ``build`` loads, with this rank's shard of every weight on the mesh's device.

    Only rank 0 reads the files and holds the whole model in main memory; the other ranks receive their shards
    from it. Where the model from ``sketch`` differs in any parameter or buffer, every rank loads all of it.

    Args:
        spec: the model.
        build: loads it.
        sketch: creates it on the meta device.
        mesh: the mesh of all ranks, with a dimension ``data_parallel``.
        precision: the trainer's, see ``shard``.

    Raises:
        RunError: if rank 0 can't load the model; on rank 0 the original exception.
        ConfigError: if the model's class doesn't name its layers.
    """
    whole, outline = _load_in_the_first(spec, build)
    model = _sketched(spec, sketch)
    alike = _all_agree(model is not None and _outline(model) == outline)
    if model is None or not alike:
        rank_zero_warn(
            f"Every rank loads all of '{spec.name}' before it keeps its shard, which takes main memory: the "
            "model can't be built without its weights."
        )
        model = build(spec) if whole is None else whole
        shard(model, mesh, precision=precision)
        return model
    shard(model, mesh, precision=precision)
    _receive(model, whole, torch.device(mesh.device_type))
    return model


def _load_in_the_first(spec: PolicySpec, build: Make) -> tuple[nn.Module | None, _Outline]:
    whole, failed = None, None
    if dist.get_rank() == 0:
        try:
            whole = build(spec)
        except Exception as error:  # of any kind: the other ranks are waiting
            failed = error
    told = [(None if whole is None else _outline(whole), first_line(failed) if failed else None)]
    dist.broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    outline, reason = told[0]
    if outline is None:
        raise RunError(f"Rank 0 could not load the model: {reason}")
    return whole, outline


def _sketched(spec: PolicySpec, sketch: Make) -> nn.Module | None:
    try:
        model = sketch(spec)
    except Exception:  # of any kind: an adapter initialised from weights, say; the model itself was loaded
        return None
    # Tensors that are neither parameters nor buffers would remain on the meta device.
    strays = any(isinstance(value, Tensor) for part in model.modules() for value in vars(part).values())
    return None if strays else model


def _all_agree(mine: bool) -> bool:
    """Tell whether ``mine`` is true on every rank: collectives need all ranks to take the same path."""
    all_of_them: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    return all(all_of_them)


def _outline(model: nn.Module) -> _Outline:
    first: dict[int, str] = {}
    return {
        name: (first.setdefault(id(tensor), name), tensor.shape, tensor.dtype, tensor.requires_grad)
        for name, tensor in _tensors(model)
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return parameters and buffers; tied tensors under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _receive(model: nn.Module, whole: nn.Module | None, device: torch.device) -> None:
    """Replace ``model``'s meta tensors by this rank's shards of rank 0's values."""
    numbers = {} if whole is None else dict(_tensors(whole))
    received: dict[int, Tensor] = {}
    places = list(_tensors(model))  # kept alive, so that no two of them have the same id
    for name, place in places:
        if id(place) not in received:  # tied weights remain tied
            tensor = numbers[name].detach().to(device).contiguous() if numbers else _empty(place, device)
            dist.broadcast(tensor, src=0)
            received[id(place)] = _part(tensor, place)
        module, _, own = name.rpartition(".")
        setattr(model.get_submodule(module), own, received[id(place)])


def _empty(place: Tensor, device: torch.device) -> Tensor:
    return torch.empty(place.shape, dtype=place.dtype, device=device)


def _part(tensor: Tensor, place: Tensor) -> Tensor:
    if not isinstance(place, DTensor):
        return tensor
    own = distribute_tensor(tensor, place.device_mesh, place.placements, src_data_rank=None)
    # The shard may be a view of the whole tensor, which must be freed.
    part = DTensor.from_local(
        own.to_local().clone(), place.device_mesh, place.placements, shape=place.shape, stride=place.stride()
    )
    return nn.Parameter(part, requires_grad=place.requires_grad)
