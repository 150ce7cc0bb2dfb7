"""The house's one rule of construction: a package imports only packages below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pl_prefopt"
LAYERS = [
    {"compiling", "errors", "files", "keywords", "metric_info", "rows"},
    {"checks", "fast_layers", "pairing", "processes", "requests"},
    {"attention", "evaluations", "paths", "servers", "types", "views", "yaml_files"},
    {"data", "functional", "policies", "rewards", "saved_settings", "scoring"},
    {"generation", "heads", "metrics", "objectives", "references"},
    {"callbacks", "judges", "modules", "report", "sweeps"},
    {"benchmarks", "planning", "rounds"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def rooms():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pl_prefopt."):
            yield node.module.split(".")[1]
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("pl_prefopt."))


@pytest.mark.parametrize("path", rooms(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in set(imported(path)) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{own} may not import {other}"


def test_every_room_has_a_floor():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in rooms()}
    assert names == set(LEVEL)
