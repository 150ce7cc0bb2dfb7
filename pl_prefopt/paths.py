"""Names that may be a path here or a name on the hub, and what to say where nothing is."""

from __future__ import annotations

from pathlib import Path

from pl_prefopt.errors import suggest

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".tsv")


def is_path(name: str) -> bool:
    """Tell whether ``name`` can only be a path: a hub name is ``name`` or ``owner/name``.

    Examples:
        >>> is_path("./model"), is_path("runs/mine/exported"), is_path("HuggingFaceTB/SmolLM2-135M-Instruct")
        (True, True, False)
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def is_data_path(name: str) -> bool:
    """Tell whether ``name`` can only be a path to data: also one that ends as data files do."""
    return is_path(name) or data_suffix(Path(name)) in _DATA_SUFFIXES


def data_suffix(path: Path) -> str:
    """Return the suffix in lower case, looking behind ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def missing_data(path: Path) -> str:
    """Return a sentence on a file or folder of data that isn't there."""
    folder = path.parent
    if not folder.is_dir():
        return f"expected data at {path}, but there is no folder {folder}; check `path`"
    if path.is_symlink():
        target = path.readlink()
        return f"expected data at {path}, but that is a link to {target}, where no file is; mend it"
    hint = suggest(path.name, sorted(p.name for p in folder.iterdir()))
    return f"expected data at {path}, but {folder.resolve()} has no such file; check `path`{hint}"


def missing_folder(name: str) -> str:
    """Return a sentence on a model's folder that isn't there."""
    path = Path(name)
    if path.is_file():
        return f"expected a folder or a name on the hub, but {name} is a file."
    if name.startswith("~"):
        return f"there is no folder {name}: write out the home directory that ~ stands for."
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {name}: {parent} doesn't exist either."
    folders = [str(entry) for entry in parent.iterdir() if entry.is_dir()]
    return f"there is no folder {name}{suggest(str(path), folders) or '.'}"
