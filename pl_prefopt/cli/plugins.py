"""Plug-ins: classes that installed packages add by entry points, imported only when a run names them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageMetadata, entry_points

from pl_prefopt.cli.class_sources import BrokenModuleError, ClassSource, Found, find_class
from pl_prefopt.errors import ConfigError

KINDS = {
    "objectives": "pl_prefopt.objectives.Objective",
    "metrics": "pl_prefopt.metrics.PreferenceMetric",
    "references": "pl_prefopt.references.Reference",
    "sources": "pl_prefopt.data.Source",
    "judges": "pl_prefopt.judges.Judge",
}
"""The kinds of plug-ins with their base classes.

The group of ``objectives`` is ``pl_prefopt.objectives``, and so on.
"""


@dataclass(frozen=True)
class Plugin:
    """A class that an installed package adds. Its short name is the name of the class.

    Attributes:
        path: the path of the class, such as ``mylab.ranking.GapRanking``.
        package: the package that adds it.
        url: the URL of the package's documentation, or an empty string.
    """

    path: str
    package: str
    url: str

    @property
    def name(self) -> str:
        """The short name."""
        return self.path.rpartition(".")[2]

    def source(self) -> Found:
        """Return the class.

        Raises:
            BrokenModuleError: if its module is not valid Python.
        """
        return find_class(self.path)


@cache
def installed(kind: str) -> list[Plugin]:
    """Return the plug-ins of a kind, sorted by path. Cached until ``forget_plugins``."""
    found = {_plugin(entry) for entry in entry_points(group=f"pl_prefopt.{kind}")}
    return sorted(found, key=lambda one: one.path)


def forget_plugins() -> None:
    """Look for plug-ins anew: one process may run several commands, and install packages between them."""
    installed.cache_clear()


def plugin_classes() -> dict[str, ClassSource]:
    """Return the classes of all plug-ins whose source files can be read, by path."""
    return dict(_readable(plugin for kind in KINDS for plugin in installed(kind)))


def load_plugins(names: Iterable[str]) -> None:
    """Import the plug-ins among the short names of classes, so that the parser finds them.

    Raises:
        ConfigError: if one can't be imported.
    """
    wanted = {name for name in names if "." not in name}
    for plugin in [one for kind in KINDS for one in installed(kind)] if wanted else []:
        if plugin.name in wanted:
            try:
                importlib.import_module(plugin.path.rpartition(".")[0])
            except Exception as error:  # a plug-in's module can raise anything
                raise ConfigError(
                    f"{plugin.name}, a plug-in of the package {plugin.package}, can't be imported "
                    f"({type(error).__name__}: {error})."
                ) from error


def documentation(metadata: PackageMetadata) -> str:
    """Return the URL of a package's documentation or home page, or an empty string."""
    named = [entry.partition(",") for entry in metadata.get_all("Project-URL") or ()]
    urls = {label.strip().lower(): url.strip() for label, _, url in named}
    return urls.get("documentation") or urls.get("homepage") or ""


def _plugin(entry: EntryPoint) -> Plugin:
    path = f"{entry.module}.{entry.attr}" if entry.attr else entry.module
    if entry.dist is None:
        return Plugin(path, "of no name", "")
    return Plugin(path, entry.dist.name, documentation(entry.dist.metadata))


def _readable(plugins: Iterable[Plugin]) -> Iterator[tuple[str, ClassSource]]:
    for plugin in plugins:
        try:
            found = plugin.source()
        except BrokenModuleError:
            continue
        if isinstance(found, ClassSource):
            yield plugin.path, found
