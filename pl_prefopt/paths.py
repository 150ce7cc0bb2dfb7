"""Names that may be a local path or a name on the hub, and messages for missing files."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_prefopt.errors import printable, suggest

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".tsv")


def is_path(name: str) -> bool:
    """Return whether ``name`` can only be a path: a hub name is ``name`` or ``owner/name``.

    Examples:
        >>> is_path("./model"), is_path("runs/mine/exported"), is_path("HuggingFaceTB/SmolLM2-135M-Instruct")
        (True, True, False)
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def is_data_path(name: str) -> bool:
    """Return whether ``name`` can only be a path to data; a data file's suffix also shows this."""
    return is_path(name) or data_suffix(Path(name)) in _DATA_SUFFIXES


def data_suffix(path: Path) -> str:
    """Return the suffix in lower case, ignoring ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def paths_in(source: Any) -> list[str]:
    """Return the paths, patterns and hub names in a setting such as ``data.train``.

    Examples:
        >>> paths_in("a.jsonl"), paths_in({"path": "b.jsonl", "split": "test"})
        (['a.jsonl'], ['b.jsonl'])
        >>> paths_in(["a.jsonl", {"path": "b.jsonl"}]), paths_in({"helpful": "a.jsonl"})
        (['a.jsonl', 'b.jsonl'], ['a.jsonl'])
    """
    if isinstance(source, str):
        return [source]
    if isinstance(source, Mapping):
        members = [source["path"]] if isinstance(source.get("path"), str) else list(source.values())
    else:
        members = list(source) if isinstance(source, list | tuple) else []
    return [path for member in members for path in paths_in(member)]


def matching(path: Path) -> list[Path]:
    """Return the files that match a pattern, in sorted order; a name that exists is no pattern."""
    name = str(path.expanduser())
    if not glob.has_magic(name) or Path(name).exists():
        return []
    return sorted(found for found in map(Path, glob.glob(name, recursive=True)) if found.is_file())


def missing_data(path: Path) -> str:
    """Return the error message for a missing file or folder of data."""
    shown = _shown(path)
    if str(path).startswith("{"):
        return f"expected a path or a list, got {shown}; write named sources to a YAML file, for `-c`"
    if glob.has_magic(str(path)):
        return f"expected files that match {shown}, got none; check the pattern"
    folder = path.parent
    if not folder.is_dir():
        return f"expected data at {shown}, but there is no folder {_shown(folder)}; check `path`"
    if path.is_symlink():
        target = path.readlink()
        return f"expected data at {shown}, but that is a broken link to {_shown(target)}; fix it"
    hint = suggest(path.name, sorted(p.name for p in folder.iterdir()))
    return f"expected data at {shown}, but {_shown(folder.resolve())} has no such file; check `path`{hint}"


def _shown(path: Path) -> str:
    return printable(str(path), limit=400)


def missing_folder(name: str) -> str:
    """Return the error message for a missing folder of a model."""
    path = Path(name)
    if path.is_file():
        return f"expected a folder or a name on the hub, but {name} is a file."
    if name.startswith("~"):
        return f"there is no folder {name}: replace ~ with the path of the home directory."
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {name}: {parent} doesn't exist either."
    folders = [str(entry) for entry in parent.iterdir() if entry.is_dir()]
    return f"there is no folder {name}{suggest(str(path), folders) or '.'}"
