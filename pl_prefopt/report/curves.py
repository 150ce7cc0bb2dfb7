"""Learning curves from the ``metrics.csv`` that every ``fit`` writes, whatever other loggers it has."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pl_prefopt.errors import DataError
from pl_prefopt.metric_info import current_name

Floats: TypeAlias = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """One metric over training.

    Attributes:
        steps: float64 [points], optimiser steps, rising.
        values: float64 [points].
    """

    steps: Floats
    values: Floats


def read_curves(folder: Path) -> dict[str, Curve]:
    """Return the curves of a run, by the metric's name; empty if it never trained.

    A run that was resumed has a file for each part. Where a later part repeats steps of an earlier one, which
    went on after the checkpoint, the later one counts.

    Raises:
        DataError: if a file is no table of numbers.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for path in _parts(folder):
        part = _read_part(path)
        start = min((curve[0][0] for curve in part.values()), default=float("inf"))
        points = {name: [point for point in curve if point[0] < start] for name, curve in points.items()}
        for name, curve in part.items():
            points[name] = points.get(name, []) + curve
    return {name: Curve(*np.array(curve).T) for name, curve in points.items() if curve}


def thinned(curve: Curve, most: int = 1000) -> Curve:
    """Return the curve with at most ``most`` points, each the mean of neighbours.

    >>> thinned(Curve(np.arange(4.0), np.array([1.0, 3.0, 5.0, 5.0])), most=2).values.tolist()
    [2.0, 5.0]
    """
    if len(curve.steps) <= most:
        return curve
    blocks = (np.array_split(side, most) for side in curve)
    return Curve(*(np.array([block.mean() for block in side]) for side in blocks))


def _parts(folder: Path) -> list[Path]:
    """Return ``metrics.1.csv``, ``metrics.2.csv`` and so on, and ``metrics.csv``, which is the newest."""
    earlier = [
        (path, re.fullmatch(r"metrics\.(\d+)\.csv", path.name)) for path in folder.glob("metrics.*.csv")
    ]
    numbered = sorted((int(match[1]), path) for path, match in earlier if match)
    newest = folder / "metrics.csv"
    return [path for _, path in numbered] + ([newest] if newest.is_file() else [])


def _read_part(path: Path) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    text = path.read_text(encoding="utf-8")
    # A run that is training, or was killed, leaves a last line that is cut anywhere, a number included.
    whole = text[: text.rfind("\n") + 1]
    for number, row in enumerate(csv.DictReader(io.StringIO(whole, newline="")), start=2):
        try:
            step = float(row["step"])
            values = {name: float(cell) for name, cell in row.items() if "/" in str(name) and cell}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"expected numbers by step in {path}, line {number}, got: {error}; move the file away"
            ) from error
        for name, value in values.items():
            curves.setdefault(current_name(name), []).append((step, value))
    return curves
