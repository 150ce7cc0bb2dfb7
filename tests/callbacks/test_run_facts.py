"""What ``run.json`` says of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pl_prefopt.callbacks import RunFacts
from pl_prefopt.evaluations import FACTS


@pytest.mark.parametrize(("run", "first"), [("this", 0), ("other", 30)])
def test_a_run_began_at_the_step_of_another_run_s_checkpoint_only(tmp_path, monkeypatch, run, first):
    """Also where its file is missing or damaged."""
    (tmp_path / "this").mkdir()
    (tmp_path / "this" / FACTS).write_text("{")
    facts = RunFacts(str(tmp_path / "this"))
    written = []
    monkeypatch.setattr(facts, "_write", lambda trainer, module: written.append(facts._first_step))
    checkpoint = tmp_path / run / "checkpoints" / "last.ckpt"
    facts.on_train_start(SimpleNamespace(global_step=30, ckpt_path=str(checkpoint)), None)
    assert written == [first]
