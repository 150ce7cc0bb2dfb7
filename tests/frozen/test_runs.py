"""Short seeded runs give the losses that they gave before: nothing changes for those who train."""

from __future__ import annotations

import json

import pytest

from tests.frozen.numbers import NAMES
from tests.frozen.runs import FILE, STEPS, trained

FROZEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_the_frozen_losses(name, tiny_model, tmp_path):
    found = trained(name, tmp_path, tiny_model)
    # Processors differ by 3e-8: norms are computed in float32, and AdamW divides by small gradients.
    assert found == pytest.approx(FROZEN[name], rel=1e-6, abs=1e-6)
    assert len({round(loss, 6) for loss in found}) == STEPS, "something is learned"
