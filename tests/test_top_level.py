"""What the package itself exports, and that it imports nothing for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pl_prefopt


def test_the_package_exports_what_its_rooms_export_once():
    for name in (
        "DPO",
        "DPOModule",
        "PreferenceDataModule",
        "ReferenceEnsemble",
        "InitialPolicy",
        "PolicySpec",
    ):
        assert getattr(pl_prefopt, name).__name__ == name
        assert name in dir(pl_prefopt)
    assert pl_prefopt.metrics.PreferenceAccuracy is not None
    homes = {}
    for room in pl_prefopt._ROOMS:
        for name in getattr(pl_prefopt, room).__all__:
            first = homes.setdefault(name, getattr(getattr(pl_prefopt, room), name))
            assert first is getattr(getattr(pl_prefopt, room), name), f"two rooms export another {name}"
    with pytest.raises(AttributeError, match="module 'pl_prefopt' has no attribute 'NoSuchThing'"):
        _ = pl_prefopt.NoSuchThing
    assert not hasattr(pl_prefopt, "__wrapped__")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, pl_prefopt; assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
