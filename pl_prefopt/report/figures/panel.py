"""What figures share: their look, their words, and text that a figure shows as it is."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from pl_prefopt.report.subjects import Subject
from pl_prefopt.rows import Message

GREY = "#8a8f98"
_EXCERPT = 150


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure with its words.

    Attributes:
        key: its name in files and links.
        title: the heading.
        how: one sentence on how to read it.
        figure: what to draw; ``None`` where there is nothing to.
        note: what was left out, or why there is no figure.
    """

    key: str
    title: str
    how: str
    figure: go.Figure | None
    note: str = ""


def new_figure(x: str, y: str, **layout: Any) -> go.Figure:
    """Return an empty figure with the axes' titles."""
    axis = {"gridcolor": "#e3e6ea", "zerolinecolor": "#c3c8cf", "linecolor": "#c3c8cf", "automargin": True}
    figure = go.Figure()
    figure.update_layout(
        template="none",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        margin={"l": 60, "r": 16, "t": 30, "b": 50},
        hovermode="closest",
        hoverlabel={"align": "left"},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="#ffffff",
        plot_bgcolor="rgba(0,0,0,0)",
        **layout,
    )
    figure.update_xaxes(title={"text": x, "font": {"size": 13}}, **axis)
    figure.update_yaxes(title={"text": y, "font": {"size": 13}, "standoff": 12}, **axis)
    return figure


def trace_style(subject: Subject, *, opacity: float = 1.0) -> dict[str, Any]:
    """Return the run's name, colour and marker for a trace."""
    return {
        "name": shown(shortened(subject.run.name, 28)),
        "legendgroup": shown(subject.run.name),  # whole, since runs may differ in the middle of their names
        "opacity": opacity,
        "marker": {"color": subject.colour, "symbol": subject.symbol},
    }


def shown(text: str) -> str:
    """Return ``text`` so that plotly, which reads tags and entities in texts, shows it as it is.

    >>> shown("<b>a</b> & b")
    '&lt;b&gt;a&lt;/b&gt; &amp; b'
    """
    return html.escape(text, quote=False)


def shortened(text: str, most: int) -> str:
    """Return ``text`` with its middle left out where it is longer than ``most`` characters.

    >>> shortened("abcdefgh", 5)
    'ab…gh'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def excerpt(messages: Sequence[Message]) -> str:
    """Return the beginning of the last turn, in lines for a hover label."""
    text = " ".join(messages[-1].content.split()) if messages else ""
    text = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
    return "<br>".join(shown(line) for line in textwrap.wrap(text, 60))
