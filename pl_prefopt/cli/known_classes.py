"""The classes that a setting can name, and the module class that trains an objective."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from pl_prefopt.cli.class_sources import (
    ABSENT,
    OTHER,
    UNSURE,
    BrokenModuleError,
    ClassSource,
    Found,
    derives_from,
    exported,
    find_class,
    is_abstract,
    read_module,
    signature,
)
from pl_prefopt.cli.plugins import plugin_classes
from pl_prefopt.cli.setting_kinds import kinds_of
from pl_prefopt.errors import suggest

_MODULE = "pl_prefopt.modules.PreferenceModule"
# The packages that export the classes of other libraries that a setting can name.
_OFFERED = {
    "Callback": ("lightning.pytorch.callbacks", "pl_prefopt.callbacks"),
    "Logger": ("lightning.pytorch.loggers",),
    "Strategy": ("lightning.pytorch.strategies", "pl_prefopt.modules"),
    "Profiler": ("lightning.pytorch.profilers",),
    "Accelerator": ("lightning.pytorch.accelerators",),
    "Optimizer": ("torch.optim",),
    "Precision": ("lightning.pytorch.plugins",),
    "ClusterEnvironment": ("lightning.pytorch.plugins.environments",),
    "CheckpointIO": ("lightning.pytorch.plugins", "pl_prefopt.modules"),
    "LayerSync": ("lightning.pytorch.plugins",),
}
_MOST_LISTED = 12


class UnknownClassError(Exception):
    """Raised for a class that a setting can't name. The message says why and what to write."""


def named_class(path: str, kinds: Sequence[ClassSource], objective: str | None = None) -> ClassSource | None:
    """Return the class that a setting names, or ``None`` if source files don't tell.

    Args:
        path: the name.
        kinds: the accepted base classes.
        objective: for ``model``, the objective to train.

    Raises:
        UnknownClassError: if there is no such class, or it has none of the base classes.
    """
    added = {path: one for path, one in plugin_classes().items() if any(derives_from(one, k) for k in kinds)}
    known = {**added, **_known(tuple(kinds))}  # our classes take precedence for short names
    by_name = {name.rpartition(".")[2]: one for name, one in known.items()}
    if path in by_name:
        return by_name[path]
    found = _find(path, kinds, known)
    if found is ABSENT or (found is UNSURE and "." not in path and (known or _ours(kinds))):
        raise UnknownClassError(_unknown(path, known, kinds, objective))
    if not isinstance(found, ClassSource):
        return None
    if all(derives_from(found, kind) is False for kind in kinds):
        raise UnknownClassError(
            f"{path} is not a subclass of {kinds[0].name}.{_trained_by(found)}{_listed(known)}"
        )
    if is_abstract(found):
        raise UnknownClassError(f"{path} is abstract: name a class that derives from it.{_listed(known)}")
    return found


def _find(path: str, kinds: Sequence[ClassSource], known: Mapping[str, ClassSource]) -> Found:
    if "." not in path:
        if _ours(kinds) and {one.place for one in known.values()} <= {kinds[0].place}:
            first = next(iter(signature(kinds[0]).settings), "")
            raise UnknownClassError(f"expected a mapping with settings such as `{first}`, got '{path}'.")
        return _relative(path, kinds)
    if path.split(".")[0] in sys.stdlib_module_names:
        raise UnknownClassError(f"{path} is not a subclass of {kinds[0].name}.{_listed(known)}")
    try:
        return find_class(path)
    except BrokenModuleError as error:
        raise UnknownClassError(f"{path} can't be imported: {error}.") from error


def _relative(name: str, kinds: Iterable[ClassSource]) -> Found:
    """Return a class with this name but another base class, from the package of the accepted ones."""
    for kind in kinds:
        package = ".".join(kind.module.split(".")[:2])
        found = exported(package).get(f"{package}.{name}") if _ours([kind]) else None
        if found is not None:
            return found
    return UNSURE


def is_function(path: str) -> bool:
    """Return whether a dotted name refers to something other than a class."""
    try:
        return find_class(path) is OTHER
    except BrokenModuleError:
        return False


def _ours(kinds: Iterable[ClassSource]) -> bool:
    return all(kind.module.startswith("pl_prefopt.") for kind in kinds)


@cache
def _known(kinds: tuple[ClassSource, ...]) -> Mapping[str, ClassSource]:
    found: dict[str, ClassSource] = {}
    for kind in kinds:
        package = ".".join(kind.module.split(".")[:2])
        for offered in _OFFERED.get(kind.name, (package,) if _ours([kind]) else ()):
            below = {path: one for path, one in exported(offered).items() if derives_from(one, kind)}
            others = {path: one for path, one in below.items() if one.place != kind.place}
            found |= {path: one for path, one in (others or below).items() if not is_abstract(one)}
    return found


def _unknown(
    path: str, known: Mapping[str, ClassSource], kinds: Sequence[ClassSource], objective: str | None
) -> str:
    module = path.rpartition(".")[0]
    if module and read_module(module) is ABSENT and not module.startswith("pl_prefopt"):
        missing = next(
            part
            for part in itertools.accumulate(module.split("."), "{}.{}".format)
            if read_module(part) is ABSENT
        )
        where = "" if "." in missing else " in the working directory or on PYTHONPATH"
        return f"there is no module '{missing}'{where}, so {path} can't be imported.{_listed(known)}"
    hint = _family_hint(path, objective) if kinds[0].name == "PreferenceModule" else ""
    short = [name.rpartition(".")[2] for name in known]
    hint = hint or suggest(path, [*known, *short]) or "."
    return f"there is no class '{path}'{hint}{_listed(known)}"


def _listed(known: Mapping[str, ClassSource]) -> str:
    """Return ``" Available: A, B in package; C in other."``."""
    parts = sorted({name.rpartition(".")[::2] for name in known})
    if len(known) > _MOST_LISTED and {package for package, _ in parts} == {"pl_prefopt.objectives"}:
        return " `prefopt list objectives` lists all objectives."
    if not known or len(known) > _MOST_LISTED:
        return ""
    packages = itertools.groupby(parts, key=lambda part: part[0])
    told = [f"{', '.join(name for _, name in those)} in {package}" for package, those in packages]
    return f" Available: {'; '.join(told)}."


# -- families


def family_of(objective: ClassSource) -> str | None:
    """Return the path of the most specific module class that trains an objective."""
    families = []
    for path, module in exported("pl_prefopt.modules").items():
        setting = signature(module).settings.get("objective")
        for taken in kinds_of(setting).classes if setting is not None else ():
            if derives_from(objective, taken) and taken.name != "Objective":
                families.append((sum(1 for one in _objectives().values() if derives_from(one, taken)), path))
    return min(families)[1] if families else None


def _objectives() -> Mapping[str, ClassSource]:
    return exported("pl_prefopt.objectives")


def _trained_by(found: ClassSource) -> str:
    family = family_of(found)
    return f" It is trained by {family}: set `model.class_path` to that." if family else ""


def _family_hint(path: str, objective: str | None) -> str:
    """Return a hint on the module class for the objective that an unknown path or the run names."""
    by_name = {path.rpartition(".")[2]: one for path, one in _objectives().items()}
    meant = path.rpartition(".")[2].removesuffix("Module")
    wanted = by_name.get(meant) or by_name.get((objective or "").rpartition(".")[2])
    family = family_of(wanted) if wanted is not None else None
    return f": {wanted.name} is trained by {family}." if wanted is not None and family else ""
