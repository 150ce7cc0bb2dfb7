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


@pytest.fixture(autouse=True)
def no_launcher():
    """Take away what Lightning notes for processes that it starts: later tests would join them."""
    yield
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


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


@pytest.fixture(params=["plain", "avx512_bf16"])
def cpu_of_bitsandbytes(request, monkeypatch):
    """Take both ways of bitsandbytes on a CPU, whichever this one has.

    On processors with AVX512-BF16 it repacks 4-bit weights when it evaluates them. Its kernel for repacked
    weights is not emulated: a layer that gets there gives wrong numbers.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if hasattr(modules, "has_avx512bf16"):  # 0.48 has but one way
        monkeypatch.setattr(modules, "has_avx512bf16", lambda: request.param == "avx512_bf16")
    return request.param


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what a wheel of the package installs, and nothing else."""
    from tests.wheels import build, install

    wheel = build(tmp_path_factory.mktemp("wheel"), "wheel")
    return install(wheel, tmp_path_factory.mktemp("installed") / "packages")
