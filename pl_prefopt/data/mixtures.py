"""Several sources of one split: their names, their rows as one sequence, and which of them an epoch has."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.arrow import Parts, StoredRows
from pl_prefopt.data.columns import ColumnInfo, joined_infos
from pl_prefopt.data.sources import RowsInMemory, Source
from pl_prefopt.data.store import RowStore
from pl_prefopt.data.tables import JoinedTable
from pl_prefopt.errors import ConfigError, printable, suggest

_NAME = re.compile(r"[A-Za-z][\w-]*")
_SETTINGS = tuple(field.name for field in dataclasses.fields(Source))
_LABELS_SHOWN = 3
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class _ByPath(Source):
    """A source whose name in messages is its whole path, since another one has the same file name."""

    @property
    def label(self) -> str:
        return printable(self.path, limit=200)


class Sources(Sequence[Source]):
    """The sources of a split, at least one.

    Args:
        split: the split's name, for messages.
        given: a path, a ``Source`` or rows in memory; a list of paths and sources; or a mapping of such by
            name.

    Attributes:
        names: one name per source if ``given`` is a mapping; otherwise empty.

    Raises:
        ConfigError: if ``given`` is something else, or ambiguous.
    """

    def __init__(self, split: str, given: Any) -> None:
        self.names, members = _members(split, given)
        found = [Source.of(member) for member in members]
        _refuse_repeated(split, found)
        labels = [source.label for source in found]
        for number, source in enumerate(found):
            _check_quota(split, source)
            if isinstance(source, RowsInMemory) and self.names:
                found[number] = dataclasses.replace(source, path=self.names[number])
            elif labels.count(source.label) > 1 and type(source) is Source:
                found[number] = _ByPath(**vars(source))
        self._found = tuple(found)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def __iter__(self) -> Iterator[Source]:
        return iter(self._found)

    @property
    def labels(self) -> list[str]:
        """What messages call each source: its name and that of its file, or the latter."""
        labels = [source.label for source in self._found]
        names = [f"{name}: " for name in self.names] or [""] * len(labels)
        return [name + label for name, label in zip(names, labels, strict=True)]

    @property
    def label(self) -> str:
        """What messages call all of them."""
        more = len(self) - _LABELS_SHOWN
        shown = [*self.labels[:_LABELS_SHOWN], *([f"{more} more"] if more > 0 else [])]
        return ", ".join(shown)

    @property
    def path(self) -> str:
        """The path or hub name of a single source, or the labels of several."""
        return self._found[0].path if len(self) == 1 and not self.names else ", ".join(self.labels)


def _members(split: str, given: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of the sources, if they have any, and what was given for each."""
    if hasattr(given, "column_names") and hasattr(given, "keys"):  # datasets.DatasetDict
        raise ConfigError(
            f"expected one split for data.{split}, got a DatasetDict of {', '.join(map(str, given))}; pass "
            "one of its datasets"
        )
    if isinstance(given, Mapping):
        if "path" in given:
            return (), [_source(split, given)]
        return _names(split, given), [_source(split, member) for member in given.values()]
    is_list = isinstance(given, list | tuple) and not all(isinstance(one, Mapping) for one in given)
    return (), [_source(split, member) for member in given] if is_list else [given]


def _names(split: str, given: Mapping[Any, Any]) -> tuple[str, ...]:
    for name in given:
        if name in _SETTINGS:
            raise ConfigError(
                f"data.{split} has '{name}' without `path`: add the path of the source, or choose another "
                "name for this set of rows"
            )
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"expected the names in data.{split} to consist of letters, digits, _ and -, beginning with "
                f"a letter, got {printable(str(name), limit=60)!r}; choose another name"
            )
    if not given:
        raise ConfigError(f"expected sources in data.{split}, got an empty mapping; name one, or set null")
    return tuple(given)


def _source(split: str, member: Any) -> Any:
    if not isinstance(member, Mapping):
        return member
    for name in member:
        if name not in _SETTINGS:
            raise ConfigError(
                f"data.{split}: a source has no setting '{printable(str(name), limit=60)}'; its settings are "
                f"{', '.join(_SETTINGS)}{suggest(str(name), _SETTINGS)}"
            )
    if not isinstance(member.get("path"), str):
        raise ConfigError(f"data.{split}: a source lacks its `path`; add it")
    return Source(**{**member, "columns": dict(member.get("columns") or {})})


def _refuse_repeated(split: str, sources: Sequence[Source]) -> None:
    seen = [(one.path, one.split, one.name) for one in sources if not isinstance(one, RowsInMemory)]
    for one in seen:
        if seen.count(one) > 1:
            remedy = "; set its `passes: 2` to have its rows twice per epoch" if split == "train" else ""
            raise ConfigError(f"data.{split} names {printable(one[0], limit=200)} twice{remedy}")


def _check_quota(split: str, source: Source) -> None:
    given = {name: getattr(source, name) for name in ("passes", "rows_per_epoch")}
    for name, value in given.items():
        if value is None:
            continue
        if split != "train":
            raise ConfigError(
                f"data.{split}: `{name}` belongs to training rows, since an evaluation uses each row once; "
                "remove it"
            )
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"expected `{name}` of {source.label} to be above 0, got {value}; raise it")
    if None not in given.values():
        raise ConfigError(f"{source.label} has both `passes` and `rows_per_epoch`; keep one of them")


# -- rows of several sources as one sequence


def join(stores: Sequence[RowStore], sources: Sources) -> RowStore:
    """Return the rows of several sources as those of one, in the order of the sources.

    A column must have the same type in all of them to be kept.
    """
    names = sources.names or ("",) * len(stores)
    if len(stores) == 1 and not sources.names:
        return stores[0]
    starts = tuple(itertools.accumulate((len(store.rows) for store in stores), initial=0))
    infos = joined_infos(
        [(store.columns, len(store.rows)) for store in stores], [source.label for source in sources]
    )
    columns = _JoinedColumns([store.rows for store in stores], starts, infos)
    table = JoinedTable([store.rows.table for store in stores])
    numbers = np.repeat(np.arange(len(stores)), [len(store.rows) for store in stores])
    return RowStore(
        rows=StoredRows(table, columns, parts=Parts(names, numbers)),
        content=_hash(store.content for store in stores),
        skipped=sum(store.skipped for store in stores),
        problems=[problem for store in stores for problem in store.problems][:_PROBLEMS_SHOWN],
        names=list(dict.fromkeys(name for store in stores for name in store.names)),
        columns=infos,
        columns_content=_hash(store.columns_content for store in stores),
        joined=[line for store in stores for line in store.joined],
    )


def _hash(contents: Any) -> str:
    return hashlib.blake2b("-".join(contents).encode(), digest_size=16).hexdigest()


class _JoinedColumns:
    """The extra columns of several sources; implements ``arrow.RowColumns``."""

    def __init__(
        self, rows: Sequence[StoredRows], starts: Sequence[int], infos: Mapping[str, ColumnInfo]
    ) -> None:
        self.infos = {name: info for name, info in infos.items() if not info.problem}
        self._rows, self._starts = list(rows), list(starts)

    def of(self, number: int) -> Any:
        """Return the extra columns of a row, with ``None`` for missing values."""
        part = bisect.bisect_right(self._starts, number) - 1
        held = self._rows[part].columns.of(number - self._starts[part])
        return type(held)({name: info.typed(held.get(name)) for name, info in self.infos.items()})


# -- the rows of an epoch


class Mixture:
    """Which rows each training epoch has, from sources of which some don't occur exactly once per epoch.

    The rows of a source are taken from an endless sequence of its permutations: an epoch continues where the
    epoch before ended. So after any number of epochs, two rows of a source have occurred equally often, or
    one of them once more. An epoch depends only on the seed and its number.

    Args:
        parts: int64 [rows], the number of each row's source.
        sources: the sources.
        seed: random seed of the permutations.
    """

    def __init__(self, parts: npt.NDArray[np.int64], sources: Sources, seed: int) -> None:
        self._seed = seed
        self._rows = [np.flatnonzero(parts == number) for number in range(len(sources))]
        self.quotas = [_quota(source, len(rows)) for source, rows in zip(sources, self._rows, strict=True)]
        self.is_constant = all(
            quota % len(rows) == 0 for quota, rows in zip(self.quotas, self._rows, strict=True) if len(rows)
        )
        self._permuted = functools.lru_cache(maxsize=2 * len(sources) + 2)(self._permutation)

    def __len__(self) -> int:
        """Return the number of rows per epoch."""
        return sum(self.quotas)

    def rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of an epoch in ascending order, repeated ones repeatedly."""
        taken = [self._taken(part, quota * epoch, quota) for part, quota in enumerate(self.quotas)]
        return np.sort(np.concatenate(taken))

    def most(self) -> npt.NDArray[np.int64]:
        """Return all rows, each as often as it can occur in one epoch."""
        repeated = (
            np.repeat(rows, _most_often(quota, len(rows)))
            for quota, rows in zip(self.quotas, self._rows, strict=True)
        )
        return np.concatenate(list(repeated))

    def _taken(self, part: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return ``count`` rows of the sequence of a source, from position ``start``."""
        size = len(self._rows[part])
        if not count or not size:
            return np.empty(0, dtype=np.int64)
        first, last = start // size, (start + count - 1) // size
        found = np.concatenate([self._permuted(part, which) for which in range(first, last + 1)])
        return found[start - first * size :][:count]

    def _permutation(self, part: int, which: int) -> npt.NDArray[np.int64]:
        order = np.random.default_rng((self._seed, 1, part, which)).permutation(len(self._rows[part]))
        return self._rows[part][order]


def _most_often(quota: int, size: int) -> int:
    """Return in how many permutations of ``size`` rows ``quota`` rows in succession can be at most."""
    return quota // size if size and quota % size == 0 else (quota - 2) // max(1, size) + 2


def _quota(source: Source, rows: int) -> int:
    """Return the number of rows of a source per epoch."""
    if not rows:
        return 0
    if source.rows_per_epoch is not None:
        return source.rows_per_epoch
    quota = round((1 if source.passes is None else source.passes) * rows)
    if not quota:
        raise ConfigError(
            f"expected `passes` of {source.label} to give at least one of its {rows} rows per epoch, got "
            f"{source.passes}; raise it, or set `rows_per_epoch`"
        )
    return quota


def mixture_of(parts: npt.NDArray[np.int64], sources: Sources, seed: int) -> Mixture | None:
    """Return which rows an epoch has; ``None`` if that is each row once."""
    if all(source.passes in (None, 1) and source.rows_per_epoch is None for source in sources):
        return None
    return Mixture(parts, sources, seed)
