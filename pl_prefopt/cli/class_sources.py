"""Classes, their bases and their settings, read from source files without importing them.

Importing what a configuration names takes seconds and runs the code of its modules, while most misspelt names
can be found in the source files. What can't be determined from them, such as names created at run time, is
``UNSURE`` here and left to the parser.
"""

from __future__ import annotations

import ast
import builtins
import enum
import importlib.machinery
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

MOST_BYTES = 2 << 20
# Names that indicate that a module defines further names at run time.
_DYNAMIC = ("import *", "globals()", "sys.modules", "def __getattr__", "setattr(", "__path__", "vars(")
# Packages whose classes, as far as configurations name them, derive from no class of another package.
_BELOW = {"torch", "abc", "typing", "typing_extensions", "enum", "collections", "contextlib", "dataclasses"}
_SUFFIXES = tuple(importlib.machinery.EXTENSION_SUFFIXES)


class Answer(enum.Enum):
    """The result for a name that could not be resolved to a class."""

    ABSENT = "it doesn't exist"
    UNSURE = "it may exist"
    OTHER = "it exists, and is not a class"


ABSENT, UNSURE, OTHER = Answer.ABSENT, Answer.UNSURE, Answer.OTHER


@dataclass(frozen=True)
class Module:
    """A module's source: its statements by the names that they bind."""

    name: str
    is_package: bool
    folders: tuple[Path, ...]
    bound: Mapping[str, list[ast.stmt]]
    dynamic: bool


@dataclass(frozen=True)
class ClassSource:
    """A class statement, and the module that it stands in."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.node.name

    @property
    def place(self) -> tuple[str, str]:
        """The class's module and name, which identify it."""
        return self.module, self.node.name


@dataclass(frozen=True)
class Alias:
    """A name that stands for an expression, such as ``Dtype = Literal[...]``."""

    module: str
    value: ast.expr


@dataclass(frozen=True)
class Setting:
    """A parameter of a constructor."""

    module: str
    name: str
    annotation: ast.expr | None
    required: bool


@dataclass(frozen=True)
class Signature:
    """The settings of a class; ``takes_more`` where it may have others."""

    settings: dict[str, Setting] = field(default_factory=dict)
    takes_more: bool = False


Found = ClassSource | Alias | Answer


class BrokenModuleError(Exception):
    """Raised for a module whose source is not valid Python."""


def find_class(path: str) -> Found:
    """Return the class that a dotted path names.

    Raises:
        BrokenModuleError: if the source of its module is not valid Python.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return UNSURE
    if isinstance(read_module(module), Answer):
        # A name within a class, or one that exists only at run time.
        outer = read_module(module.rpartition(".")[0]) if "." in module else ABSENT
        if not isinstance(outer, Answer) and module.rpartition(".")[2] in outer.bound:
            return UNSURE
    return resolve(module, name)


def resolve(module: str, name: str, hops: int = 0) -> Found:
    """Return what ``name`` means in ``module``, following imports."""
    source = read_module(module)
    if isinstance(source, Answer):
        return source
    statements = source.bound.get(name, [])
    if not statements:
        is_module = source.is_package and not isinstance(read_module(f"{module}.{name}"), Answer)
        return OTHER if is_module else UNSURE if source.dynamic else ABSENT
    if len(statements) > 1 or hops > 20:
        return UNSURE
    return _meaning(source, statements[0], name, hops)


def _meaning(source: Module, statement: ast.stmt, name: str, hops: int) -> Found:
    if isinstance(statement, ast.ClassDef):
        return ClassSource(source.name, statement)
    if isinstance(statement, ast.ImportFrom):
        alias = next(one for one in statement.names if (one.asname or one.name) == name)
        found = resolve(_absolute(source, statement), alias.name, hops + 1)
        return UNSURE if found is ABSENT else found
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return OTHER
    if isinstance(statement, ast.Assign) and isinstance(
        statement.value, ast.Subscript | ast.BinOp | ast.Name
    ):
        return Alias(source.name, statement.value)
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return Alias(source.name, statement.value)
    return UNSURE


def _absolute(source: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = source.name.split(".")
    parts = parts[: len(parts) - statement.level + source.is_package]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def look_up(module: str, expression: ast.expr, hops: int = 0) -> Found:
    """Return what a name or a dotted name in an expression means in ``module``."""
    if isinstance(expression, ast.Name):
        found = resolve(module, expression.id, hops)
        return OTHER if found is ABSENT and hasattr(builtins, expression.id) else found
    path = dotted(expression)
    if path is None:
        return UNSURE
    first, _, rest = path.partition(".")
    source = read_module(module)
    statements = source.bound.get(first, []) if isinstance(source, Module) else []
    if len(statements) != 1 or not isinstance(statements[0], ast.Import | ast.ImportFrom):
        return UNSURE
    target = _imported(source, statements[0], first)  # type: ignore[arg-type]
    return find_class(f"{target}.{rest}")


def _imported(source: Module, statement: ast.Import | ast.ImportFrom, name: str) -> str:
    for alias in statement.names:
        if (alias.asname or alias.name.split(".")[0]) == name:
            if isinstance(statement, ast.ImportFrom):
                return f"{_absolute(source, statement)}.{alias.name}"
            return alias.name if alias.asname else name
    return name


def dotted(expression: ast.expr) -> str | None:
    """Return ``"a.b.c"`` for such an expression."""
    parts: list[str] = []
    while isinstance(expression, ast.Attribute):
        parts.append(expression.attr)
        expression = expression.value
    return ".".join([expression.id, *reversed(parts)]) if isinstance(expression, ast.Name) else None


# -- modules


@cache
def read_module(name: str) -> Module | Answer:
    """Return a module's source; ``ABSENT`` if there is no such module. Cached until ``forget_modules``.

    Raises:
        BrokenModuleError: if it is not valid Python.
    """
    place = _place(name)
    if isinstance(place, Answer):
        return place
    file, folders = place
    if file is None:  # a folder without __init__.py
        return Module(name, True, folders, {}, dynamic=True)
    try:
        told = file.stat()
    except OSError:
        return UNSURE
    return UNSURE if told.st_size > MOST_BYTES else _parse(name, file, folders, told.st_mtime_ns)


def forget_modules() -> None:
    """Look for modules anew: one process may run several commands, and files change between them."""
    read_module.cache_clear()


@cache
def _parse(name: str, file: Path, folders: tuple[Path, ...], _changed: int) -> Module | Answer:
    """Parse a module's source, cached until the file changes."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError):
        return UNSURE
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise BrokenModuleError(f"{file}{line}: {getattr(error, 'msg', error)}") from error
    bound: dict[str, list[ast.stmt]] = {}
    for statement, names in _bindings(tree.body):
        for one in names:
            bound.setdefault(one, []).append(statement)
    if "global " in text:  # few modules have any, and a walk of the tree takes as long as parsing it
        for statement in tree.body:
            for one in _names_made_global(statement):
                bound.setdefault(one, []).append(statement)
    return Module(name, bool(folders), folders, bound, any(mark in text for mark in _DYNAMIC))


def _place(name: str) -> tuple[Path | None, tuple[Path, ...]] | Answer:
    """Return a module's source file and, for a package, its folders."""
    parent, _, last = name.rpartition(".")
    if not parent:
        return _top_place(name)
    above = _place(parent)
    if isinstance(above, Answer):
        return above
    _, folders = above
    for folder in folders:
        if (folder / last / "__init__.py").is_file():
            return folder / last / "__init__.py", (folder / last,)
        if (folder / f"{last}.py").is_file():
            return folder / f"{last}.py", ()
        if any((folder / f"{last}{suffix}").is_file() for suffix in _SUFFIXES):
            return UNSURE
        if (folder / last).is_dir():
            return None, (folder / last,)
    return ABSENT


def _top_place(name: str) -> tuple[Path | None, tuple[Path, ...]] | Answer:
    try:
        spec = importlib.util.find_spec(name)  # imports nothing for a top-level name
    except (ImportError, ValueError):
        return UNSURE
    if spec is None:
        return ABSENT
    folders = tuple(Path(folder) for folder in spec.submodule_search_locations or ())
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin), folders
    return (None, folders) if folders else UNSURE


def _bindings(statements: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, list[str]]]:
    for statement in statements:
        yield statement, list(_names_bound_by(statement))
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _bindings(getattr(statement, block, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _bindings(handler.body)


def _names_bound_by(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import):
        yield from (alias.asname or alias.name.split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    else:
        for child in ast.iter_child_nodes(statement):
            if not isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from (
                    node.id
                    for node in ast.walk(child)
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                )


def _names_made_global(statement: ast.stmt) -> Iterator[str]:
    return (name for node in ast.walk(statement) if isinstance(node, ast.Global) for name in node.names)


# -- classes


def derives_from(source: ClassSource, target: ClassSource) -> bool | None:
    """Return whether a class is ``target`` or a subclass; ``None`` if source files don't tell."""
    if source.place == target.place:
        return True
    answers = [_base_derives_from(source.module, base, target) for base in source.node.bases]
    return True if True in answers else None if None in answers else False


def _base_derives_from(module: str, base: ast.expr, target: ClassSource) -> bool | None:
    found = _base(module, base)
    below = _BELOW - {target.module.split(".")[0]}
    if isinstance(found, ClassSource):
        return False if found.module.split(".")[0] in below else derives_from(found, target)
    if found is OTHER and isinstance(base, ast.Name) and hasattr(builtins, base.id):
        return False
    return False if _origin(module, base) in below else None


def _base(module: str, base: ast.expr) -> Found:
    return look_up(module, base.value if isinstance(base, ast.Subscript) else base)


def _origin(module: str, base: ast.expr) -> str | None:
    """Return the top-level package that a base class was imported from."""
    path = dotted(base.value if isinstance(base, ast.Subscript) else base)
    source = read_module(module)
    if path is None or isinstance(source, Answer):
        return None
    first = path.split(".")[0]
    for statement in source.bound.get(first, []):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return _imported(source, statement, first).split(".")[0]
    return None


def signature(source: ClassSource) -> Signature:
    """Return the parameters of a class's constructor."""
    if any(keyword.arg == "metaclass" for keyword in source.node.keywords):
        return Signature(takes_more=True)
    if any(_is_dataclass(one) for one in source.node.decorator_list):
        return _dataclass_signature(source)
    members = {one.name: one for one in source.node.body if isinstance(one, ast.FunctionDef)}
    if "__new__" in members or (source.node.decorator_list and "__init__" not in members):
        return Signature(takes_more=True)
    if "__init__" not in members:
        return _inherited(source)
    return _constructor_signature(source, members["__init__"])


def _is_dataclass(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (dotted(called) or "").rpartition(".")[2] == "dataclass"


def _dataclass_signature(source: ClassSource) -> Signature:
    above = _inherited(source)
    settings = dict(above.settings)
    for statement in source.node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(statement.annotation):
            required = statement.value is None
            settings[statement.target.id] = Setting(
                source.module, statement.target.id, statement.annotation, required
            )
    return Signature(settings, above.takes_more)


def _inherited(source: ClassSource) -> Signature:
    """Return the signature of the first base class that is known to have a constructor."""
    for base in source.node.bases:
        found = _base(source.module, base)
        if isinstance(found, ClassSource):
            if found.place in (("abc", "ABC"), ("typing", "Protocol")):
                continue
            return signature(found)
        if _origin(source.module, base) in ("abc", "typing"):
            continue
        return Signature(takes_more=True)
    return Signature()


def _constructor_signature(source: ClassSource, constructor: ast.FunctionDef) -> Signature:
    arguments = constructor.args
    settings: dict[str, Setting] = {}
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    first_default = len(positional) - len(arguments.defaults)
    for number, argument in enumerate(positional):
        settings[argument.arg] = Setting(
            source.module, argument.arg, argument.annotation, number < first_default
        )
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        settings[argument.arg] = Setting(source.module, argument.arg, argument.annotation, default is None)
    takes_more = bool(constructor.decorator_list) and not source.module.startswith("lightning.")
    if arguments.vararg is None and arguments.kwarg is None:
        return Signature(settings, takes_more)
    if arguments.vararg is not None or not _passes_on(constructor, arguments.kwarg.arg):  # type: ignore[union-attr]
        return Signature(settings, takes_more=True)
    above = _inherited(source)
    return Signature({**above.settings, **settings}, takes_more or above.takes_more)


def _passes_on(constructor: ast.FunctionDef, name: str) -> bool:
    """Return whether ``**name`` is passed to the base class's constructor, and otherwise only passed on."""
    uses = [node for node in ast.walk(constructor) if isinstance(node, ast.Name) and node.id == name]
    receivers = [
        ast.unparse(node.func)
        for node in ast.walk(constructor)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg is None and isinstance(keyword.value, ast.Name) and keyword.value.id == name
    ]
    return len(uses) == len(receivers) and receivers.count("super().__init__") == 1


def constant(source: ClassSource, name: str) -> Any:
    """Return the literal that a class assigns to ``name``, or inherits; ``None`` if there is none."""
    for one in _method_resolution_order(source):
        for statement in one.node.body:
            assigned = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            if assigned is not None and name in _bound(statement):
                return ast.literal_eval(assigned)
    return None


def _method_resolution_order(source: ClassSource) -> list[ClassSource]:
    """Return the class and its bases: depth first, a base that several share after the last of them."""
    found = [source]
    for base in source.node.bases:
        above = _base(source.module, base)
        found += _method_resolution_order(above) if isinstance(above, ClassSource) else []
    last = {one.place: number for number, one in enumerate(found)}
    return [one for number, one in enumerate(found) if last[one.place] == number]


def exported(package: str) -> dict[str, ClassSource]:
    """Return the classes that a package's ``__init__`` exports, by path."""
    source = read_module(package)
    names = source.bound if isinstance(source, Module) else {}
    found = {f"{package}.{name}": resolve(package, name) for name in names if not name.startswith("_")}
    return {path: one for path, one in found.items() if isinstance(one, ClassSource)}


def is_abstract(source: ClassSource) -> bool:
    """Return whether a class is abstract."""
    return bool(_abstract_names(source)) or _base_names(source) & {"ABC", "Protocol"} != set()


def _base_names(source: ClassSource) -> set[str]:
    return {(dotted(base) or "").rpartition(".")[2] for base in source.node.bases}


def _abstract_names(source: ClassSource) -> set[str]:
    """Return the names that every definition in the class and its bases declares abstract.

    A name with any concrete definition is taken as concrete, since the method resolution order is not
    computed.
    """
    abstract, concrete = set[str](), set[str]()
    below = [source]
    while below:
        one = below.pop()
        below += [
            above for base in one.node.bases if isinstance(above := _base(one.module, base), ClassSource)
        ]
        for member in one.node.body:
            decorators = {(dotted(each) or "").rpartition(".")[2] for each in _decorators(member)}
            (abstract if "abstractmethod" in decorators else concrete).update(_bound(member))
    return abstract - concrete


def _decorators(member: ast.stmt) -> list[ast.expr]:
    return getattr(member, "decorator_list", [])


def _bound(member: ast.stmt) -> set[str]:
    """Return the names that a statement of a class body binds."""
    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {member.name}
    nodes = ast.walk(member)
    return {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
