"""What installed packages add by entry points, read from metadata and sources, imported only when named."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageMetadata, entry_points

from pl_prefopt.cli.class_sources import BrokenModuleError, ClassSource, Found, find_class
from pl_prefopt.errors import ConfigError

KINDS = {
    "objectives": "pl_prefopt.objectives.Objective",
    "metrics": "pl_prefopt.metrics.PreferenceMetric",
    "references": "pl_prefopt.references.Reference",
    "sources": "pl_prefopt.data.Source",
    "judges": None,
}
"""What can be added, and the class that each of them derives from: there are no judges yet.

The group of ``objectives`` is ``pl_prefopt.objectives``, and so on.
"""


@dataclass(frozen=True)
class Plugin:
    """A class that an installed package adds. Its short name is the class's own.

    Attributes:
        path: of the class, ``mylab.pro.PRO``.
        package: which package adds it.
        url: of the package's documentation, or nothing.
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
            BrokenModuleError: if its module is no Python.
        """
        return find_class(self.path)


def installed(kind: str) -> list[Plugin]:
    """Return the plug-ins of a kind by their paths."""
    found = {_plugin(entry) for entry in entry_points(group=f"pl_prefopt.{kind}")}
    return sorted(found, key=lambda one: one.path)


def plugin_classes() -> dict[str, ClassSource]:
    """Return the classes of all plug-ins whose source files say what they are, by path."""
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
            except Exception as error:  # whatever is wrong in someone else's module
                raise ConfigError(
                    f"{plugin.name}, a plug-in of the package {plugin.package}, can't be imported "
                    f"({type(error).__name__}: {error})."
                ) from error


def documentation(metadata: PackageMetadata) -> str:
    """Return the address of a package's documentation, or else its home page, or nothing."""
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
