"""`prefopt configs`: lists the configurations that come with the package, or prints one."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from pl_prefopt.cli.config_files import find, names


def configs(arguments: list[str]) -> None:
    """Run ``prefopt configs`` with the given command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="prefopt configs", description="List the configurations that come with prefopt, or print one."
    )
    parser.add_argument("name", nargs="?", help="One of them, such as methods/dpo, or a file.")
    name = parser.parse_args(arguments).name
    known = names()
    group = {each: path for each, path in known.items() if each.startswith(f"{name}/")}
    if name is None or group:
        print(_listed(group or known))
    else:
        print(Path(find(name)).read_text(encoding="utf-8"), end="")


def _listed(files: dict[str, Path]) -> str:
    """Return the names with the first comment line of each file, grouped by folder."""
    width = max(map(len, files), default=0)
    lines = []
    for _, members in itertools.groupby(files.items(), key=lambda item: item[0].rpartition("/")[0]):
        lines += [f"{name:<{width}}  {_first_comment(path)}" for name, path in members] + [""]
    return "\n".join(
        [
            *lines,
            "`-c NAME` uses one (later ones override earlier ones); `prefopt configs NAME` prints it.",
        ]
    )


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.removeprefix("#").strip() if line.startswith("#") else ""
