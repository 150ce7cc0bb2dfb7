"""Fixtures shared by all tests. Nothing here may touch the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a worker: two workers with two threads each on two cores mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random Llama with a ChatML tokeniser."""
    from tests.support import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real preference data, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared preference data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def prefopt(monkeypatch, capsys, tmp_path):
    """Return the command line, to be called with its arguments; its working folder is ``tmp_path``."""
    from tests.runs import CommandLine

    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)
