"""The package as `pip install` puts it on a machine that has no checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path, kind: str, source: Path = ROOT) -> Path:
    """Build a ``wheel`` or an ``sdist`` of ``source`` into ``folder``, without the network."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    _python("hatchling", "build", "--target", kind, "--directory", str(folder), cwd=source)
    (built,) = folder.iterdir()
    return built


def install(wheel: Path, folder: Path) -> Path:
    """Install ``wheel`` into ``folder``, and nothing else."""
    _python("pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def _python(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
