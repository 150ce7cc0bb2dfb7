"""The report on reading and tokenising a split: bad rows, truncation, lengths."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pl_prefopt.data.renderer import EncodedRow
from pl_prefopt.errors import DataError
from pl_prefopt.rows import PreferenceRow

OnBadRow = Literal["error", "skip"]

_REASONS_KEPT = 5


@dataclass(slots=True)
class Problems:
    """Counts bad rows, or raises at the first one.

    Attributes:
        on_bad_row: ``error`` raises at the first bad row, ``skip`` counts it.
        count: the number of bad rows so far.
        first: the first few, as ``"file.jsonl, row 12: reason"``.
    """

    on_bad_row: OnBadRow = "error"
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Record a bad row.

        Args:
            sentence: ``"file.jsonl, row 12: reason"``.

        Raises:
            DataError: if bad rows are errors.
        """
        if self.on_bad_row == "error":
            raise DataError(f"{sentence}; fix the row, or set `data.on_bad_row: skip` to skip such rows")
        self.extend(1, [sentence])

    def extend(self, count: int, first: Sequence[str]) -> None:
        """Add bad rows that were skipped, and sentences about the first of them."""
        self.count += count
        self.first += first[: _REASONS_KEPT - len(self.first)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSummary:
    """Counts over one split.

    Attributes:
        rows: rows in use.
        responses: responses of all rows.
        single: rows with one response.
        comparable: rows with at least two different scores.
        graded: rows whose score differences are meaningful.
        truncated_prompts: prompts truncated on the left.
        truncated_responses: responses truncated on the right.
        skipped: bad rows skipped.
    """

    rows: int = 0
    responses: int = 0
    single: int = 0
    comparable: int = 0
    graded: int = 0
    truncated_prompts: int = 0
    truncated_responses: int = 0
    skipped: int = 0


class Tally:
    """Counts rows as they are tokenised.

    Attributes:
        summary: the counts, without ``skipped``.
        percentiles: for ``prompt`` and ``response``, the median, 90th and 99th percentile and maximum of the
            number of tokens before truncation.
        largest_token: the largest token id.
    """

    def __init__(self) -> None:
        self.summary = RowsSummary()
        self.percentiles: dict[str, list[int]] = {}
        self.largest_token = 0
        self._lengths: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}

    def add(self, row: PreferenceRow, encoded: EncodedRow) -> None:
        """Count one row."""
        before = self.summary
        scores = set(row.scores or ())
        self.summary = RowsSummary(
            rows=before.rows + 1,
            responses=before.responses + len(row.responses),
            single=before.single + (len(row.responses) == 1),
            comparable=before.comparable + (len(scores) > 1),
            graded=before.graded + row.graded,
            truncated_prompts=before.truncated_prompts + (encoded.prompt_cut > 0),
            truncated_responses=before.truncated_responses + sum(cut > 0 for cut in encoded.response_cuts),
        )
        ids = (encoded.prompt_ids, *encoded.response_ids)
        self.largest_token = max(self.largest_token, *map(max, ids))
        self._lengths["prompt"][len(encoded.prompt_ids) + encoded.prompt_cut] += 1
        self._lengths["response"].update(
            len(ids) + cut for ids, cut in zip(encoded.response_ids, encoded.response_cuts, strict=True)
        )

    def counts(self) -> dict[str, Any]:
        """Return the counts so far for a JSON file."""
        lengths = {name: sorted(found.items()) for name, found in self._lengths.items()}
        return {
            "summary": dataclasses.asdict(self.summary),
            "largest_token": self.largest_token,
            "lengths": lengths,
        }

    def merge(self, counts: Mapping[str, Any]) -> None:
        """Add what ``counts`` returned for other rows."""
        own = dataclasses.asdict(self.summary)
        self.summary = RowsSummary(**{name: own[name] + counts["summary"][name] for name in own})
        self.largest_token = max(self.largest_token, counts["largest_token"])
        for name, found in counts["lengths"].items():
            for length, times in found:
                self._lengths[name][length] += times

    def finish(self) -> None:
        """Compute the percentiles."""
        for name, found in self._lengths.items():
            lengths = np.repeat(list(found), list(found.values()))
            self.percentiles[name] = np.percentile(lengths, [50, 90, 99, 100]).astype(int).tolist()

    def to_json(self) -> dict[str, Any]:
        """Return the finished tally for a JSON file."""
        return {
            "summary": dataclasses.asdict(self.summary),
            "percentiles": self.percentiles,
            "largest_token": self.largest_token,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Tally:
        """Return the tally that ``to_json`` stored."""
        tally = cls()
        tally.summary = RowsSummary(**stored["summary"])
        tally.percentiles = dict(stored["percentiles"])
        tally.largest_token = int(stored["largest_token"])
        return tally


def write_report(
    title: str,
    summary: RowsSummary,
    problems: Sequence[str],
    percentiles: Mapping[str, Sequence[int]],
    cut_in_views: Mapping[str, int],
    joined: Sequence[str] = (),
) -> str:
    """Return the lines that are printed when a split is ready.

    Args:
        title: the split and its source, such as ``"train (pairs.jsonl)"``.
        summary: the counts.
        problems: sentences about the first bad rows.
        percentiles: the percentiles of a ``Tally``.
        cut_in_views: the number of truncated prompts per view.
        joined: lines on file rows that were joined to lists.
    """
    lines = [
        f"{title}: {summary.rows} rows, {summary.responses} responses, "
        f"{summary.comparable} rows whose scores differ"
    ]
    lines += [f"  {line}" for line in joined]
    if summary.skipped:
        lines.append(f"  {summary.skipped} bad rows skipped, the first of them:")
        lines += [f"    {problem}" for problem in problems]
    cuts = {"prompt": summary.truncated_prompts, "response": summary.truncated_responses}
    for name, (median, most, nearly_all, longest) in percentiles.items():
        lines.append(
            f"  {name} tokens: median {median}, 90% {most}, 99% {nearly_all}, longest {longest}; "
            f"{cuts[name]} {name}s truncated"
        )
    lines += [f"  {name} view: {cut} prompts truncated" for name, cut in cut_in_views.items() if cut]
    return "\n".join(lines)
