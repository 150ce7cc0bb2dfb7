"""Checks of a configuration before anything heavy is imported, with one-sentence errors.

Otherwise a misspelt key would be found only after importing torch, and reported as a failed union of types.
This module reads the same files and arguments as the parser and compares them with the source files of the
classes that they name. What can't be determined from those is left to the parser.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pl_prefopt.cli.class_sources import ClassSource, Signature, find_class, signature
from pl_prefopt.cli.config_files import example_rows
from pl_prefopt.cli.default_settings import BEST
from pl_prefopt.cli.given_settings import DROPPED, Given, Key, Written, at, given_settings, merged, origin_of
from pl_prefopt.cli.known_classes import UnknownClassError, is_function, named_class
from pl_prefopt.cli.known_metrics import registered
from pl_prefopt.cli.plugins import load_plugins
from pl_prefopt.cli.run_folder import find_checkpoint, refuse_second_run
from pl_prefopt.cli.setting_kinds import Kinds, kinds_of, with_article
from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.files import without_dots
from pl_prefopt.metric_info import monitor_mistake
from pl_prefopt.paths import is_data_path, is_path, matching, missing_data, missing_folder, paths_in
from pl_prefopt.saved_settings import ORIGINS
from pl_prefopt.yaml_files import read_yaml

SECTIONS = {
    "trainer": "lightning.pytorch.Trainer",
    "data": "pl_prefopt.data.PreferenceDataModule",
    "references": "pl_prefopt.callbacks.ReferenceEnsemble",
    "best": "pl_prefopt.callbacks.BestCheckpoint",
    "last": "pl_prefopt.callbacks.LastCheckpoint",
    "early_stop": "pl_prefopt.callbacks.EarlyStop",
}
_ABSENT_BY_DEFAULT = ("early_stop",)  # saved configurations have null there
MODEL = "pl_prefopt.modules.PreferenceModule"
_TEXT, _FLAG = Kinds({"str"}), Kinds({"bool"})
EVERYWHERE = {
    "seed_everything": Kinds({"bool", "int"}),
    "run_dir": _TEXT,
    "validate_first": _FLAG,
    "default_callbacks": Kinds({"bool", "dict"}),
    ORIGINS: Kinds(items=_TEXT),
}
_CHECKPOINT = {"ckpt_path": _TEXT, "weights_only": _FLAG}
OF_COMMAND: dict[str, dict[str, Kinds]] = {
    "fit": _CHECKPOINT,
    "validate": _CHECKPOINT,
    "test": _CHECKPOINT,
    "predict": _CHECKPOINT,
    "precompute": {},
    "plan": {**_CHECKPOINT, "gpu": _TEXT, "memory": _TEXT, "limits": _FLAG, "responses": Kinds({"int"})},
}
_SPLITS = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    "precompute": ("train", "val"),
    "plan": (),
}
# Settings that our class passes on to another package's class.
_HANDED_ON = {("PolicySpec", "lora"): "peft.LoraConfig"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class Mistake(NamedTuple):
    """A sentence on what is wrong, and the key that determines the file to name.

    Options may be abbreviated on the command line: ``abbreviates`` says that this could be an abbreviation.
    """

    sentence: str
    key: Key
    abbreviates: bool = False


def _mistake(key: Key, what: str, source: Key = ()) -> Mistake:
    return Mistake(f"{'.'.join(map(str, key))}: {what}", source or key)


def check_command(command: str, arguments: Sequence[str]) -> None:
    """Check a command's settings as far as possible without importing the classes that they name.

    Plug-ins named by their short names are imported at the end, so that the parser finds them.

    Args:
        command: the command, such as ``fit``.
        arguments: the arguments after it.

    Raises:
        ConfigError: for the first error found.
    """
    if any(word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in arguments):
        return
    given = list(given_settings(arguments))
    whole = merged(given)
    make_importable(whole)
    shows_only = any(word.partition("=")[0] == "--print_config" for word in arguments)
    walk = _Walk(command, whole, may_miss=shows_only)
    for mistake in walk.mistakes():
        origin = origin_of(given, mistake.key)
        if origin or not mistake.abbreviates:
            raise ConfigError(f"{origin}{mistake.sentence}")
    if not shows_only:
        _check_files(command, whole, given)
    load_plugins(walk.named)


def failed_import(command: str, arguments: Sequence[str]) -> str | None:
    """Return a sentence on the first class whose module fails to import; ``None`` if all can be imported.

    For settings that the parser rejected, which has tried to import the same modules.
    """
    walk = _Walk(command, merged(list(given_settings(arguments))), may_miss=True)
    list(walk.mistakes())
    for path in (one for one in walk.named if "." in one):
        try:
            importlib.import_module(path.rpartition(".")[0])
        except ModuleNotFoundError as error:
            if error.name is not None and not path.startswith(error.name):
                return f"{path} can't be imported: {error}."
        except Exception as error:  # a user's module can raise anything
            return f"{path} can't be imported ({type(error).__name__}: {error})."
    return None


def make_importable(settings: Any) -> None:
    """Add the working directory to ``sys.path`` if ``settings`` name classes found nowhere else.

    It is added last, so that its files shadow nothing, and only if needed: a data folder with the name of a
    package could otherwise be taken for that package.
    """
    here = os.getcwd()
    if sys.flags.safe_path or here in sys.path:
        return
    for text in _texts(settings):
        top = text.split(".")[0]
        is_here = _DOTTED.fullmatch(text) and (Path(f"{top}.py").is_file() or Path(top).is_dir())
        if is_here and importlib.util.find_spec(top) is None:
            sys.path.append(here)
            importlib.invalidate_caches()
            return


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, Written):
        settings = settings.value
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping | list):
        for value in settings.values() if isinstance(settings, Mapping) else settings:
            yield from _texts(value)


class _Walk:
    """Checks the merged settings."""

    def __init__(self, command: str, whole: Mapping[str, Any], *, may_miss: bool) -> None:
        self.command, self.whole, self.may_miss = command, whole, may_miss
        self.named: list[str] = []
        """The classes that the settings name, collected while checking."""

    def mistakes(self) -> Iterator[Mistake]:
        simple = {**EVERYWHERE, **OF_COMMAND[self.command]}
        others = {name for names in OF_COMMAND.values() for name in names}
        for name, value in self.whole.items():
            if name in SECTIONS:
                yield from self._section(name, value)
            elif name == "model":
                source = find_class(MODEL)
                if isinstance(source, ClassSource):
                    yield from self._value(value, Kinds(classes=[source]), ("model",))
            elif name in simple:
                yield from self._value(value, simple[name], (name,))
            elif name not in others:
                yield self._unknown((name,), (*SECTIONS, "model", *simple), value)
        yield from self._monitors()

    def _monitors(self) -> Iterator[Mistake]:
        """Yield the errors in the metrics that ``best`` and callbacks monitor."""
        best = at(self.whole, ("best",))
        watching: dict[Key, dict[str, Any]] = {
            ("best",): {"mode": BEST["best.mode"], **(best if isinstance(best, Mapping) else {})}
        }
        callbacks = at(self.whole, ("trainer", "callbacks"))
        for number, one in enumerate(callbacks if isinstance(callbacks, list) else ()):
            settings = one.get("init_args") if isinstance(one, Mapping) else None
            if isinstance(settings, Mapping):
                watching["trainer", "callbacks", number, "init_args"] = dict(settings)
        for key, settings in watching.items():
            monitor, mode = settings.get("monitor"), settings.get("mode")
            if isinstance(monitor, str):
                setting = "best." if key == ("best",) else ""
                mistake = monitor_mistake(monitor, str(mode), registered(), setting)
                if mistake is not None:
                    yield _mistake((*key, "monitor"), mistake)

    def _unknown(self, key: Key, known: Sequence[str], value: Any) -> Mistake:
        """Return the error for an unknown setting, with a suggestion."""
        *within, name = (str(part) for part in key)
        path = ".".join([*within, name])
        hint = suggest(name, [] if within else self._elsewhere(name), cutoff=0)
        hint = hint or suggest(path, [".".join([*within, one]) for one in known]) or "."
        abbreviates = not isinstance(value, Mapping) and any(one.startswith(name) for one in known)
        return Mistake(f"there is no setting '{path}'{hint}", key, abbreviates)

    def _elsewhere(self, name: str) -> list[str]:
        """Return the settings with that name in other sections, the model's first."""
        policy, objective = "model.init_args.policy", "model.init_args.objective"
        places = {
            policy: "pl_prefopt.policies.PolicySpec",
            "model.init_args.optimizer.init_args": "torch.optim.AdamW",
        }
        if (named := self._objective()) is not None:
            places[f"{objective}.init_args"] = named
        found = {key: find_class(path) for key, path in {**places, **SECTIONS}.items()}
        return [
            f"{key}.{name}"
            for key, one in found.items()
            if isinstance(one, ClassSource) and name in signature(one).settings
        ][:1]

    def _section(self, name: str, value: Any) -> Iterator[Mistake]:
        value = value.value if isinstance(value, Written) else value
        source = find_class(SECTIONS[name])
        if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
            read_yaml(Path(value))
        elif value is None and name in _ABSENT_BY_DEFAULT:
            return
        elif not isinstance(value, Mapping):
            what = f"expected `{name}` to be a section of settings, got {_shown(value)}."
            yield Mistake(what, (name,))
        elif isinstance(source, ClassSource):
            taken = signature(source)
            for key, one in value.items():
                if key in taken.settings:
                    yield from self._value(one, kinds_of(taken.settings[key]), (name, key))
                elif not taken.takes_more:
                    yield self._unknown((name, key), tuple(taken.settings), one)

    def _value(self, value: Any, kinds: Kinds, key: Key) -> Iterator[Mistake]:
        wanted = kinds.refusal(value)
        plain = value.value if isinstance(value, Written) else value
        if wanted is not None:
            yield _mistake(key, f"expected {wanted}, got {_shown(value)}{_choice(value, kinds, key) or '.'}")
        elif isinstance(plain, list) and kinds.items is not None:
            for number, item in enumerate(plain):
                yield from self._value(item, kinds.items, (*key, number))
        elif isinstance(plain, Mapping) or (isinstance(plain, str) and "str" not in kinds.simple):
            yield from self._class(plain, kinds, key)

    def _class(self, value: Any, kinds: Kinds, key: Key) -> Iterator[Mistake]:
        bases = [*kinds.classes, *kinds.makers]
        # A later `auto` over an earlier class reads as a class of that name, with the settings of that one.
        named = value if isinstance(value, str) else value.get("class_path")
        if not bases or kinds.anything or (isinstance(named, str) and _names_something_else(named, kinds)):
            return
        spec = {"class_path": value} if isinstance(value, str) else value
        if _is_by_name(spec, kinds):
            for name, one in spec.items():
                yield from self._value(one, kinds, (*key, name))
            return
        is_of_trainer = key[0] == "trainer" and len(key) == 2  # the Trainer's classes have no default
        if is_of_trainer and "class_path" not in spec and "dict" not in kinds.simple:
            yield from _without_class(spec, kinds, key)
            return
        try:
            source = self._source(spec, kinds, key)
        except UnknownClassError as error:
            yield _mistake(key, str(error), (*key, "class_path"))
            return
        if source is None:
            return
        is_spec = bool(spec.keys() & {"class_path", "init_args"})
        may_miss, self.may_miss = self.may_miss, self.may_miss or bool(spec.get(DROPPED))
        settings, within = (spec.get("init_args", {}), (*key, "init_args")) if is_spec else (spec, key)
        yield from self._settings(source, settings, within, kinds)
        self.may_miss = may_miss

    def _source(self, spec: Mapping[str, Any], kinds: Kinds, key: Key) -> ClassSource | None:
        """Return the class of a mapping, or ``None`` if it can't be determined."""
        path = spec.get("class_path")
        if path is None:
            return kinds.implied
        if not isinstance(path, str):
            raise UnknownClassError(f"expected the path of a class, got {_shown(path)}.")
        for name in spec:
            if name not in ("class_path", "init_args", "dict_kwargs", DROPPED):
                raise UnknownClassError(
                    f"'{name}' is not allowed next to `class_path`; the settings of the class go under "
                    "`init_args`."
                )
        self.named.append(path)
        return named_class(
            path, [*kinds.classes, *kinds.makers], self._objective() if key == ("model",) else None
        )

    def _settings(self, source: ClassSource, settings: Any, key: Key, kinds: Kinds) -> Iterator[Mistake]:
        settings = settings.value if isinstance(settings, Written) else settings
        if not isinstance(settings, Mapping):
            return
        taken = signature(source)
        for name, value in settings.items():
            if name in taken.settings:
                yield from self._value(value, kinds_of(taken.settings[name]), (*key, name))
                yield from self._handed_on(source, name, value, (*key, name))
            elif not taken.takes_more and name != DROPPED:
                known = list(taken.settings)[
                    1 if kinds.makers else 0 :
                ]  # without the arguments that a factory is called with
                what = f"{source.name} has no setting '{name}'{suggest(str(name), known) or '.'}"
                yield _mistake((*key, name), f"{what} It has {', '.join(known) or 'none'}.")
        if kinds.classes:
            yield from self._missing(source, taken, settings, key)
        if source.name == "PolicySpec" and not self.may_miss:
            yield from _missing_folders(settings, key)

    def _missing(
        self, source: ClassSource, taken: Signature, given: Mapping[str, Any], key: Key
    ) -> Iterator[Mistake]:
        missing = [name for name, one in taken.settings.items() if one.required and name not in given]
        if missing and not self.may_miss and not taken.takes_more:
            within = key[:-1] if key[-1] == "init_args" else key
            yield _mistake(within, f"{source.name} needs the setting '{missing[0]}'.")

    def _handed_on(self, source: ClassSource, name: str, value: Any, key: Key) -> Iterator[Mistake]:
        value = value.value if isinstance(value, Written) else value
        target = find_class(_HANDED_ON.get((source.name, name), ""))
        if isinstance(target, ClassSource) and isinstance(value, Mapping):
            taken = signature(target)
            for one, given in value.items():
                if one in taken.settings:
                    kinds = kinds_of(taken.settings[one])
                    if isinstance(given, str) and _is_number(kinds):
                        yield from self._value(given, kinds, (*key, one))
                elif not taken.takes_more and one not in ("class_path", "init_args"):
                    hint = suggest(str(one), taken.settings) or "."
                    yield _mistake((*key, one), f"{target.name} has no setting '{one}'{hint}")

    def _objective(self) -> str | None:
        named = at(self.whole, ("model", "init_args", "objective", "class_path"))
        return named if isinstance(named, str) and named.startswith("pl_prefopt.") else None


def _is_number(kinds: Kinds) -> bool:
    """Return whether a setting takes a number: other annotations of other packages are incomplete."""
    return bool(kinds.simple) and kinds == Kinds(simple=kinds.simple & {"int", "float"})


def _names_something_else(text: str, kinds: Kinds) -> bool:
    """Return whether a text names a settings file, or a function where a factory is accepted."""
    if Path(text).is_file():
        read_yaml(Path(text))
        return True
    if text in kinds.choices or (kinds.texts is not None and kinds.texts.take(text)):
        return True
    return bool(kinds.makers and is_function(text))


def _without_class(spec: Mapping[str, Any], kinds: Kinds, key: Key) -> Iterator[Mistake]:
    """Return the error for settings without a class, with what to type."""
    option = ".".join(map(str, key))
    what = "a list" if kinds.items is not None else with_article(kinds.classes[0].name)
    for name, value in spec.items():
        words = f"--{option}{'+' if kinds.items is not None else ''}=CLASS --{option}.{name} {_shown(value)}"
        yield _mistake(
            (*key, name),
            f"`{option}` is {what}, so it is unknown which class '{name}' belongs to: type `{words}`, or use "
            "`class_path` and `init_args` in a file.",
        )


def _shown(value: Any) -> str:
    text = value.text if isinstance(value, Written) else value if isinstance(value, str) else None
    shown = str(value).lower() if isinstance(value, bool) else str(value) if text is None else f"'{text}'"
    return shown if len(shown) < 80 else f"{shown[:77]}..."


def _is_by_name(spec: Mapping[str, Any], kinds: Kinds) -> bool:
    """Whether a mapping has values by name, since it lacks what the class that is also allowed requires."""
    if "dict" not in kinds.simple or kinds.implied is None or "class_path" in spec:
        return False
    required = {name for name, one in signature(kinds.implied).settings.items() if one.required}
    return bool(required) and not required & spec.keys()


def _choice(value: Any, kinds: Kinds, key: Key) -> str:
    if isinstance(value, str) and "." in value and kinds.classes and kinds.texts is not None:
        return f": name a class with `{'.'.join(map(str, key))}.class_path`."
    words = [choice for choice in kinds.choices if isinstance(choice, str)]
    words += kinds.texts.words if kinds.texts is not None else ()
    return suggest(value, words) if isinstance(value, str) else ""


# -- files


def _missing_folders(settings: Mapping[str, Any], key: Key) -> Iterator[Mistake]:
    for name in ("name", "adapter"):
        value = settings.get(name)
        if isinstance(value, str) and is_path(value) and not Path(value).is_dir():
            yield _mistake((*key, name), missing_folder(value))


def _check_files(command: str, whole: Mapping[str, Any], given: Sequence[Given]) -> None:
    for split in _SPLITS[command]:
        for name in paths_in(at(whole, ("data", split))):
            path = Path(example_rows(name)).expanduser()
            if is_data_path(name) and not path.exists() and not matching(path):
                origin = origin_of(given, ("data", split))
                raise ConfigError(f"{origin}data.{split}: {missing_data(path)}")
    if "ckpt_path" in OF_COMMAND[command] and command != "plan":
        _check_run(command, whole)


def _check_run(command: str, whole: Mapping[str, Any]) -> None:
    """Check the checkpoint and the run folder, if the settings name them."""
    asked, run_dir = whole.get("ckpt_path"), whole.get("run_dir")
    folder = without_dots(Path(run_dir)) if isinstance(run_dir, str) else None
    if isinstance(asked, str) and asked not in ("last", "best") and not Path(asked).exists():
        find_checkpoint(asked, Path(), may_be_missing=False)
    elif folder is not None and isinstance(asked, str) and command != "fit":
        find_checkpoint(asked, folder, may_be_missing=False)
    keeps = not any(at(whole, ("trainer", name)) for name in ("fast_dev_run", "barebones"))
    if folder is not None and command == "fit" and keeps:
        refuse_second_run(folder, asked if isinstance(asked, str) else None)
