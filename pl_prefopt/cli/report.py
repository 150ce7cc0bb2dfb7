"""A page that compares runs."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from pl_prefopt.errors import ConfigError
from pl_prefopt.files import replacing
from pl_prefopt.report import build_report, read_runs, write_figures


def report(arguments: list[str]) -> None:
    """Run ``prefopt report`` with the given command line arguments."""
    parser = ArgumentParser(prog="prefopt report", description="Write one HTML page that compares runs.")
    parser.add_argument("runs", type=str, nargs="+", help="The runs' folders: runs/NAME runs/OTHER.")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="The page. Default: report.html, in the run's folder if it is one, else here.",
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
        Path(settings.out) if settings.out else None,
        Path(settings.figures) if settings.figures else None,
    )


def write_report(folders: list[Path], out: Path | None = None, figures: Path | None = None) -> Path:
    """Write the report of some runs.

    Args:
        folders: the runs' folders.
        out: the page; by default ``report.html``, in the run's folder if it is one, else here.
        figures: a folder for the figures as files, if wanted.

    Returns:
        The page's path.

    Raises:
        ConfigError: if a folder is no run's, or the page cannot be written there.
        DataError: if a file of a run cannot be read.
    """
    runs = read_runs(folders)
    out = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise ConfigError(f"Expected --out to be a file, but {out} is a folder: try {out / 'report.html'}.")
    made = build_report(runs)
    with replacing(out) as draft:
        draft.write_text(made.html, encoding="utf-8")
    print(f"Wrote {out}")
    if figures is not None:
        print(f"Wrote {len(write_figures(made.panels, figures))} figures to {figures}")
    return out
