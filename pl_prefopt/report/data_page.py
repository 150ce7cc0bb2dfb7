"""The page on a file of preference data: sizes, scores, lengths, repetitions, and what transforms change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pl_prefopt.data.transforms import Change
from pl_prefopt.data.transforms.duplicates import leaks, text_of
from pl_prefopt.data.transforms.filters import length
from pl_prefopt.errors import ConfigError, DataError, listed
from pl_prefopt.metrics.agreement import cohen_kappa, length_bias
from pl_prefopt.metrics.bootstrap import kendall, resampled_weights, weighted_mean
from pl_prefopt.report.plain_page import Table, histogram
from pl_prefopt.rows import PreferenceRow

SCORES = "scores"
"""The name by which ``compare`` means the rows' own scores."""
_MOST_SOURCES = 20


@dataclass(slots=True)
class DataSummary:
    """Numbers of rows, collected in one pass.

    Attributes:
        counts: rows, responses, pairs and what is special about them.
        sources: rows by source.
        scores: all scores.
        score_gaps: the differences of the scores of all graded pairs.
        lengths: characters by prompt, and by better and worse response of the pairs.
        longer: 1, 0 or 0.5 per pair: whether the better response is longer.
        length_gaps: characters of the better response minus those of the worse one, per pair.
        prompt_of_pair: the number of each pair's row.
    """

    counts: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    score_gaps: list[float] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"prompt": [], "better": [], "worse": []})
    longer: list[float] = field(default_factory=list)
    length_gaps: list[int] = field(default_factory=list)
    prompt_of_pair: list[int] = field(default_factory=list)

    def add(self, number: int, row: PreferenceRow) -> None:
        """Count a row."""
        scores = row.scores or ()
        self.counts["rows"] += 1
        self.counts["responses"] += len(row.responses)
        self.counts["graded rows"] += row.graded
        self.counts["rows without scores"] += row.scores is None
        self.counts["rows with tied scores"] += len(set(scores)) < len(scores)
        self.sources[row.source] += 1
        self.scores += scores
        self.lengths["prompt"].append(sum(len(message.content) for message in row.prompt))
        sizes = [length(row, place) for place in range(len(row.responses))]
        for i, j in _pairs(scores):
            self.counts["pairs"] += 1
            if row.graded:
                self.score_gaps.append(scores[i] - scores[j])
            self.lengths["better"].append(sizes[i])
            self.lengths["worse"].append(sizes[j])
            self.length_gaps.append(sizes[i] - sizes[j])
            self.longer.append((np.sign(sizes[i] - sizes[j]) + 1) / 2)
            self.prompt_of_pair.append(number)

    def length_accuracy(self) -> tuple[float, float, float]:
        """Return the share of pairs whose better response is longer, and its 95 % interval over rows.

        Ties count as 0.5. It is how often a judge would be right who always takes the longer response.
        """
        values = np.asarray(self.longer, dtype=np.float64)
        if not len(values):
            return math.nan, math.nan, math.nan
        _, prompts = np.unique(self.prompt_of_pair, return_inverse=True)
        if prompts.max() == 0:
            return float(values.mean()), math.nan, math.nan
        samples = np.concatenate(
            [weighted_mean(values, one) for one in resampled_weights(prompts, resamples=1000, seed=0)]
        )
        low, high = np.quantile(samples, [0.025, 0.975])
        return float(values.mean()), float(low), float(high)


def _pairs(scores: Sequence[float]) -> Iterator[tuple[int, int]]:
    places = range(len(scores))
    return ((i, j) for i in places for j in places if scores[i] > scores[j])


def data_tables(
    rows: Sequence[PreferenceRow],
    *,
    held_out: Sequence[PreferenceRow] | None = None,
    compare: Sequence[str] = (),
    changes: Sequence[Change] = (),
    transformed: Sequence[PreferenceRow] | None = None,
) -> list[Table]:
    """Return the tables of the page.

    Args:
        rows: the rows.
        held_out: rows that should not be among them.
        compare: two columns with one number per response, ``scores`` for the rows' own scores.
        changes: what transforms did to the rows.
        transformed: the rows after them.

    Raises:
        ConfigError: if ``compare`` is not two columns.
        DataError: if the rows have no such numbers.
    """
    found = _summary(rows)
    tables = [
        _sizes(rows, found, held_out),
        _sources(found),
        _distribution("scores", {"score": found.scores, "gap of graded pairs": found.score_gaps}),
        _distribution("lengths in characters", dict(found.lengths)),
        _length_rule(found),
    ]
    if compare:
        tables.append(_comparison(rows, compare))
    if changes:
        tables.append(_changes(changes))
        after = _summary(transformed or ())
        tables.append(_before_and_after(found, after))
    return [table for table in tables if table.rows]


def _summary(rows: Iterable[PreferenceRow]) -> DataSummary:
    found = DataSummary()
    for number, row in enumerate(rows):
        found.add(number, row)
    return found


def _sizes(
    rows: Sequence[PreferenceRow], found: DataSummary, held_out: Sequence[PreferenceRow] | None
) -> Table:
    table = Table("size", ("", "number"))
    for name in ("rows", "responses", "pairs", "graded rows", "rows with tied scores", "rows without scores"):
        table.add(name, f"{found.counts[name]:,}")
    texts, prompts = ({text_of(row, by) for row in rows} for by in ("row", "prompt"))
    table.add("different prompts", f"{len(prompts):,}")
    table.add("rows that repeat an earlier one", f"{found.counts['rows'] - len(texts):,}")
    if held_out is not None:
        whole, prompt = leaks(held_out, "row"), leaks(held_out, "prompt")
        table.add("rows whose prompt is held out", f"{sum(prompt(text_of(row, 'prompt')) for row in rows):,}")
        table.add("rows that are held out", f"{sum(whole(text_of(row, 'row')) for row in rows):,}")
    return table


def _sources(found: DataSummary) -> Table:
    table = Table("sources", ("source", "rows"))
    if set(found.sources) != {""}:
        for source, count in found.sources.most_common(_MOST_SOURCES):
            table.add(source or "none", f"{count:,}")
        if len(found.sources) > _MOST_SOURCES:
            table.add(f"and {len(found.sources) - _MOST_SOURCES} more", "")
    return table


def _distribution(title: str, columns: dict[str, Sequence[float]]) -> Table:
    table = Table(title, ("", "least", "10 %", "median", "90 %", "greatest", "distribution"))
    for name, values in columns.items():
        if values:
            ends = np.quantile(np.asarray(values, dtype=np.float64), [0, 0.1, 0.5, 0.9, 1])
            table.add(name, *(f"{one:,.4g}" for one in ends), histogram(values))
    return table


def _length_rule(found: DataSummary) -> Table:
    table = Table("length alone", ("", "value"))
    if found.longer:
        share, low, high = found.length_accuracy()
        table.add("accuracy of taking the longer response", _percent(share, low, high))
        try:
            # Each pair in the order better, worse and the other way round: no order is privileged.
            gaps = np.asarray(found.length_gaps, dtype=np.float64)
            ones = np.ones(len(gaps))
            fitted = length_bias(np.concatenate([ones, 0 * ones]), np.concatenate([gaps, -gaps]))
            table.add("log-odds per standard deviation of length", f"{fitted.coefficient:.3f}")
        except ConfigError:
            table.add("log-odds per standard deviation of length", "not finite")
    return table


def _percent(share: float, low: float, high: float) -> str:
    interval = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * share:.1f} %{interval}"


def _comparison(rows: Sequence[PreferenceRow], compare: Sequence[str]) -> Table:
    if len(compare) != 2:
        raise ConfigError(f"expected two columns to compare, got {listed(compare)}.")
    first, second = compare
    values: tuple[list[float], list[float]] = ([], [])
    verdicts: tuple[list[int], list[int]] = ([], [])
    for row in rows:
        one, other = (_numbers(row, name) for name in (first, second))
        values[0].extend(one)
        values[1].extend(other)
        # Each pair in both orders, so that κ doesn't depend on the order of the responses.
        for i in range(len(one)):
            for j in [place for place in range(len(one)) if place != i]:
                verdicts[0].append(int(np.sign(one[i] - one[j])))
                verdicts[1].append(int(np.sign(other[i] - other[j])))
    table = Table(f"agreement of {first} and {second}", ("", "value"))
    a, b = (np.asarray(one, dtype=np.float64) for one in values)
    if len(a) >= 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
        table.add("Pearson's r over responses", f"{np.corrcoef(a, b)[0, 1]:.3f}")
        table.add("Kendall's τ-b over responses", f"{kendall(a, b):.3f}")
    if verdicts[0]:
        same = np.mean(np.asarray(verdicts[0]) == np.asarray(verdicts[1]))
        table.add("pairs with the same verdict (a tie is one)", f"{100 * same:.1f} %")
        table.add("Cohen's κ of the verdicts", f"{cohen_kappa(*verdicts):.3f}")
        table.add("pairs", f"{len(verdicts[0]) // 2:,}")
    return table


def _numbers(row: PreferenceRow, name: str) -> Sequence[float]:
    value: object = row.scores if name == SCORES else row.columns.get(name)
    if not isinstance(value, tuple) or not all(
        isinstance(one, int | float) and math.isfinite(one) for one in value
    ):
        raise DataError(
            f"expected one number per response in the column '{name}' to compare, got none in "
            f"{row.origin or 'a row'}; its columns are {listed([SCORES, *row.columns])}."
        )
    return value


def _changes(changes: Sequence[Change]) -> Table:
    table = Table("what the transforms did", ("transform", "rows before", "rows after", "removed", "changed"))
    for one in changes:
        table.add(one.name, f"{one.before:,}", f"{one.after:,}", f"{one.removed:,}", f"{one.changed:,}")
    return table


def _before_and_after(before: DataSummary, after: DataSummary) -> Table:
    table = Table("before and after", ("", "before", "after"))
    for name in ("rows", "responses", "pairs"):
        table.add(name, f"{before.counts[name]:,}", f"{after.counts[name]:,}")
    rules = (_percent(*one.length_accuracy()) if one.longer else "–" for one in (before, after))
    table.add("accuracy of taking the longer response", *rules)
    return table
