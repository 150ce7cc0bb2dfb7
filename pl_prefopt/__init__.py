"""Preference optimisation of language models on PyTorch Lightning.

What the rooms below export can be taken from here: ``pl_prefopt.DPO``, ``pl_prefopt.DPOModule``,
``pl_prefopt.PreferenceDataModule``, ``pl_prefopt.ReferenceEnsemble``, ``pl_prefopt.metrics``. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = ("objectives", "modules", "data", "references", "callbacks", "policies")
"""In this order: the first one that exports a name gives it."""
_WHOLE = ("functional", "metrics", "pairing", *_ROOMS)


def __getattr__(name: str) -> Any:
    if name in _WHOLE:
        return importlib.import_module(f"pl_prefopt.{name}")
    if not name.startswith("_"):
        for room in _ROOMS:
            module = importlib.import_module(f"pl_prefopt.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'pl_prefopt' has no attribute '{name}'")


def __dir__() -> list[str]:
    exported = (importlib.import_module(f"pl_prefopt.{room}").__all__ for room in _ROOMS)
    return sorted({*globals(), *_WHOLE, *(name for names in exported for name in names)})
