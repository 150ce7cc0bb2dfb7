"""The memory of the device to plan for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from pl_prefopt.errors import ConfigError, suggest

GIB = 2**30
_UNITS = {"GIB": GIB, "GB": 10**9, "MIB": 2**20, "MB": 10**6}
_GPUS = {
    "T4": 16,
    "V100-16G": 16,
    "V100-32G": 32,
    "L4": 24,
    "A10": 24,
    "RTX3090": 24,
    "RTX4090": 24,
    "RTX5090": 32,
    "A40": 48,
    "A6000": 48,
    "L40S": 48,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
"""Nominal GiB; CUDA can allocate a few percent less, for which ``COMFORTABLE`` leaves room."""

COMFORTABLE = 0.9
"""The share of a device that a plan may fill: the rest is for the CUDA context and fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device to plan for.

    Attributes:
        name: its display name.
        memory: its size in bytes.
    """

    name: str
    memory: int


def device_of(*, gpu: str | None, memory: str | None) -> Device | None:
    """Return the requested device, else the first CUDA device of this machine, else ``None``.

    Args:
        gpu: a name such as ``A100-80G``.
        memory: an amount such as ``24GiB``.

    Raises:
        ConfigError: if the GPU is unknown, the amount can't be parsed, or both are given.
    """
    if gpu is not None and memory is not None:
        raise ConfigError("Expected --gpu or --memory, got both: leave one of them out.")
    if memory is not None:
        return Device(name=f"A device with {memory}", memory=_bytes(memory))
    if gpu is not None:
        if gpu.upper() not in _GPUS:
            known = ", ".join(_GPUS)
            sizes = [name for name in _GPUS if name.startswith(f"{gpu.upper()}-")]
            hint = f"; say which: {' or '.join(sizes)}." if sizes else suggest(gpu.upper(), _GPUS) or "."
            raise ConfigError(
                f"Expected --gpu to be one of {known}; got '{gpu}'{hint} For another, give its --memory, "
                "such as 24GiB."
            )
        return Device(name=gpu.upper(), memory=_GPUS[gpu.upper()] * GIB)
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(name=found.name, memory=found.total_memory)
    return None


def _bytes(amount: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM]i?B)\s*", amount, flags=re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"Expected --memory to be an amount such as 24GiB or 80GB, got '{amount}'.")
    return int(float(found[1]) * _UNITS[found[2].upper()])
