"""`prefopt data`: what rows are taken for, and their tokens, before anything is trained."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pl_prefopt.data.cache import Cache
from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import WEIGHT, check_weights, convert, scored_by
from pl_prefopt.data.renderer import Ids, Mask, Renderer
from pl_prefopt.data.sources import Source, check_names, open_source
from pl_prefopt.data.store import store_rows
from pl_prefopt.errors import ConfigError, first_line, printable
from pl_prefopt.rows import PreferenceRow

_LEGEND = "Tokens are separated by `·`; those in [brackets] count in a log-prob; special ones have a *."
_TEXTS = 60
"""Tokens shown of a prompt or a response, from each end."""


def data(arguments: list[str]) -> None:
    """Run ``prefopt data`` with the given command-line arguments."""
    options = _parse(arguments)
    columns = dict(named_pairs(options.columns))
    check_names(columns)
    aspects = dict(_weights(options.aspects))
    check_weights(aspects)
    renderer = Renderer(
        _tokenizer(options.tokenizer),
        template=options.template,
        arguments=options.template_arguments,
        max_prompt_length=options.max_prompt_length,
        max_response_length=options.max_response_length,
    )
    for path in options.files:
        source = Source.of(path)
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(folder)
            store = store_rows(
                cache,
                source,
                on_bad_row="skip",
                max_rows=options.max_rows,
                columns=columns,
                aspects=aspects,
            )
            dataset = PreferenceDataset.tokenised(
                store, renderer, cache=cache, title=source.label, on_bad_row="skip", columns=(WEIGHT,)
            )
            layouts = layouts_of(source, columns, options.max_rows, aspects)
            print("\n".join(_described(layouts, dataset, options)))


def _parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="prefopt data",
        description="Show what the rows of files are taken for: their layout, columns and tokens.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="A file, a folder or a data set of the hub.")
    parser.add_argument("--tokenizer", required=True, help="The policy's folder or hub name.")
    parser.add_argument(
        "--template", default="auto", help="auto, chat, plain, none, or a file with a chat template."
    )
    parser.add_argument(
        "--template_arguments",
        type=_object,
        default={},
        metavar="JSON",
        help="Arguments of the chat template, such as '{\"enable_thinking\": false}'.",
    )
    parser.add_argument("--max_prompt_length", type=int, default=1024)
    parser.add_argument("--max_response_length", type=int, default=1024)
    parser.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="OURS=THEIRS",
        help="Our names of columns and those of the files, such as prompt=question.",
    )
    parser.add_argument(
        "--aspects",
        nargs="*",
        default=[],
        metavar="COLUMN=WEIGHT",
        help="Columns with one rating per response, whose weighted mean is its score, such as honesty=2.",
    )
    parser.add_argument("--max_rows", type=int, help="Read so many rows from the start of each file.")
    parser.add_argument("--rows", type=int, default=2, help="How many rows to show as tokens; 2 by default.")
    return parser.parse_args(arguments)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got '{printable(text)}'")
    return value


def named_pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield our names of columns and those of the files, from ``OURS=THEIRS``."""
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"expected `--columns OURS=THEIRS`, such as prompt=question, got '{word}'.")
        yield ours, theirs


def _weights(words: Sequence[str]) -> Iterator[tuple[str, float]]:
    for word in words:
        column, _, weight = word.rpartition("=")
        try:
            found = float(weight)
        except ValueError:
            column = ""
        if not column:
            raise ConfigError(f"expected `--aspects COLUMN=WEIGHT`, such as honesty=2, got '{word}'.")
        yield column, found


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected a tokeniser at `--tokenizer {name}`, got: {first_line(error)}; check the name."
        ) from error


def _described(layouts: Counter[str], dataset: PreferenceDataset, options: Any) -> Iterator[str]:
    yield dataset.report
    yield f"  layouts: {', '.join(f'{name} {count}' for name, count in layouts.most_common())}"
    yield from (f"  {line}" for line in dataset.unused_columns)
    yield f"  rows with ties: {sum(map(_has_ties, dataset.rows))}; repeated rows: {_repeated(dataset.rows)}"
    if options.rows:
        yield f"\n{_LEGEND}"
    for number in range(min(options.rows, len(dataset.rows))):
        yield from _as_tokens(dataset.rows[number], dataset.renderer)


def layouts_of(
    source: Source,
    columns: Mapping[str, str],
    max_rows: int | None,
    aspects: Mapping[str, float] | None = None,
) -> Counter[str]:
    """Return how many usable rows have each layout."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        reading = open_source(source, Cache(scratch).root, columns)
        for record in reading.records():
            if max_rows is not None and found.total() >= max_rows:
                break
            try:
                converted = scored_by(convert(record.fields, reading.mapped), aspects or {})
                found[converted.layout] += not record.problem
            except (BadRowError, RecursionError):
                continue
    return +found


def _has_ties(row: PreferenceRow) -> bool:
    scores = row.scores or ()
    return len(set(scores)) < len(scores)


def _repeated(rows: Sequence[PreferenceRow]) -> int:
    """Return how many rows have the prompt and the responses of an earlier one."""
    return len(rows) - len({(row.prompt, row.responses) for row in rows})


def _as_tokens(row: PreferenceRow, renderer: Renderer) -> Iterator[str]:
    (encoded,) = renderer.tokenise([renderer.render(row)])
    yield f"\n{row.origin}"
    cut = f", {encoded.prompt_cut} truncated" if encoded.prompt_cut else ""
    uncounted = [False] * len(encoded.prompt_ids)
    yield f"  prompt, {len(encoded.prompt_ids)} tokens{cut}:"
    yield f"    {_shown(renderer.tokenizer, encoded.prompt_ids, uncounted)}"
    cuts = encoded.response_cuts or [0] * len(encoded.response_ids)
    for number, (ids, counted, gone) in enumerate(
        zip(encoded.response_ids, encoded.counted, cuts, strict=True)
    ):
        score = f", score {row.scores[number]:g}" if row.scores else ""
        cut = f", {gone} truncated" if gone else ""
        yield f"  response {number + 1}, {len(ids)} tokens{cut}{score}:"
        yield f"    {_shown(renderer.tokenizer, ids, counted)}"


def _shown(tokenizer: Any, ids: Ids, counted: Mask) -> str:
    """Return tokens as text on one line, the middle of long texts left out."""
    special = set(tokenizer.all_special_ids)
    parts = []
    for token, counts in zip(ids, counted, strict=True):
        text = printable(tokenizer.decode([int(token)])) + ("*" if token in special else "")
        parts.append(f"[{text}]" if counts else text)
    if len(parts) > 2 * _TEXTS:
        parts = [*parts[:_TEXTS], f"… {len(parts) - 2 * _TEXTS} more …", *parts[-_TEXTS:]]
    return "·".join(parts)
