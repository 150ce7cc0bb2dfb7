"""What is wrong with a configuration, in one sentence: which file, which key, and what would be right.

The parser underneath reports a nested mistake as a failed union of types. Once it has refused a
configuration, this module walks over the same files and arguments and looks for a class or a setting that
does not exist.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from pl_prefopt.errors import nearest
from pl_prefopt.modules import PreferenceModule
from pl_prefopt.references import Reference

_ROOTS: dict[tuple[str, ...], type] = {
    ("model",): PreferenceModule,
    ("references", "members"): Reference,
    ("trainer", "callbacks"): Callback,
    ("trainer", "logger"): Logger,
}
_CONFIG_OPTIONS = ("-c", "--config")

Key = tuple[str | int, ...]


class Mistake(NamedTuple):
    """A key of the configuration and what is wrong with it."""

    key: Key
    what: str


class Given(NamedTuple):
    """One file or argument of the command line, and the settings in it."""

    origin: str
    settings: Any


def explain(arguments: Sequence[str]) -> str | None:
    """Return a sentence on the first mistake of ``prefopt``'s arguments, or nothing if none is found."""
    try:
        given = list(_given(arguments))
    except _BrokenFileError as broken:
        return str(broken)
    whole: Any = {}
    for one in given:
        whole = _merged(whole, one.settings)
    for root, kind in _ROOTS.items():
        for mistake in _mistakes(_at(whole, root), (kind,), root):
            key = ".".join(str(part) for part in mistake.key)
            return f"{origin_of(arguments, mistake.key)}{key}: {mistake.what}"
    return None


def origin_of(arguments: Sequence[str], key: Key) -> str:
    """Return ``"FILE: "`` for the last configuration file that sets ``key``, or nothing."""
    try:
        given = list(_given(arguments))
    except _BrokenFileError:
        return ""
    for one in reversed(given):
        if _at(one.settings, key) is not None:
            return f"{one.origin}: " if one.origin else ""
    return ""


def _given(arguments: Sequence[str]) -> Iterator[Given]:
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            continue
        value = value if equals else next(words, "")
        if option in _CONFIG_OPTIONS:
            if Path(value).is_file():
                yield Given(value, _read(value))
        else:
            yield Given("", _nested(option.lstrip("-").split("."), value))


class _BrokenFileError(Exception):
    """A configuration file that is no YAML."""


def _read(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _BrokenFileError(f"{file}, line {line}: {error.problem}: this is no YAML.") from error


def _nested(keys: Sequence[str], value: str) -> Any:
    try:
        settings = yaml.safe_load(value)
    except yaml.YAMLError:
        settings = value
    for key in reversed(keys):
        settings = {key: settings}
    return settings


def _merged(earlier: Any, later: Any) -> Any:
    if not (isinstance(earlier, Mapping) and isinstance(later, Mapping)):
        return later
    return {**earlier, **{key: _merged(earlier.get(key), value) for key, value in later.items()}}


def _at(settings: Any, key: Key) -> Any:
    for part in key:
        if isinstance(settings, Mapping):
            settings = settings.get(part)
        elif isinstance(settings, list) and isinstance(part, int) and part < len(settings):
            settings = settings[part]
        else:
            return None
    return settings


def _mistakes(value: Any, kinds: tuple[type, ...], key: Key) -> Iterator[Mistake]:
    """Walk over what is set for a parameter that takes objects of ``kinds``."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _mistakes(item, kinds, (*key, number))
    elif isinstance(value, str) and kinds and not Path(value).is_file():
        found, problem = _find_class(value, kinds)
        if found is None:
            yield Mistake(key, problem)
    elif isinstance(value, Mapping) and "class_path" in value:
        found, problem = _find_class(str(value["class_path"]), kinds)
        if found is None:
            yield Mistake((*key, "class_path"), problem)
        else:
            yield from _wrong_settings(found, value.get("init_args"), (*key, "init_args"))
    elif isinstance(value, Mapping) and len(kinds) == 1 and not inspect.isabstract(kinds[0]):
        yield from _wrong_settings(kinds[0], value, key)


def _wrong_settings(kind: type, settings: Any, key: Key) -> Iterator[Mistake]:
    if not isinstance(settings, Mapping):
        return
    parameters, takes_any = _parameters(kind)
    for name, value in settings.items():
        if name in parameters:
            yield from _mistakes(value, _classes(parameters[name]), (*key, name))
        elif not takes_any:
            what = f"{kind.__name__} has no setting '{name}'{nearest(name, parameters) or '.'}"
            yield Mistake((*key, name), f"{what} It has {', '.join(parameters) or 'none'}.")


def _parameters(kind: type) -> tuple[dict[str, Any], bool]:
    """Return the annotation of each setting that ``kind`` takes, and whether it takes any others.

    A constructor that ends in ``**options`` passes them to the class above it.
    """
    found: dict[str, Any] = {}
    for one in kind.__mro__:
        if "__init__" not in vars(one):
            continue
        try:
            parameters = inspect.signature(one, eval_str=True).parameters.values()
        except NameError:  # annotations whose imports only a type checker sees
            parameters = inspect.signature(one).parameters.values()
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter.annotation)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, True


def _find_class(class_path: str, kinds: tuple[type, ...]) -> tuple[type | None, str]:
    known = {_public_name(one): one for kind in kinds for one in _concrete_below(kind)}
    listed = f" Known are {_listed(known)}." if known else ""
    by_name = {name.rpartition(".")[2]: one for name, one in known.items()}
    if class_path in by_name:
        return by_name[class_path], ""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        return None, f"{class_path} can't be imported ({error}): is its folder on PYTHONPATH?{listed}"
    except Exception as error:  # whatever is wrong in someone's own module
        return None, f"{class_path} can't be imported ({type(error).__name__}: {error})."
    if not isinstance(found, type):
        return None, _unknown(class_path, known) + listed
    if kinds and not issubclass(found, kinds):
        return None, f"{class_path} is no {kinds[0].__name__}.{listed}"
    return found, ""


def _listed(known: Iterable[str]) -> str:
    """Return ``"A, B in package; C in other"``."""
    parts = sorted({name.rpartition(".")[::2] for name in known})
    packages = itertools.groupby(parts, key=lambda part: part[0])
    return "; ".join(f"{', '.join(name for _, name in those)} in {package}" for package, those in packages)


def _unknown(class_path: str, known: Mapping[str, type]) -> str:
    short = [name.rpartition(".")[2] for name in known]
    return f"there is no class '{class_path}'{nearest(class_path, [*known, *short]) or '.'}"


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the classes of this package and of Lightning that an annotation names."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return (hint,) if hint.__module__.split(".")[0] in ("pl_prefopt", "lightning") else ()
    return tuple(one for part in typing.get_args(hint) for one in _classes(part))


def _concrete_below(kind: type) -> Iterator[type]:
    below: list[type] = kind.__subclasses__()
    for one in below:
        if not inspect.isabstract(one) and not one.__name__.startswith("_"):
            yield one
        yield from _concrete_below(one)


def _public_name(kind: type) -> str:
    """Return the class's path as one would import it: from the package, where that exports it."""
    package = kind.__module__.rpartition(".")[0]
    exported = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if exported else kind.__module__}.{kind.__name__}"
