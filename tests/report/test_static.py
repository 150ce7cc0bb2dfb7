"""Figures as files."""

from __future__ import annotations

import sys

import pytest

from pl_prefopt.errors import ConfigError
from pl_prefopt.report import build_report, read_runs, write_figures
from tests.report.folders import pair_rows, write_run
from tests.support import NO_BROWSER, find_browser


def panels(tmp_path):
    return build_report(read_runs([write_run(tmp_path / "run", pair_rows())])).panels


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_every_figure_is_written_as_svg_and_png(tmp_path):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
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


def test_without_a_browser_it_says_what_to_install_and_the_page_is_there(tmp_path, monkeypatch, prefopt):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chromium"))
    write_run(tmp_path / "run", pair_rows())
    said = prefopt.fails("report", "run", "--figures", "figures")
    assert said == (
        "Wrote run/report.html\n"
        "prefopt: --figures needs a Chrome or Chromium to draw with, and found none at BROWSER_PATH "
        f"({tmp_path}/chromium): install one, for example with `apt-get install "
        "chromium`; the page's own buttons save figures in any browser.\n"
    )


def test_a_browser_that_does_not_start_is_told(tmp_path, monkeypatch, prefopt):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    monkeypatch.setenv("BROWSER_PATH", "/bin/false")
    write_run(tmp_path / "run", pair_rows())
    said = prefopt.fails("report", "run", "--figures", "figures")
    assert "--figures could not draw with the Chrome found at BROWSER_PATH (/bin/false): " in said
