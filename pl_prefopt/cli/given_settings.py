"""The settings given on a command line: per file and argument, and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pl_prefopt.cli.default_settings import SETTINGS
from pl_prefopt.errors import ConfigError
from pl_prefopt.paths import data_suffix
from pl_prefopt.saved_settings import is_saved, read_saved
from pl_prefopt.yaml_files import load_yaml, read_yaml

CONFIG_OPTIONS = ("-c", "--config")
_SPEC = ("class_path", "init_args", "dict_kwargs")
_WITHOUT_VALUE = ("--print_config",)

Key = tuple[str | int, ...]


class Given(NamedTuple):
    """One file or argument of the command line, and the settings in it."""

    origin: str
    settings: Any


class Written(NamedTuple):
    """A list or mapping written as an argument, which could also be meant as text."""

    text: str
    value: Any


def given_settings(arguments: Sequence[str]) -> Iterator[Given]:
    """Yield the settings of each file and each option, in order.

    Raises:
        ConfigError: if a file can't be read, an option has no value, or an argument is not an option.
    """
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not option.startswith("-"):
            hint = f": pass settings files with `-c {option}`" if option.endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"unexpected argument '{option}'{hint or ', which is not an option'}.")
        if option in _WITHOUT_VALUE:
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"the option {option} has no value.")
            value = words.pop(0)
        if option in CONFIG_OPTIONS:
            yield Given(value, _file_settings(value))
        else:
            yield Given("", nested(option.lstrip("-").split("."), _value(value)))


def _file_settings(name: str) -> Mapping[str, Any]:
    if data_suffix(Path(name)) in (".jsonl", ".csv", ".parquet"):
        raise ConfigError(f"{name} is not a YAML file with settings: pass rows with `--data.train {name}`.")
    file = Path(name)
    settings = read_saved(file) if is_saved(file) else read_yaml(file)
    if settings is None:
        raise ConfigError(f"{name} is empty: expected settings, one `name: value` per line.")
    if not isinstance(settings, Mapping):
        what = "a list" if isinstance(settings, list) else f"'{settings}'"
        raise ConfigError(f"{name} contains {what}: expected settings, one `name: value` per line.")
    return settings


def _value(text: str) -> Any:
    """Return an argument's value, parsed as YAML."""
    try:
        value = load_yaml(text, "an argument")
    except ConfigError:
        return text
    return Written(text, value) if isinstance(value, list | Mapping) else value


def nested(keys: Sequence[str], value: Any) -> Any:
    """Return ``{"a": {"b": value}}`` for the keys a and b."""
    for key in reversed(keys):
        value = {key: value}
    return value


def merged(given: Sequence[Given]) -> Any:
    """Return the default settings merged with those given; later ones override earlier ones.

    This follows the parser: a mapping is merged into a mapping, or into the last item of a list. Settings of
    a class that is later replaced by another are dropped, since the other need not have them.
    """
    whole: Any = {}
    for key, value in SETTINGS.items():
        whole = _merge(whole, nested(key.split("."), value))
    for one in given:
        whole = _merge(whole, one.settings)
    return whole


def _merge(earlier: Any, later: Any) -> Any:
    earlier = earlier.value if isinstance(earlier, Written) else earlier
    if isinstance(later, Written) and isinstance(earlier, Mapping):
        later = later.value
    if not isinstance(later, Mapping):
        is_class = isinstance(earlier, Mapping) and "class_path" in earlier and isinstance(later, str)
        return _merge(earlier, {"class_path": later}) if is_class else later
    if isinstance(earlier, str):
        earlier = {"class_path": earlier}
    if isinstance(earlier, list) and earlier:
        return [*earlier[:-1], _merge(earlier[-1], later)]
    if not isinstance(earlier, Mapping):
        return _merge_mapping({}, later)
    return _merge_class(earlier, later)


def _merge_class(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    if "class_path" in earlier and not set(later) & set(_SPEC):
        later = {"init_args": later}
    if "class_path" in later and later["class_path"] != earlier.get("class_path"):
        return {**_merge_mapping({}, later), DROPPED: bool(earlier)}
    return _merge_mapping(earlier, later)


DROPPED = "\0dropped"
"""Marks a mapping whose class replaced another; it may have settings of the replaced class."""


def _merge_mapping(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(earlier)
    for key, value in later.items():
        if isinstance(key, str) and key.endswith("+"):
            before = result.get(key[:-1])
            added = value if isinstance(value, list) else [value]
            result[key[:-1]] = [*(before if isinstance(before, list) else []), *added]
        else:
            result[key] = _merge(result.get(key), value)
    return result


def at(settings: Any, key: Key) -> Any:
    """Return the value of a key, or ``None``; abbreviated keys such as ``model.policy`` count."""
    for part in key:
        if isinstance(settings, Written):
            settings = settings.value
        if isinstance(settings, Mapping):
            if isinstance(part, int) or (part == "init_args" and not set(settings) & set(_SPEC)):
                continue
            settings = settings.get(part)
        elif isinstance(settings, list) and isinstance(part, int) and part < len(settings):
            settings = settings[part]
        elif not (isinstance(settings, str) and part == "class_path"):
            return None
    return settings


def origin_of(given: Sequence[Given], key: Key) -> str:
    """Return ``"FILE: "`` for the last configuration file that sets ``key``, or an empty string."""
    for one in reversed(given):
        if at(one.settings, key) is not None:
            return f"{one.origin}: " if one.origin else ""
    return ""
