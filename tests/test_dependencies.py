"""Imports are declared, the lowest versions declared are tested, and all that gets installed is pinned."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BUILD = ("hatchling", "editables")


def requirements(lines: list[str]) -> Iterator[Requirement]:
    """The requirements of other projects, those of our own extras among them."""
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from requirements(EXTRAS[extra])
        else:
            yield requirement


def pins(path: Path) -> dict[str, str]:
    """The version of each package that a file of constraints pins for this Python."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        if pin.marker is None or pin.marker.evaluate():
            assert pin.name not in found, f"{path.name} pins {pin.name} twice"
            found[canonicalize_name(pin.name)] = specifier.version
    return found


def lower_bounds(wanted: Iterator[Requirement]) -> dict[str, Version]:
    """The version after ``>=`` of each requirement."""
    return {canonicalize_name(one.name): Version(bound.version) for one in wanted for bound in one.specifier}


def test_the_oldest_versions_tested_are_the_lower_bounds():
    tested = pins(ROOT / "constraints-oldest.txt")
    bounds = lower_bounds(requirements([*PROJECT["dependencies"], *EXTRAS["test"]]))
    assert {name: Version(tested[name]) for name in bounds} == bounds


def test_the_newest_versions_tested_are_declared():
    tested = pins(ROOT / "constraints.txt")
    for wanted in requirements([*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["oracle"]]):
        assert SpecifierSet(str(wanted.specifier)).contains(tested[canonicalize_name(wanted.name)])
    assert {"pip", *map(canonicalize_name, BUILD)} <= set(tested)


def test_all_that_is_installed_is_pinned():
    """In an environment that the Makefile has made; it keeps its constraints there."""
    made_from = Path(sys.prefix) / "constraints.txt"
    if not made_from.exists():
        pytest.skip("`make install` made another environment than this one")
    installed = {canonicalize_name(each.name): Version(each.version).public for each in distributions()}
    del installed[PROJECT["name"]]
    pinned = pins(made_from)
    others = {name: version for name, version in installed.items() if pinned.get(name) != version}
    assert not others, "other versions than those pinned: `make constraints`, or `make clean install`"


def imported() -> set[str]:
    """The packages that the code names in any import, its lazy ones too."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "pl_prefopt").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[0] for module in modules}


def test_whatever_is_imported_is_declared():
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    declared = {canonicalize_name(each.name) for each in requirements(lines)}
    owners = packages_distributions()
    for module in imported() - sys.stdlib_module_names - {"pl_prefopt"}:
        # An extra that isn't installed is known by its module's name.
        names = {canonicalize_name(name) for name in owners.get(module, [module])}
        assert names & declared, f"pl_prefopt imports {module}, which pyproject.toml doesn't declare"
