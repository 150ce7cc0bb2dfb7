"""Figures as files."""

from __future__ import annotations

import sys

import pytest

from pl_prefopt.errors import ConfigError
from pl_prefopt.report import build_report, read_runs, write_figures
from tests.report.folders import pair_rows, write_run
from tests.report.test_browser import find_chrome


def panels(tmp_path):
    return build_report(read_runs([write_run(tmp_path / "run", pair_rows())])).panels


def test_every_figure_is_written_as_svg_and_png(tmp_path):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    find_chrome()
    two = [panel for panel in panels(tmp_path) if panel.key in ("calibration", "reward_length", "margin_gap")]
    written = write_figures(two, tmp_path / "figures")
    # There is no figure of margins against gaps, since these rows have none.
    names = {"calibration.svg", "calibration.png", "reward_length.svg", "reward_length.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names == {p.name for p in written}
    assert "confidence" in (tmp_path / "figures" / "calibration.svg").read_text()
    assert (tmp_path / "figures" / "calibration.png").read_bytes()[16:24] == bytes(
        [0, 0, 5, 160, 0, 0, 3, 112]
    )


def test_without_kaleido_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ConfigError, match=r"pip install 'pl-prefopt\[report\]'"):
        write_figures(panels(tmp_path), tmp_path / "figures")
