"""Losses, rewards and gradients of every method stay what they are."""

from __future__ import annotations

import json

import pytest
import torch

from tests.frozen.numbers import FILE, NAMES, computed

FROZEN = json.loads(FILE.read_text(encoding="utf-8"))
TOLERANCES = {"gradient": 1e-10}


def test_every_method_is_frozen():
    assert sorted(FROZEN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_gives_the_frozen_numbers(name):
    numbers = computed(name)
    assert numbers.keys() == FROZEN[name].keys()
    assert numbers.pop("counted") == FROZEN[name]["counted"]
    for key, values in numbers.items():
        frozen = torch.tensor(FROZEN[name][key], dtype=torch.float64)
        tolerance = TOLERANCES.get(key, 1e-12)
        torch.testing.assert_close(
            torch.tensor(values, dtype=torch.float64),
            frozen,
            rtol=tolerance,
            atol=tolerance,
            msg=f"{name}: {key}",
        )
