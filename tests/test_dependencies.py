"""What the package imports is declared, and the lowest versions declared are those that are tested."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(lines: list[str]) -> Iterator[Requirement]:
    """The requirements of other projects, those of our own extras among them."""
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from requirements(EXTRAS[extra])
        else:
            yield requirement


def versions(pins: Iterable[Requirement]) -> dict[str, list[Version]]:
    return {canonicalize_name(pin.name): [Version(each.version) for each in pin.specifier] for pin in pins}


def test_the_oldest_versions_tested_are_the_lower_bounds():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if not line.startswith("#")]
    assert versions(tested) == versions(requirements([*PROJECT["dependencies"], *EXTRAS["test"]]))


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
