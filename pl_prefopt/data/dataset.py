"""The dataset of one split: tokenised preference rows, read as batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pl_prefopt.data.arrow import StoredRows, read_tokens
from pl_prefopt.data.cache import Cache
from pl_prefopt.data.collate import align_with_plain, collate
from pl_prefopt.data.columns import ColumnInfo, collate_columns, describe_unused
from pl_prefopt.data.names import Names
from pl_prefopt.data.renderer import Renderer
from pl_prefopt.data.report import OnBadRow, Problems, RowsSummary, write_report
from pl_prefopt.data.store import RowStore, TokenStore, ViewedRows, store_tokens
from pl_prefopt.data.tables import Table
from pl_prefopt.errors import ConfigError, DataError, listed, printable, suggest
from pl_prefopt.rows import PreferenceRow, Value
from pl_prefopt.types import PLAIN, PreferenceBatch, TokenTree
from pl_prefopt.views import View


class PreferenceDataset(Dataset[PreferenceBatch]):
    """Rows of one split and their tokens, memory-mapped from disk.

    Create it with ``PreferenceDataset.tokenised``. It is indexed with *lists* of row numbers: each list is a
    batch.

    Attributes:
        split: ``train``, ``val``, ``test`` or ``predict``.
        rows: the rows as text.
        renderer: the renderer that tokenised them.
        views: the views that are tokenised in addition to the plain rows, by name.
        lengths: int64 [rows], number of tokens per row: its prompt once, and all its responses.
        tokens_fingerprint: a string that changes whenever rows, tokens or views do; it ignores extra columns.
        fingerprint: the same, but it also changes with the extra columns if batches have any.
        summary: counts over the split.
        largest_token: the largest token id in any view, for which a model needs an embedding.
        report: the lines to print when the split is ready.
        columns: the types of the extra columns in batches, by name. The rows have all extra columns.
        unused_columns: the lines to print on extra columns that nothing reads.
        names: the tables of the columns that batches have as numbers of names, by column.
    """

    def __init__(
        self,
        *,
        split: str,
        rows: StoredRows,
        renderer: Renderer,
        views: Mapping[str, View],
        tables: Mapping[str, Table],
        fingerprint: str,
        summary: RowsSummary,
        largest_token: int,
        report: str,
        cache: Cache,
        columns: Mapping[str, ColumnInfo],
        columns_content: str,
        unused_columns: Sequence[str] = (),
    ) -> None:
        self.split, self.rows, self.renderer = split, rows, renderer
        self.views, self._tables = dict(views), dict(tables)
        self.tokens_fingerprint, self.summary, self.report = fingerprint, summary, report
        self.largest_token = largest_token
        self.columns, self._columns_content = dict(columns), columns_content
        self.unused_columns = list(unused_columns)
        self.names: dict[str, Names] = {}
        self._cache = cache
        self.lengths: npt.NDArray[np.int64] = tables[PLAIN].column("length")
        self._parts = rows.part_numbers

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever rows, tokens, views or the columns in batches do."""
        if not self.columns:
            return self.tokens_fingerprint
        return f"{self.tokens_fingerprint}-{self._columns_content}-{sorted(self.columns)}"

    @classmethod
    def tokenised(
        cls,
        store: RowStore,
        renderer: Renderer,
        *,
        cache: Cache,
        split: str = "train",
        title: str = "",
        numbers: npt.NDArray[np.int64] | None = None,
        views: Mapping[str, View] | None = None,
        on_bad_row: OnBadRow = "error",
        columns: Sequence[str] | None = None,
    ) -> PreferenceDataset:
        """Tokenise stored rows and their views, or read their tokens from the cache.

        Args:
            store: the rows of a source.
            renderer: tokenises them.
            cache: the cache of the tokens.
            split: the split's name.
            title: the split's name in the report.
            numbers: the row numbers that make up the split; all rows by default.
            views: other renderings to tokenise, by name.
            on_bad_row: what to do with rows that the chat template rejects, or whose responses have different
                scores and the same tokens.
            columns: the extra columns to put into batches; all by default.

        Raises:
            DataError: naming the row, if it is such a row and ``on_bad_row`` is ``error``.
        """
        rows = store.rows if numbers is None else store.rows.subset(numbers)
        key = (store.content, None if numbers is None else numbers.tobytes())
        plain = store_tokens(cache, rows, renderer, key=key, on_bad_row=on_bad_row, distinct=True)
        rows = rows.subset(plain.table.column("row"))
        views = dict(views or {})
        viewed = {
            name: store_tokens(
                cache,
                ViewedRows(rows, view),
                renderer,
                key=(*key, plain.content, view.fingerprint, store.columns_content),
                view=name,
            )
            for name, view in views.items()
        }
        alike = _alike(plain, [viewed[name] for name, view in views.items() if view.differs])
        if alike.size:
            every = np.arange(len(store.rows)) if numbers is None else numbers
            return cls.tokenised(
                _without(store, [rows[place] for place in alike.tolist()], on_bad_row),
                renderer,
                cache=cache,
                split=split,
                title=title,
                numbers=np.delete(every, plain.table.column("row")[alike]),
                views=views,
                on_bad_row=on_bad_row,
                columns=columns,
            )
        tokens, carried = {PLAIN: plain, **viewed}, store.rows.columns.infos
        skipped = store.skipped + plain.skipped
        summary = dataclasses.replace(plain.tally.summary, skipped=skipped)
        problems = [*store.problems, *plain.problems]
        cut = {name: found.tally.summary.truncated_prompts for name, found in viewed.items()}
        return cls(
            split=split,
            rows=rows,
            renderer=renderer,
            views=views,
            tables={name: token_store.table for name, token_store in tokens.items()},
            fingerprint=_fingerprint(tokens),
            summary=summary,
            largest_token=_largest_token(tokens),
            report=write_report(
                title or split, summary, problems, plain.tally.percentiles, cut, joined=store.joined
            ),
            cache=cache,
            columns={name: info for name, info in carried.items() if columns is None or name in columns},
            columns_content=store.columns_content,
            unused_columns=describe_unused(store.columns, used=carried if columns is None else columns),
        )

    def read_by(self, renderer: Renderer) -> PreferenceDataset:
        """Return the same rows and views, tokenised by another renderer and cached.

        Raises:
            DataError: naming the row, if the renderer's chat template rejects it.
        """
        tokens = {PLAIN: store_tokens(self._cache, self.rows, renderer, key=(self.tokens_fingerprint,))}
        for name, view in self.views.items():
            key, shown = (self.tokens_fingerprint, view.fingerprint), ViewedRows(self.rows, view)
            tokens[name] = store_tokens(self._cache, shown, renderer, key=key, view=name)
        return PreferenceDataset(
            split=self.split,
            rows=self.rows,
            renderer=renderer,
            views=self.views,
            tables={name: token_store.table for name, token_store in tokens.items()},
            fingerprint=_fingerprint(tokens),
            summary=tokens[PLAIN].tally.summary,
            largest_token=_largest_token(tokens),
            report=self.report,
            cache=self._cache,
            columns=self.columns,
            columns_content=self._columns_content,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> PreferenceBatch:
        """Return ``batch(indices)``: the form that a ``DataLoader`` asks for."""
        return self.batch(indices)

    def batch(
        self,
        indices: Sequence[int],
        *,
        views: Sequence[str] | None = None,
    ) -> PreferenceBatch:
        """Collect rows into a batch.

        Args:
            indices: B row numbers. ``~i`` stands for row ``i`` as a filler that evens out the ranks: it has
                tokens, but none of its responses is present.
            views: which trees to build; by default the plain one and all of the dataset's views.

        Returns:
            A batch whose ``index`` holds row numbers in this split.

        Raises:
            ConfigError: if the dataset has no such view.
        """
        numbers = [index if index >= 0 else ~index for index in indices]
        rows = [self.rows[number] for number in numbers]
        real = torch.tensor([index >= 0 for index in indices])
        present, scores = _scores(rows, real)
        names = [PLAIN, *self.views] if views is None else views
        trees = {name: self._tree(name, numbers) for name in names}
        if PLAIN in trees:
            trees |= {
                name: align_with_plain(trees[PLAIN], tree) for name, tree in trees.items() if name != PLAIN
            }
        return PreferenceBatch(
            index=torch.tensor(numbers, dtype=torch.int64),
            split=self.split,
            rows=rows,
            present=present,
            scores=scores,
            graded=torch.tensor([row.graded for row in rows]) & real,
            trees=trees,
            columns=collate_columns(rows, self.columns, scores.shape[1], self.names),
            sets=[self.rows.part_names[part] for part in self._parts[numbers]] if self.sets else (),
        )

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sources that the rows come from; empty if they have no names."""
        return tuple(filter(None, self.rows.part_names))

    def column(self, name: str) -> list[Value]:
        """Return the values of an extra column for all rows; ``None`` where a row has no value.

        Raises:
            ConfigError: if it isn't one of ``columns``.
        """
        if name not in self.columns:
            raise ConfigError(f"expected a column among {listed(self.columns)}, got '{printable(name)}'.")
        return self.rows.column(name)

    def longer_than(self, limit: int) -> list[int]:
        """Return the rows with more than ``limit`` tokens in the prompt and one response, in any view."""
        found = set()
        for table in self._tables.values():
            for number in np.flatnonzero(table.column("length") > limit).tolist():
                row = read_tokens(table, number)
                if len(row.prompt_ids) + max(map(len, row.response_ids)) > limit:
                    found.add(number)
        return sorted(found)

    def _tree(self, view: str, numbers: Sequence[int]) -> TokenTree:
        if view not in self._tables:
            known = ", ".join(self._tables)
            raise ConfigError(f"expected a view among {known}, got '{view}'{suggest(view, self._tables)}")
        return collate([read_tokens(self._tables[view], number) for number in numbers])


def _alike(plain: TokenStore, others: Sequence[TokenStore]) -> npt.NDArray[np.int64]:
    """Return the places of the rows whose prompt has the same tokens in another view."""
    found = [
        place
        for place in range(len(plain.table) if others else 0)
        for other in others
        if np.array_equal(
            read_tokens(plain.table, place).prompt_ids, read_tokens(other.table, place).prompt_ids
        )
    ]
    return np.unique(np.array(found, dtype=np.int64))


def _without(store: RowStore, rows: Sequence[PreferenceRow], on_bad_row: OnBadRow) -> RowStore:
    """Count rows whose two prompts have the same tokens as bad rows.

    Raises:
        DataError: naming the first of them, if bad rows are errors or no row is left.
    """
    problems = Problems(on_bad_row, store.skipped, list(store.problems))
    for row in rows:
        problems.add(
            f"{row.origin or 'a row'}: its two prompts differ only in what is truncated or not tokenised; "
            "there is nothing to prefer"
        )
    if problems.count >= len(store.rows) + store.skipped:
        raise DataError(f"expected rows whose two prompts differ, got none; {problems.first[-1]}")
    return store._replace(skipped=problems.count, problems=problems.first)


def _scores(rows: Sequence[PreferenceRow], real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``present`` and ``scores``, both [B, R]; fillers are absent and have NaN scores."""
    most = max(len(row.responses) for row in rows)
    counts = torch.tensor([len(row.responses) for row in rows])
    present = (torch.arange(most) < counts[:, None]) & real[:, None]
    scores = torch.full((len(rows), most), torch.nan)
    for b, row in enumerate(rows):
        if row.scores is not None and real[b]:
            scores[b, : len(row.scores)] = torch.tensor(row.scores)
    return present, scores


def _largest_token(tokens: Mapping[str, TokenStore]) -> int:
    return max(one.tally.largest_token for one in tokens.values())


def _fingerprint(tokens: Mapping[str, TokenStore]) -> str:
    return "-".join(f"{name}:{tokens[name].content}" for name in sorted(tokens))
