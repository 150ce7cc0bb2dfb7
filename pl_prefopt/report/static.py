"""Figures as files for papers. A headless Chrome draws them, offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError
from pl_prefopt.report.figures import Panel

_SIZE = {"width": 720, "height": 440}


def write_figures(panels: Sequence[Panel], folder: Path) -> list[Path]:
    """Write each figure as ``KEY.svg`` and ``KEY.png`` (at twice the pixels) into ``folder``.

    Returns:
        The files.

    Raises:
        ConfigError: without kaleido, or without a Chrome that it finds and can start.
    """
    kaleido = _import_kaleido()
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    for panel in panels:
        if panel.figure is not None:
            size = {**_SIZE, "height": panel.figure.layout.height or _SIZE["height"]}
            for suffix, scale in (("svg", 1), ("png", 2)):
                path = folder / f"{panel.key}.{suffix}"
                options = {"format": suffix, "scale": scale, **size}
                jobs.append({"fig": panel.figure, "path": path, "opts": options})
    try:
        # Without this it would look for MathJax on the network.
        kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False}, cancel_on_error=True)
    except kaleido.errors.ChromeNotFoundError as error:
        raise ConfigError(
            f"--figures needs a Chrome or Chromium to draw with, and found none {_where()}: install one, for "
            "example with `apt-get install chromium`; the page's own buttons save figures in any browser."
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"--figures could not draw with the Chrome found {_where()}: {error}") from error
    return [job["path"] for job in jobs]


def _where() -> str:
    """Return where kaleido looks for a browser."""
    named = os.environ.get("BROWSER_PATH")
    return f"at BROWSER_PATH ({named})" if named else "on the PATH"


def _import_kaleido() -> Any:
    try:
        import kaleido.errors
    except ImportError as error:
        raise ConfigError(
            "--figures needs kaleido, which is not installed: `pip install 'pl-prefopt[report]'`; the page's "
            "own buttons save figures without it."
        ) from error
    return kaleido
