"""Prompts to sample responses for: from rows of any layout, or from prompts alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import Converted, convert, convert_prompt, scored_by
from pl_prefopt.data.sources import Reading, Source, check_names, open_source
from pl_prefopt.errors import ConfigError, DataError, printable
from pl_prefopt.rows import PreferenceRow

_MOST_NAMED = 20
"""How many columns that aren't kept are named."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a source, read one at a time.

    A prompt's number is its place in the source, whichever part is read.

    Attributes:
        source: a path, a hub name or a ``Source``.
        columns: our names of columns and those of the source, as ``data.columns``.
        part: ``(k, n)`` reads each n-th prompt from the k-th on, k from 1.
        max_prompts: read so many from the start of the source; ``None`` for all.
        aspects: the weights of the ratings that give the scores, as ``data.aspects``.
    """

    source: Any
    columns: Mapping[str, str] = field(default_factory=dict)
    part: tuple[int, int] = (1, 1)
    max_prompts: int | None = None
    aspects: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.columns)
        number, parts = self.part
        if not 1 <= number <= parts:
            raise ConfigError(f"expected a part such as 1/3, from 1/3 to 3/3, got {number}/{parts}.")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ConfigError(f"expected max_prompts to be at least 1, got {self.max_prompts}.")

    def open(self, scratch: Path, check: Callable[[PreferenceRow], object] | None = None) -> tuple[str, int]:
        """Return a hash of the content, and how many prompts there are.

        Args:
            scratch: a folder for conversions.
            check: called with each row, before anything is made of one; raises what is wrong with it.

        Raises:
            DataError: if a row is bad or there are no prompts.
        """
        reading = self._reading(scratch)
        count, lost = 0, dict[str, str]()
        for _, converted in self._converted(reading):
            count += 1
            if len(lost) < _MOST_NAMED:
                lost |= {name: why for name, value, why in converted.further if why and value is not None}
                lost |= dict.fromkeys(converted.left_out, "it isn't read")
            if check is not None:
                check(converted.row)
        label = Source.of(self.source).label
        if not count:
            raise DataError(f"expected prompts in {label}, got none.")
        if lost:
            named = "; ".join(f"'{printable(name)}' ({why})" for name, why in lost.items())
            warnings.warn(f"These columns of {label} aren't kept with the samples: {named}.", stacklevel=2)
        key = f"{reading.content_key} {self.part} {self.max_prompts} {sorted(self.columns.items())}"
        return f"{key} {sorted(self.aspects.items())}" if self.aspects else key, count

    def rows(self, scratch: Path) -> Iterator[tuple[int, PreferenceRow]]:
        """Yield the number of each prompt and its row; the row's responses are those of the source, if any.

        Raises:
            DataError: at a bad row.
        """
        yield from ((place, converted.row) for place, converted in self._converted(self._reading(scratch)))

    def _converted(self, reading: Reading) -> Iterator[tuple[int, Converted]]:
        number, parts = self.part
        for place, record in enumerate(reading.records()):
            if self.max_prompts is not None and place >= self.max_prompts:
                return
            if place % parts != number - 1:
                continue
            try:
                if record.problem:
                    raise BadRowError(record.problem)
                converted = self._convert(record.fields, reading)
            except BadRowError as error:
                raise DataError(f"{record.origin}: {error}") from error
            yield place, converted._replace(row=replace(converted.row, origin=record.origin))

    def _convert(self, fields: Mapping[str, Any], reading: Reading) -> Converted:
        if not self.aspects:
            return convert_prompt(fields, reading.mapped)
        return scored_by(convert(fields, reading.mapped), self.aspects)

    def _reading(self, scratch: Path) -> Reading:
        return open_source(Source.of(self.source), scratch, self.columns)
