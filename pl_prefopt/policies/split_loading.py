"""Loading a model whose weights are split: one process reads it, and each process keeps its part."""

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
"""By name: the first name of what is tied, and what is known of a tensor without its numbers."""


def load_split(spec: PolicySpec, build: Make, sketch: Make, mesh: DeviceMesh, *, precision: str) -> nn.Module:
    """Return the model that ``build`` loads, with this process's part of every weight on the mesh's device.

    The first process alone reads the files and holds the model whole in main memory; the others get their
    parts from it. Where the sketch is not that model to the last buffer, each process loads all of it.

    Args:
        spec: the model.
        build: loads it.
        sketch: makes it on the meta device.
        mesh: of all processes, with a dimension ``data_parallel``.
        precision: the trainer's, see ``shard``.

    Raises:
        RunError: if the first process can't load it; there, whatever it is.
        ConfigError: if it is unknown which parts of the model are its layers.
    """
    whole, outline = _load_in_the_first(spec, build)
    model = _sketched(spec, sketch)
    alike = _all_agree(model is not None and _outline(model) == outline)
    if model is None or not alike:
        rank_zero_warn(
            f"Each process loads all of '{spec.name}' before it keeps its part, which takes main memory: "
            "without its weights the model looks otherwise."
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
        except Exception as error:  # whatever it is, the others wait to be told
            failed = error
    told = [(None if whole is None else _outline(whole), first_line(failed) if failed else None)]
    dist.broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    outline, reason = told[0]
    if outline is None:
        raise RunError(f"The first process could not load the model: {reason}")
    return whole, outline


def _sketched(spec: PolicySpec, sketch: Make) -> nn.Module | None:
    try:
        model = sketch(spec)
    except Exception:  # whatever it is, the model itself is there: an adapter that starts from weights, say
        return None
    # What a module keeps beside its parameters and buffers would stay without numbers.
    strays = any(isinstance(value, Tensor) for part in model.modules() for value in vars(part).values())
    return None if strays else model


def _all_agree(mine: bool) -> bool:
    """Tell whether it is so in every process: one that took another way would leave the rest waiting."""
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
    """Return parameters and buffers; what is tied comes under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _receive(model: nn.Module, whole: nn.Module | None, device: torch.device) -> None:
    """Put this process's part of the first one's numbers in the place of ``model``'s meta tensors."""
    numbers = {} if whole is None else dict(_tensors(whole))
    received: dict[int, Tensor] = {}
    places = list(_tensors(model))  # held, so that no two of them have the same id
    for name, place in places:
        if id(place) not in received:  # tied weights stay tied
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
    # A part may be a view of the whole, which shall go.
    part = DTensor.from_local(
        own.to_local().clone(), place.device_mesh, place.placements, shape=place.shape, stride=place.stride()
    )
    return nn.Parameter(part, requires_grad=place.requires_grad)
