"""The notebooks run with a tiny model, and what is committed of them is small."""

from __future__ import annotations

import sys

import pytest

from scripts.site.notebooks import NOTEBOOKS, run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mylab", None)  # that of a page, which another test may have imported
    made = run(path, model=str(tiny_model))
    sys.modules.pop("mylab", None)
    printed = "".join(one.text for cell in made.cells for one in cell.get("outputs", ()))
    assert "accuracy" in printed
    assert path.stat().st_size < 20_000
