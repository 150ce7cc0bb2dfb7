"""Reading and writing a run's ``config.yaml`` so that the run can be moved, copied and used from any folder.

A run is the folder of its ``config.yaml``. Paths inside it are written relative to the file. Other relative
paths, such as those of data and models, are written as given; ``paths_from`` records the folder that they are
relative to, both relative to the file, for a project that is moved as a whole, and as an absolute path, for a
run that is moved by itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError
from pl_prefopt.paths import matching
from pl_prefopt.yaml_files import read_yaml

FILE_NAME = "config.yaml"
ORIGINS = "paths_from"

_SECTIONS = ("trainer", "model", "data", "references", "best", "last", "run_dir")
_IN_RUN = (("best", "dirpath"), ("last", "dirpath"), ("trainer", "default_root_dir"))
_WITH_INPUTS = ("model", "data", "references")
_PLACES = {
    *("data.tokenizer", "data.cache_dir", "references.cache_dir"),
    *("policy.name", "policy.adapter", "model.name", "model.adapter"),
    *("init_args.folder", "init_args.head_from", "init_args.samples"),
}
"""Settings that name a file or folder, by their last two keys; elsewhere, a slash indicates a path."""

_SPLITS = ("train", "val", "test", "predict")


def portable(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings in the form in which they are written to ``folder``.

    Args:
        settings: the settings of a command; relative paths are relative to the working directory.
        folder: the folder of the file: the run folder or, for an evaluation, a subfolder.
    """
    here, folder, run = Path.cwd(), folder.resolve(), Path(settings["run_dir"]).resolve()
    saved = copy.deepcopy({key: value for key, value in settings.items() if key not in (ORIGINS, "run_dir")})
    for owner, key in _outputs(saved):
        place = Path(owner[key]).resolve()
        inside = place.is_relative_to(run)
        owner[key] = os.path.relpath(place, folder) if inside else str(place)
        if inside and key == "ckpt_path" and folder == run:
            owner[key] = None  # resuming is not part of how to repeat the run
    # The first and the last key: a truncated file lacks the last one.
    origins = {ORIGINS: [os.path.relpath(here, folder), str(here)]}
    return {**origins, **saved, "run_dir": os.path.relpath(run, folder)}


def is_saved(file: Path) -> bool:
    """Return whether ``file`` is, or is in the place of, a run's ``config.yaml``."""
    if file.name != FILE_NAME or not file.is_file():
        return False
    if file.read_bytes().startswith(f"{ORIGINS}:".encode()):
        return True
    run = _run_of(file)
    return (run / ".lock").exists() or any((run / "checkpoints").glob("*.ckpt"))


def read_settings(file: Path) -> dict[str, Any]:
    """Return the contents of a run's ``config.yaml``.

    Raises:
        ConfigError: if it is corrupt.
    """
    try:
        settings = read_yaml(file)
    except ConfigError as error:
        raise _damaged(file, str(error).removeprefix(str(file)).lstrip(",: ").rstrip(".")) from error
    if not isinstance(settings, dict):
        raise _damaged(file, "it is empty" if settings is None else "it is not a mapping of settings")
    if ORIGINS in settings or is_saved(file):
        missing = [name for name in _SECTIONS if settings.get(name) is None]
        if missing:
            raise _damaged(file, f"it lacks '{missing[0]}'")
    return settings


def read_saved(file: Path) -> dict[str, Any]:
    """Return a run's settings with paths that work from the working directory.

    ``run_dir`` is the current folder of the file, or its parent for an evaluation.

    Raises:
        ConfigError: if the file is corrupt.
    """
    settings = read_settings(file)
    origins = settings.pop(ORIGINS, None)
    return _of_now(settings, file, origins) if origins else _of_an_earlier_version(settings, file)


def _of_now(settings: dict[str, Any], file: Path, origins: Sequence[str]) -> dict[str, Any]:
    for owner, key in (*_outputs(settings), (settings, "run_dir")):
        owner[key] = os.path.normpath(file.parent / owner[key])
    return _resolved(settings, [file.parent.resolve() / origin for origin in origins])


def _of_an_earlier_version(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    """Read a file of an earlier version, which wrote all paths as given, including ``run_dir``."""
    if not settings.get("run_dir"):
        return settings
    before, run = Path(os.path.normpath(settings["run_dir"])), _run_of(file)
    for owner, key in _outputs(settings):
        place = Path(os.path.normpath(owner[key]))
        if place.is_relative_to(before):
            owner[key] = str(run / place.relative_to(before))
    settings["run_dir"] = str(run)
    started = run.resolve().joinpath(*[".."] * len(before.parts))
    return settings if before.is_absolute() else _resolved(settings, [started])


def _outputs(settings: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the settings that name an output folder, each as the mapping that has it and its key."""
    owners = [(settings.get(section), key) for section, key in _IN_RUN]
    places = [*owners, (settings, "ckpt_path")]
    return [(owner, key) for owner, key in places if isinstance(owner, dict) and owner.get(key)]


def _run_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name in ("validate", "test", "predict") else file.parent


def _resolved(settings: dict[str, Any], origins: Sequence[Path]) -> dict[str, Any]:
    for section in _WITH_INPUTS:
        for owner, key in _places(settings.get(section), section):
            owner[key] = _found(owner[key], origins)
    data = settings.get("data")
    for split in _SPLITS if isinstance(data, dict) else ():
        for owner, key in _places_of_rows(data, split):
            owner[key] = _found(owner[key], origins)
    return settings


def _places_of_rows(owner: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where a split's setting has paths: a path, a source, a list of such, or a mapping by name."""
    value = owner.get(key) if isinstance(owner, dict) else owner[key]
    if isinstance(value, str):
        yield owner, key
    elif isinstance(value, dict):
        for name in ["path"] if "path" in value else value:
            yield from _places_of_rows(value, name)
    elif isinstance(value, list):
        for number in range(len(value)):
            yield from _places_of_rows(value, number)


def _places(value: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the places where relative paths may occur: the mapping or list, and the key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if not isinstance(item, str):
            yield from _places(item, str(key))
        elif item and "\n" not in item and ("/" in item or f"{name}.{key}" in _PLACES):
            yield value, key


def _found(path: str, origins: Sequence[Path]) -> str:
    """Return the path relative to the first of ``origins`` where it exists; unchanged if there is none."""
    for origin in origins:
        place = origin / path
        if place.exists():
            is_here = Path(path).exists() and place.samefile(path)
            return path if is_here else os.path.normpath(place.absolute())
        if found := matching(place):
            is_here = [one.resolve() for one in matching(Path(path))] == [one.resolve() for one in found]
            return path if is_here else os.path.normpath(place.absolute())
    return path


def _damaged(file: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{file} is damaged, or was not written by `prefopt fit` ({reason}): restore a complete copy, or "
        "pass the files and arguments that the run was started with, and its --run_dir."
    )
