"""`prefopt report`: writes an HTML page that compares runs."""

from __future__ import annotations

from pathlib import Path

from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import atomic_write, without_dots
from pl_prefopt.report import build_report, find_config, read_runs, write_figures


def report(arguments: list[str]) -> None:
    """Run ``prefopt report`` with the given command-line arguments."""
    parser = PlainParser(prog="prefopt report", description="Write one HTML page that compares runs.")
    parser.add_argument("runs", type=str, nargs="+", help="The runs' folders: runs/NAME runs/OTHER.")
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
    settings = parser.parse_args(arguments)
    write_report(
        [Path(run) for run in settings.runs],
        without_dots(Path(settings.out)) if settings.out else None,
        without_dots(Path(settings.figures)) if settings.figures else None,
    )


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
