"""The files of configs/methods."""

from __future__ import annotations

import importlib
from pathlib import Path

import yaml

from pl_prefopt import objectives

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def one_of_each_family() -> list[Path]:
    """Return a file for each module and page of objectives; `tests/objectives` reads all files."""
    families: dict[tuple[str, str], Path] = {}
    for path in sorted((CONFIGS / "methods").glob("*.yaml")):
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        name = model["init_args"]["objective"]["class_path"].rpartition(".")[2]
        page = importlib.import_module(getattr(objectives, name).__module__).PAGE
        families.setdefault((model["class_path"], page), path)
    return list(families.values())
