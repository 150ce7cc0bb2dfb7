"""`prefopt list`: lists objectives, metrics, references, sources and judges, read from source files."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from pl_prefopt.cli.class_sources import (
    UNSURE,
    BrokenModuleError,
    ClassSource,
    Module,
    constant,
    derives_from,
    exported,
    find_class,
    is_abstract,
    read_module,
)
from pl_prefopt.cli.known_metrics import declared_by, declared_in, registered
from pl_prefopt.cli.plugins import KINDS, Plugin, documentation, installed
from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.metric_info import MetricInfo

DATA = ("pairs", "lists", "unpaired", "scores")
"""The kinds of rows, those of ``objectives.base.DataKind``."""
_PAGES = {
    "objectives": "methods/index.md",
    "metrics": "metrics.md",
    "references": "references.md",
    "sources": "data.md",
    "judges": "judges.md",
}


class Line(NamedTuple):
    """One line of the list: a name, a description and the address of a page."""

    name: str
    what: str
    page: str


class Wanted(NamedTuple):
    """Which objectives to list: those that learn from certain rows and take a number of references."""

    data: str | None
    references: int | None

    def includes(self, source: ClassSource) -> bool:
        """Return whether a class is among them; all are where nothing is asked for."""
        if self.data is not None and self.data not in (constant(source, "data") or ()):
            return False
        if self.references is None:
            return True
        fewest, most = constant(source, "references") or (0, None)
        return fewest <= self.references and (most is None or self.references <= most)


EVERY = Wanted(data=None, references=None)


class LeftOutError(Exception):
    """Raised for a plug-in that can't be used. The message is the reason."""


def list_known(arguments: list[str]) -> None:
    """Run ``prefopt list`` with the given command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="prefopt list",
        description="List what prefopt and installed plug-ins provide, with the page of each.",
    )
    parser.add_argument("kind", nargs="?", help=f"One of {', '.join(KINDS)}; all by default.")
    parser.add_argument(
        "--data", choices=DATA, help=f"Only objectives that learn from these rows: {', '.join(DATA)}."
    )
    parser.add_argument("--references", type=int, help="Only objectives that take so many references.")
    options = parser.parse_args(arguments)
    kind, wanted = options.kind, Wanted(options.data, options.references)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"expected one of {', '.join(KINDS)}, got '{kind}'{suggest(kind, KINDS) or '.'}")
    if wanted != EVERY and kind != "objectives":
        raise ConfigError("--data and --references choose among objectives: type `prefopt list objectives`.")
    for one in [kind] if kind else KINDS:
        left_out: list[str] = []
        lines = [*_own(one, wanted), *_added(one, wanted, left_out)]
        print(_table(one, lines))
        for sentence in left_out:
            print(f"prefopt: {sentence}", file=sys.stderr)


def _own(kind: str, wanted: Wanted) -> Iterator[Line]:
    """Yield the entries of prefopt itself."""
    if kind == "metrics":
        yield from (_metric_line(info, _own_page(page)) for info, page in _own_metrics())
        return
    base = _base(kind)
    if base is None:
        return
    package = ".".join(base.module.split(".")[:2])
    for path, source in sorted(exported(package).items()):
        if derives_from(source, base) and not is_abstract(source) and wanted.includes(source):
            yield Line(
                path.rpartition(".")[2], _first_line(source), _own_page(_page(source.module) or _PAGES[kind])
            )


def _own_metrics() -> Iterator[tuple[MetricInfo, str]]:
    """Yield the metrics of every run, then those that objectives add, each with its page."""
    yield from ((info, _PAGES["metrics"]) for info in registered())
    package = read_module("pl_prefopt.objectives")
    folders = package.folders if isinstance(package, Module) else ()
    for file in sorted(file for folder in folders for file in Path(folder).glob("*.py")):
        module = f"pl_prefopt.objectives.{file.stem}"
        yield from ((info, _page(module) or _PAGES["metrics"]) for info in declared_in(module))


def _added(kind: str, wanted: Wanted, left_out: list[str]) -> Iterator[Line]:
    """Yield the entries of installed plug-ins, and append errors of unusable ones to ``left_out``."""
    for plugin in installed(kind):
        try:
            yield from _plugin_lines(kind, plugin, wanted)
        except LeftOutError as error:
            left_out.append(
                f"{plugin.path}, a plug-in of the package {plugin.package}, is left out: {error}."
            )


def _plugin_lines(kind: str, plugin: Plugin, wanted: Wanted) -> Iterator[Line]:
    try:
        found = plugin.source()
    except BrokenModuleError as error:
        raise LeftOutError(f"its module is not valid Python ({error})") from error
    place = plugin.url or f"package {plugin.package}"
    if found is UNSURE:
        yield Line(plugin.name, "", place)
        return
    if not isinstance(found, ClassSource):
        raise LeftOutError("there is no such class")
    base = _base(kind)
    if base is not None and derives_from(found, base) is False:
        raise LeftOutError(f"it is not a subclass of {base.name}")
    if not wanted.includes(found):
        return
    own = _page(found.module)
    place = own if "://" in own else place
    infos = declared_by(found) if kind == "metrics" else []
    yield from (_metric_line(info, place) for info in infos)
    if not infos:
        yield Line(plugin.name, _first_line(found), place)


def _metric_line(info: MetricInfo, page: str) -> Line:
    return Line(info.label, info.help, page)


def _base(kind: str) -> ClassSource | None:
    found = find_class(KINDS[kind])
    return found if isinstance(found, ClassSource) else None


def _first_line(source: ClassSource) -> str:
    return (ast.get_docstring(source.node) or "").partition("\n")[0].replace("``", "`")


def _page(module: str) -> str:
    """Return the constant ``PAGE`` of a module, or an empty string."""
    source = read_module(module)
    statements = source.bound.get("PAGE", []) if isinstance(source, Module) else []
    values = [one.value for one in statements if isinstance(one, ast.Assign)]
    return next((str(one.value) for one in values if isinstance(one, ast.Constant)), "")


def _own_page(page: str) -> str:
    """Return the address of one of our pages: on the site if the package metadata names one, else a path."""
    site = documentation(metadata("pl-prefopt"))
    return f"{site.rstrip('/')}/{page.removesuffix('.md')}.html" if site else f"docs/{page}"


def _table(kind: str, lines: Iterable[Line]) -> str:
    lines = list(lines)
    if not lines:
        return f"{kind}: none"
    name, what = (max(len(line[place]) for line in lines) for place in (0, 1))
    rows = [f"  {line.name:<{name}}  {line.what:<{what}}  {line.page}" for line in lines]
    return "\n".join([f"{kind}:", *rows])
