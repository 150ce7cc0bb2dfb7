"""`prefopt report`: writes an HTML page on runs, on benchmarks or on preference data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.cli.transform import named_in
from pl_prefopt.data.cache import Cache
from pl_prefopt.data.sources import Source
from pl_prefopt.data.store import RowStore, store_rows
from pl_prefopt.data.transforms import RowTransform, transform_rows
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import atomic_write, without_dots
from pl_prefopt.report import (
    Table,
    bench_tables,
    build_report,
    data_tables,
    find_config,
    is_bench,
    plain_page,
    read_results,
    read_runs,
    write_figures,
)


def report(arguments: list[str]) -> None:
    """Run ``prefopt report`` with the given command-line arguments."""
    parser = PlainParser(
        prog="prefopt report", description="Write one HTML page on runs, benchmarks or preference data."
    )
    parser.add_argument(
        "runs", type=str, nargs="*", help="The folders of runs, or of `prefopt bench`: runs/NAME runs/OTHER."
    )
    parser.add_argument("-c", "--config", action="config", help="A YAML file with `transforms:` for --data.")
    parser.add_argument(
        "--data", type=str | None, default=None, help="A file of preference data to describe."
    )
    parser.add_argument(
        "--held_out", type=str | None, default=None, help="Of --data: a file that should not be among it."
    )
    parser.add_argument(
        "--compare", type=str | None, default=None, help="Of --data: two columns of scores: ONE,OTHER."
    )
    parser.add_argument(
        "--transforms", type=list[RowTransform], default=[], help="Of --data: transforms to try."
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="The page. Default: report.html, in the run folder if there is one run, else here.",
    )
    parser.add_argument(
        "--figures",
        type=str | None,
        default=None,
        help="A folder for every figure as SVG and PNG; needs kaleido and a Chrome or Chromium.",
    )
    make_importable(named_in(arguments))
    settings = parser.parse_args(arguments)
    out = without_dots(Path(settings.out)) if settings.out else None
    if settings.data is not None:
        _report_data(settings, parser.instantiate_classes(settings).transforms, out)
        return
    folders = [Path(run) for run in settings.runs]
    if not folders:
        raise ConfigError("prefopt report needs the folders of runs, or --data FILE.")
    if all(is_bench(folder) for folder in folders):
        tables, notes = bench_tables(read_results(folders))
        _write_page("Benchmarks", tables, notes, out or Path("bench.html"))
        return
    write_report(folders, out, without_dots(Path(settings.figures)) if settings.figures else None)


def _report_data(settings: Any, transforms: list[RowTransform], out: Path | None) -> None:
    """Describe a file of preference data."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder)

        def read(path: str) -> RowStore:
            return store_rows(cache, Source.of(path), on_bad_row="skip", max_rows=None)

        store, others = read(settings.data), [read(settings.held_out)] if settings.held_out else []
        held_out = [row for one in others for row in one.rows] if others else None
        made = transform_rows(cache, store, transforms, held_out=others) if transforms else None
        tables = data_tables(
            store.rows,
            held_out=held_out,
            compare=settings.compare.split(",") if settings.compare else (),
            changes=made.changes if made else (),
            transformed=made.store.rows if made else None,
        )
    label = Source.of(settings.data).label
    notes = [f"{store.skipped} bad rows are left out."] if store.skipped else []
    for table in tables:
        print("\n".join(table.lines()) + "\n")
    _write_page(f"Data: {label}", tables, notes, out or Path("data.html"))


def _write_page(title: str, tables: Sequence[Table], notes: Sequence[str], out: Path) -> None:
    with atomic_write(out) as draft:
        draft.write_text(plain_page(title, tables, notes), encoding="utf-8")
    print(f"Wrote {out}")


def write_report(folders: list[Path], out: Path | None = None, figures: Path | None = None) -> Path:
    """Write the report of some runs.

    Args:
        folders: the run folders. If there are several, those that aren't run folders are skipped with a note.
        out: the page; by default ``report.html``, in the run folder if there is one run, else in the working
            directory.
        figures: a folder to which the figures are written as files; optional.

    Returns:
        The page's path.

    Raises:
        ConfigError: if no folder is a run folder, or the page cannot be written.
        DataError: if a file of a run cannot be read.
    """
    folders = _runs_among(folders)
    runs = read_runs(folders)
    out = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise ConfigError(f"Expected --out to be a file, but {out} is a folder: try {out / 'report.html'}.")
    made = build_report(runs)
    with atomic_write(out) as draft:
        draft.write_text(made.html, encoding="utf-8")
    print(f"Wrote {out}")
    if figures is not None:
        print(f"Wrote {len(write_figures(made.panels, figures))} figures to {figures}")
    return out


def _runs_among(folders: list[Path]) -> list[Path]:
    """Return the run folders among ``folders``, since ``runs/*`` also matches other files."""
    found, refused = [], []
    for folder in folders:
        try:
            find_config(folder)
            found.append(folder)
        except ConfigError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for reason in refused:
        print(f"Left out: {reason}")
    return found
