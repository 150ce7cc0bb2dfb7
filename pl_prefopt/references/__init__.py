"""References: frozen models that a policy is compared with."""

from pl_prefopt.references.adapters import AdapterOff, NamedAdapter
from pl_prefopt.references.base import (
    Footprint,
    PolicyHost,
    Reference,
    ReferenceAnswers,
    ReferenceSource,
)
from pl_prefopt.references.frozen import FrozenModel
from pl_prefopt.references.initial import InitialPolicy
from pl_prefopt.references.precomputed import PrecomputedTable
from pl_prefopt.references.synced import SyncedPolicy
from pl_prefopt.references.tokens import token_answers

__all__ = [
    "AdapterOff",
    "Footprint",
    "FrozenModel",
    "InitialPolicy",
    "NamedAdapter",
    "PolicyHost",
    "PrecomputedTable",
    "Reference",
    "ReferenceAnswers",
    "ReferenceSource",
    "SyncedPolicy",
    "token_answers",
]
