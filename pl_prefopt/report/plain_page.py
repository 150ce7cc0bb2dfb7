"""A page of tables: one HTML file without any script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 20
_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }} · prefopt report</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<header><div class="wrap"><p class="brand">prefopt report</p><h1>{{ title }}</h1></div></header>
<main class="wrap">
{% for note in notes %}<p class="how">{{ note }}</p>
{% endfor %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="scroll">
<table>
<thead><tr>{% for name in table.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
</main>
</body>
</html>
"""


@dataclass
class Table:
    """A table of texts.

    Attributes:
        title: its title.
        head: the names of its columns.
        rows: its rows.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def lines(self) -> list[str]:
        """Return the table as text."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.head, *self.rows)
        ]
        return [self.title, *lines]


def plain_page(title: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """Return a page that needs no network and runs no script; all texts are shown letter by letter."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = StrictUndefined
    style = (files("pl_prefopt.report") / "assets" / "page.css").read_text(encoding="utf-8")
    return environment.from_string(_TEMPLATE).render(
        title=title, tables=tables, notes=notes, style=Markup(style)
    )


def histogram(values: Sequence[float]) -> str:
    """Return twenty bars between the least and the greatest value; a bar is as high as its bin is full.

    Examples:
        >>> histogram([0, 0, 0, 0, 1])
        '█                  ▂'
    """
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=_BINS)
    most = len(_BARS) - 1
    return "".join(_BARS[-(-int(count) * most // int(counts.max()))] for count in counts)
