"""What a dashboard shows in addition to curves: tables of text, histograms, a layout.

Each function dispatches on the logger's class. Register a function for a logger of your own:
``publish_table.register(MyLogger)(my_function)``.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, singledispatch
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from pl_prefopt.callbacks.tensorboard import SHARED, SIDES, PairedTensorBoard
from pl_prefopt.files import name_os_errors, whole_rows

Values: TypeAlias = npt.NDArray[np.float32]
Layout: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""Category → chart → patterns of the curves in it."""

_BINS = 30


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts.

    Attributes:
        columns: the headings.
        rows: texts, one per heading.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_html(self) -> str:
        """Return the table as HTML with escaped texts."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return f"<td>{html.escape(text).replace(chr(10), '<br>')}</td>"


# -- tables of text


@singledispatch
def publish_table(logger: Logger, name: str, table: TextTable, step: int) -> None:
    """Show a table of text; for a logger without a registered function, warn once."""
    _say_scalars_only(type(logger))


@publish_table.register(TensorBoardLogger)
def _(logger: TensorBoardLogger, name: str, table: TextTable, step: int) -> None:
    logger.experiment.add_text(name, table.as_html(), step)


@publish_table.register(WandbLogger)
def _(logger: WandbLogger, name: str, table: TextTable, step: int) -> None:
    logger.log_text(name, columns=list(table.columns), data=[list(row) for row in table.rows], step=step)


@publish_table.register(MLFlowLogger)
def _(logger: MLFlowLogger, name: str, table: TextTable, step: int) -> None:
    page = f'<meta charset="utf-8">{table.as_html()}'
    logger.experiment.log_text(logger.run_id, page, f"{_file_name(name)}/step-{step:08d}.html")


@publish_table.register(CSVLogger)
def _(logger: CSVLogger, name: str, table: TextTable, step: int) -> None:
    _append(logger, name, ("step", *table.columns), [(step, *row) for row in table.rows])


@publish_table.register(DummyLogger)
def _(logger: DummyLogger, name: str, table: TextTable, step: int) -> None:
    """A trial run of a few steps leaves nothing behind."""


# -- histograms


@singledispatch
def publish_histogram(logger: Logger, name: str, values: Values, step: int) -> None:
    """Show the distribution of ``values`` [N > 0]; for a logger without a registered function, warn once."""
    _say_scalars_only(type(logger))


@publish_histogram.register(TensorBoardLogger)
def _(logger: TensorBoardLogger, name: str, values: Values, step: int) -> None:
    logger.experiment.add_histogram(name, values, step)


@publish_histogram.register(WandbLogger)
def _(logger: WandbLogger, name: str, values: Values, step: int) -> None:
    import wandb

    logger.log_metrics({name: wandb.Histogram(values)}, step)


@publish_histogram.register(MLFlowLogger)
def _(logger: MLFlowLogger, name: str, values: Values, step: int) -> None:
    counts, edges = np.histogram(values, bins=_BINS)
    content = {"edges": edges.tolist(), "counts": counts.tolist()}
    logger.experiment.log_dict(logger.run_id, content, f"{_file_name(name)}/step-{step:08d}.json")


@publish_histogram.register(CSVLogger)
def _(logger: CSVLogger, name: str, values: Values, step: int) -> None:
    counts, edges = np.histogram(values, bins=_BINS)
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    _append(logger, name, ("step", "from", "to", "count"), [(step, *each) for each in bins])


@publish_histogram.register(DummyLogger)
def _(logger: DummyLogger, name: str, values: Values, step: int) -> None:
    """A trial run of a few steps leaves nothing behind."""


# -- the layout


@singledispatch
def publish_layout(logger: Logger, layout: Layout) -> None:
    """Arrange the curves in charts; most dashboards arrange them by name and need nothing."""


@publish_layout.register(TensorBoardLogger)
def _(logger: TensorBoardLogger, layout: Layout) -> None:
    charts = {
        category: {chart: ["Multiline", list(curves)] for chart, curves in members.items()}
        for category, members in layout.items()
    }
    logger.experiment.add_custom_scalars(charts)


@publish_layout.register(PairedTensorBoard)
def _(logger: PairedTensorBoard, layout: Layout) -> None:
    charts = {
        category: {
            chart: ["Multiline", list(dict.fromkeys(map(_of_both_sides, curves)))]
            for chart, curves in members.items()
        }
        for category, members in layout.items()
    }
    logger.experiment.add_custom_scalars(charts)


def _of_both_sides(pattern: str) -> str:
    """Return the name that a curve of one side has in the runs of both; any other as it is."""
    return re.sub(rf"(?:{'|'.join(SIDES)})_({'|'.join(SHARED)})\b", r"\1", pattern)


@cache
def _say_scalars_only(kind: type[Logger]) -> None:
    print(
        f"{kind.__name__} gets scalars only: texts and histograms go to TensorBoard, W&B, MLflow, CSV, and "
        "classes registered in pl_prefopt.callbacks.publishing."
    )


def _append(logger: CSVLogger, name: str, heading: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    path = Path(logger.log_dir) / f"{_file_name(name)}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_os_errors(path), path.open("a", encoding="utf-8", newline="") as file:
        whole = len(whole_rows(path.read_bytes()))
        file.truncate(whole)  # a row that was cut would swallow the next one
        writer = csv.writer(file)
        if not whole:
            writer.writerow(heading)
        writer.writerows(rows)


def _file_name(name: str) -> str:
    return name.replace("/", "-")
