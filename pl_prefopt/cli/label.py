"""`prefopt label`: a judge's verdicts on the rows of a file, as rows that can be trained on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pl_prefopt.cli.class_sources import ClassSource, find_class
from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.known_classes import UnknownClassError, named_class
from pl_prefopt.cli.parser import Parser
from pl_prefopt.cli.plugins import KINDS, load_plugins
from pl_prefopt.data import Source
from pl_prefopt.data.columns import describe_unkept
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import without_dots
from pl_prefopt.judges import Cost, Judge
from pl_prefopt.judges.labelling import Labelled, Labelling

_EVERY = 20.0
"""Seconds between lines of progress where the output is no terminal."""


def label(arguments: list[str]) -> None:
    """Run ``prefopt label`` with the given command-line arguments."""
    make_importable([word.rpartition("=")[2] for word in arguments])
    check_judge(arguments)
    parser = _parser()
    settings = parser.parse_args(arguments)
    judge: Judge = parser.instantiate(settings).judge
    labelling = Labelling(
        source=Source(path=settings.data, split=settings.split),
        judge=judge,
        columns=settings.columns,
        context=settings.context,
        context_column=settings.context_column,
        on_bad_row=settings.on_bad_row,
        drop_invalid=settings.drop_invalid,
        max_rows=settings.max_rows,
    )
    out = without_dots(Path(settings.out))
    try:
        found = labelling.run(out, _Progress())
    finally:
        judge.close()
    print("\n".join(_summary(found, out)))


def _parser() -> Parser:
    parser = Parser(prog="prefopt label", description="Write a judge's verdicts on the rows of a file.")
    parser.add_argument("data", type=str, help="A file, a folder or a data set of the hub.")
    parser.add_argument(
        "--judge",
        type=Judge,
        sub_configs=True,
        required=True,
        help="The judge: a class with its settings as --judge.NAME VALUE, or a YAML file.",
    )
    parser.add_argument("--out", type=str, required=True, help="The file to write, FILE.jsonl.")
    parser.add_argument(
        "--columns",
        type=dict[str, str],
        default={},
        help="Our names of columns and those of the file: --columns.prompt question.",
    )
    parser.add_argument("--split", type=str, default="train", help="The split of a folder or hub data set.")
    parser.add_argument("--context", type=str, default="", help="A text for the judge, such as criteria.")
    parser.add_argument(
        "--context_column", type=str | None, default=None, help="A column with such a text of each row."
    )
    parser.add_argument(
        "--on_bad_row", type=Literal["error", "skip"], default="error", help="What to do with bad rows."
    )
    parser.add_argument(
        "--drop_invalid",
        type=bool,
        default=False,
        help="Leave out rows with an invalid answer; otherwise they are written without scores.",
    )
    parser.add_argument("--max_rows", type=int | None, default=None, help="Read so many rows from the start.")
    return parser


def check_judge(arguments: Sequence[str]) -> None:
    """Check that ``--judge``, if there is one, is a class or a file, and import plug-ins.

    Args:
        arguments: those of the command line.

    Raises:
        ConfigError: if there is no such class or file.
    """
    base = find_class(KINDS["judges"])
    assert isinstance(base, ClassSource)
    for name in _judges(arguments):
        if Path(name).is_file():
            continue
        if name.endswith((".yaml", ".yml")):
            raise ConfigError(
                f"expected `--judge` to be a class or a YAML file, but there is no file {name}."
            )
        load_plugins([name])
        try:
            named_class(name, [base])
        except UnknownClassError as error:
            raise ConfigError(f"--judge: {error}") from error


def _judges(arguments: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option == "--judge" and (equals or place + 1 < len(arguments)):
            yield value if equals else arguments[place + 1]


class _Progress:
    """Prints lines of progress to the standard error stream."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, found: Labelled) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or now - self._last >= _EVERY:
            self._last = now
            missing = f"{found.invalid} responses or pairs without a verdict"
            line = f"{done} of {total} rows, {missing}, {_cost(found.cost)}"
            end = "\r" if sys.stderr.isatty() and done < total else "\n"
            print(f"\x1b[2K{line}" if sys.stderr.isatty() else line, end=end, file=sys.stderr, flush=True)


def _summary(found: Labelled, out: Path) -> Iterator[str]:
    for line in found.joined:
        yield f"  {line}"
    for sentence in found.bad_rows:
        yield f"  skipped {sentence}"
    if found.left_out:
        yield f"  {describe_unkept(found.left_out)}"
    skipped = f", {found.skipped} bad rows skipped" if found.skipped else ""
    yield f"Wrote {out}: {found.rows - found.dropped} rows{skipped}"
    if found.invalid:
        what = "left out" if found.dropped else "written without scores"
        yield (
            f"  no verdict: {found.invalid} responses or pairs, in {found.incomplete} rows, which are {what}"
        )
        yield from (f"    {sentence}" for sentence in dict.fromkeys(found.problems))
    yield f"  cost: {_cost(found.cost)}"


def _cost(cost: Cost) -> str:
    """Return a cost as text; what is zero is left out."""
    counts = {
        "requests": cost.requests,
        "repeated requests": cost.retries,
        "answers from the disk": cost.cached,
        "tokens read": cost.input_tokens,
        "tokens generated": cost.output_tokens,
    }
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    money = [f"{cost.money:.4f} for tokens"] if cost.money else []
    return ", ".join([*parts, *money, f"{cost.seconds:.1f} s of judging"])
