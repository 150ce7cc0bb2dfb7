"""Preference optimisation of language models on PyTorch Lightning.

What the rooms below export can be taken from here: ``pl_prefopt.DPO``, ``pl_prefopt.DPOModule``,
``pl_prefopt.PreferenceDataModule``, ``pl_prefopt.ReferenceEnsemble``, ``pl_prefopt.metrics``. ``fit`` trains
as the command line does. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pl_prefopt import functional as functional
    from pl_prefopt import metrics as metrics
    from pl_prefopt import pairing as pairing
    from pl_prefopt.callbacks import *
    from pl_prefopt.cli.from_python import Run as Run
    from pl_prefopt.cli.from_python import fit as fit
    from pl_prefopt.data import *
    from pl_prefopt.modules import *
    from pl_prefopt.objectives import *
    from pl_prefopt.policies import *
    from pl_prefopt.references import *

_ROOMS = ("objectives", "modules", "data", "references", "callbacks", "policies")
"""In this order: the first one that exports a name gives it."""
_WHOLE = ("functional", "metrics", "pairing", *_ROOMS)
_OF_COMMANDS = ("Run", "fit")

if not TYPE_CHECKING:  # a type checker should report unknown names

    def __getattr__(name: str) -> Any:
        if name in _WHOLE:
            return importlib.import_module(f"pl_prefopt.{name}")
        if name in _OF_COMMANDS:
            return getattr(importlib.import_module("pl_prefopt.cli.from_python"), name)
        if not name.startswith("_"):
            for room in _ROOMS:
                module = importlib.import_module(f"pl_prefopt.{room}")
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module 'pl_prefopt' has no attribute '{name}'")


def __dir__() -> list[str]:
    exported = (importlib.import_module(f"pl_prefopt.{room}").__all__ for room in _ROOMS)
    return sorted({*globals(), *_WHOLE, *_OF_COMMANDS, *(name for names in exported for name in names)})
