"""`prefopt transform`: applies transforms to rows and writes what comes out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.data.cache import Cache
from pl_prefopt.data.formats import as_fields
from pl_prefopt.data.report import OnBadRow
from pl_prefopt.data.sources import Source, check_names
from pl_prefopt.data.store import RowStore, store_rows
from pl_prefopt.data.transforms import RowTransform, transform_rows
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import atomic_write, without_dots


def named_in(arguments: list[str]) -> list[Any]:
    """Return the settings of a command line and of the YAML files that it names."""
    found = []
    for word in arguments:
        try:
            found.append(yaml.safe_load(Path(word).read_text(encoding="utf-8") if is_yaml(word) else word))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser says what is wrong
    return found


def is_yaml(word: str) -> bool:
    """Return whether a word of a command line names a YAML file."""
    return word.endswith((".yaml", ".yml"))


def transform(arguments: list[str]) -> None:
    """Run ``prefopt transform`` with the given command-line arguments."""
    parser = _parser()
    make_importable(named_in(arguments))
    settings = parser.parse_args(arguments)
    out = without_dots(Path(settings.out))
    if out.suffix != ".jsonl":
        raise ConfigError(f"expected --out to end in .jsonl, got {out}.")
    check_names(settings.columns)
    transforms = parser.instantiate_classes(settings).transforms
    if not transforms:
        raise ConfigError("prefopt transform needs transforms: type -c FILE.yaml with a list `transforms:`.")
    with tempfile.TemporaryDirectory() as folder:
        found = _transformed(settings, transforms, Cache(folder))
        with atomic_write(out) as draft, draft.open("w", encoding="utf-8") as file:
            for row in found.rows:
                fields = {name: value for name, value in as_fields(row).items() if value is not None}
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        print(f"Wrote {len(found.rows)} rows to {out}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="prefopt transform", description="Apply transforms to rows and write what comes out."
    )
    parser.add_argument("data", type=str, help="A file, a folder or a data set of the hub.")
    parser.add_argument("-c", "--config", action="config", help="A YAML file with `transforms:`.")
    parser.add_argument("--transforms", type=list[RowTransform], default=[], help="The transforms, in order.")
    parser.add_argument("--out", type=str, required=True, help="The file to write: NAME.jsonl.")
    parser.add_argument(
        "--held_out", type=str, nargs="*", default=[], help="Files with which RemoveLeakage compares."
    )
    parser.add_argument("--split", type=str, default="train", help="The split of a folder or hub data set.")
    parser.add_argument("--columns", type=dict[str, str], default={}, help="Our names of columns: theirs.")
    parser.add_argument("--on_bad_row", type=OnBadRow, default="error", help="error or skip.")
    parser.add_argument("--max_rows", type=int | None, default=None, help="Number of rows to read at most.")
    return parser


def _transformed(settings: Any, transforms: list[RowTransform], cache: Cache) -> RowStore:
    """Read the rows, apply the transforms, and print what each changed."""
    source = Source(path=settings.data, split=settings.split)

    def read(one: Source) -> RowStore:
        return store_rows(
            cache,
            one,
            on_bad_row=settings.on_bad_row,
            max_rows=settings.max_rows if one is source else None,
            columns=settings.columns,
        )

    others = [read(Source(path=path)) for path in settings.held_out]
    store = read(source)
    print(f"{source.label}: {len(store.rows)} rows, {store.skipped} bad rows skipped")
    found = transform_rows(
        cache,
        store,
        transforms,
        held_out=others,
        held_out_key=[one.content for one in others],
        title=source.label,
    )
    for change in found.changes:
        print(f"  {change}")
    return found.store
