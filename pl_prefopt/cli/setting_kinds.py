"""The values that a setting accepts, read from its annotation in the source file."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pl_prefopt.cli.class_sources import Alias, ClassSource, Setting, is_abstract, look_up
from pl_prefopt.cli.given_settings import Written
from pl_prefopt.cli.known_words import Texts, known_texts

_SIMPLE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "None": "null",
    "dict": "a mapping",
}
_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
_LISTS = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Set")
_UNIONS = ("Union", "Optional")


@dataclass
class Kinds:
    """The kinds of value that a setting accepts.

    Attributes:
        simple: the accepted YAML types, by their Python names.
        choices: the values of a ``Literal``.
        texts: the accepted text, if it is restricted.
        classes: base classes of the accepted objects.
        makers: base classes of objects that are built later, from a class and its settings.
        items: the kinds of the items, if it accepts lists.
        anything: whether it may accept other values too.
    """

    simple: set[str] = field(default_factory=set)
    choices: list[Any] = field(default_factory=list)
    texts: Texts | None = None
    classes: list[ClassSource] = field(default_factory=list)
    makers: list[ClassSource] = field(default_factory=list)
    items: Kinds | None = None
    anything: bool = False

    @property
    def implied(self) -> ClassSource | None:
        """The class of settings without a ``class_path``, if it is unambiguous."""
        alone = len(self.classes) == 1 and not self.makers and not is_abstract(self.classes[0])
        return self.classes[0] if alone else None

    def refusal(self, value: Any) -> str | None:
        """Return what was expected instead of a value that is not a class; ``None`` if it may be valid."""
        is_closed = self.texts is not None and isinstance(value, str)
        if value is None or (self.anything and not is_closed) or _may_be(value, self):
            return None
        wanted = [_SIMPLE[name] for name in _SIMPLE if name in self.simple]
        wanted += dict.fromkeys(str(choice) for choice in self.choices)
        wanted += self.texts.expected if self.texts is not None else []
        wanted += [with_article(one.name) for one in (*self.classes, *self.makers)]
        wanted += ["a list"] if self.items is not None else []
        if not wanted:
            return None
        return f"{', '.join(wanted[:-1])} or {wanted[-1]}" if len(wanted) > 1 else wanted[0]


def with_article(name: str) -> str:
    """Return a class name with an indefinite article."""
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def _may_be(value: Any, kinds: Kinds) -> bool:
    if isinstance(value, Written):
        return "str" in kinds.simple or _may_be(value.value, kinds)
    if isinstance(value, Mapping):
        return bool("dict" in kinds.simple or kinds.classes or kinds.makers or kinds.items)
    if isinstance(value, list):
        return kinds.items is not None
    return any(isinstance(value, type(one)) and value == one for one in kinds.choices) or _is_simple(
        value, kinds
    )


def _is_simple(value: Any, kinds: Kinds) -> bool:
    if isinstance(value, bool):
        return bool(kinds.simple & {"bool", "str"})
    if isinstance(value, int):
        return bool(kinds.simple & {"int", "float", "str"}) or str(value) in kinds.choices
    if isinstance(value, float):
        return bool(kinds.simple & {"float", "str"}) or str(value) in kinds.choices
    if not isinstance(value, str):
        return True
    if kinds.texts is not None:
        return _is_taken(value, kinds.texts, kinds)
    if kinds.classes or kinds.makers:
        return True
    if kinds.items is not None and (value.startswith("[") or Path(value).is_file()):
        return True
    return bool(kinds.simple & {"str", "dict"}) or _reads_as(value, kinds)


def _is_taken(text: str, texts: Texts, kinds: Kinds) -> bool:
    is_path = texts.paths and "." in text
    is_mapping = "dict" in kinds.simple and text.startswith("{")  # jsonargparse writes mappings as text
    return texts.take(text) or _reads_as(text, kinds) or is_path or is_mapping


def _reads_as(text: str, kinds: Kinds) -> bool:
    if "bool" in kinds.simple and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return True
    if kinds.simple & {"int", "float"}:
        try:
            float(text)
        except ValueError:
            return False
        return True
    return False


def kinds_of(setting: Setting) -> Kinds:
    """Return the kinds of value that a setting accepts."""
    kinds = Kinds()
    if setting.annotation is None:
        kinds.anything = True
    else:
        _add(kinds, setting.module, setting.annotation, 0)
    kinds.texts = known_texts(setting.module, setting.name)
    if kinds.texts is not None:
        kinds.simple.discard("str")
    return kinds


def _add(kinds: Kinds, module: str, hint: ast.expr, hops: int) -> None:
    """Add what an annotation allows to ``kinds``; an unknown annotation allows anything."""
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        _add(kinds, module, ast.parse(hint.value, mode="eval").body, hops)
    elif isinstance(hint, ast.Constant):  # None, or the ... of a tuple
        kinds.simple.add("None")
    elif isinstance(hint, ast.BinOp) and isinstance(hint.op, ast.BitOr):
        _add(kinds, module, hint.left, hops)
        _add(kinds, module, hint.right, hops)
    elif isinstance(hint, ast.Subscript):
        _add_subscript(kinds, module, hint, hops)
    elif isinstance(hint, ast.Name | ast.Attribute):
        _add_name(kinds, module, hint, hops)
    else:
        kinds.anything = True


def _add_subscript(kinds: Kinds, module: str, hint: ast.Subscript, hops: int) -> None:
    name = ast.unparse(hint.value).rpartition(".")[2]
    parts = list(_parts(hint.slice))
    if name in _UNIONS:
        for part in parts:
            _add(kinds, module, part, hops)
    elif name == "Literal":
        kinds.choices += [part.value for part in parts if isinstance(part, ast.Constant)]
        kinds.anything |= not all(isinstance(part, ast.Constant) for part in parts)
    elif name in _LISTS and parts:
        kinds.items = Kinds()
        for part in parts if name.lower() == "tuple" else parts[:1]:
            _add(kinds.items, module, part, hops)
    elif name in _MAPPINGS:
        kinds.simple.add("dict")
    elif name == "Callable" and parts:
        _add_maker(kinds, module, parts[-1])
    else:
        kinds.anything = True


def _parts(hint: ast.expr) -> Iterator[ast.expr]:
    if isinstance(hint, ast.Tuple):
        yield from hint.elts
    else:
        yield hint


def _add_maker(kinds: Kinds, module: str, made: ast.expr) -> None:
    found = look_up(module, made) if isinstance(made, ast.Name | ast.Attribute) else None
    if isinstance(found, ClassSource):
        kinds.makers.append(found)
    else:
        kinds.anything = True


def _add_name(kinds: Kinds, module: str, hint: ast.Name | ast.Attribute, hops: int) -> None:
    name = hint.id if isinstance(hint, ast.Name) else ""
    found = look_up(module, hint)
    if name in _SIMPLE and not isinstance(found, ClassSource | Alias):
        kinds.simple.add(name)
    elif isinstance(found, Alias) and hops < 10:
        _add(kinds, found.module, found.value, hops + 1)
    elif isinstance(found, ClassSource) and found.module.split(".")[0] in ("pl_prefopt", "lightning"):
        kinds.classes.append(found)
    elif ast.unparse(hint).rpartition(".")[2] != "Tensor":  # can't be written in YAML
        kinds.anything = True
