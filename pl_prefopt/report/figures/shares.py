"""Shares of pairs in the right order: by confidence, by score gap, by source, by user."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from pl_prefopt.report.figures.panel import GREY, Panel, new_figure, shortened, shown, trace_style
from pl_prefopt.report.pairs import Estimate, Floats, Whole, estimate, places_in, quantile_edges
from pl_prefopt.report.predictions import Prediction
from pl_prefopt.report.subjects import Subject

_SOURCES = 12
_USERS = ("user", "annotator", "user_id", "annotator_id")
"""Columns that may name the user of a row."""


def calibration(subjects: Sequence[Subject]) -> Panel:
    """How often the policy is right, by how sure its margin claims to be."""
    figure = new_figure("confidence σ(|margin|)", "share in the right order")
    for subject in subjects:
        pairs = subject.pairs
        if not len(pairs):
            continue
        confidence = 1 / (1 + np.exp(-np.abs(pairs.margin)))
        places = places_in(quantile_edges(confidence, 10), confidence)
        bins = np.unique(places)
        centres = np.array([confidence[places == place].mean() for place in bins])
        estimates = [estimate(pairs.right[places == place], pairs.prompt[places == place]) for place in bins]
        error = _calibration_error(centres, estimates)
        figure.add_trace(
            _dots(subject, centres, estimates, suffix=f" (error {100 * error:.1f} points)", line=True)
        )
    drawn = bool(figure.data)
    figure.add_trace(
        go.Scatter(
            x=[0.5, 1],
            y=[0.5, 1],
            mode="lines",
            line={"color": GREY, "dash": "dash", "width": 1},
            name="as sure as right",
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(tickformat=".0%")
    return Panel(
        key="calibration",
        title="Calibration",
        how="Below the dashed line margins claim more than they hold, above it less; bars: 95 % intervals.",
        figure=figure if drawn else None,
        note="" if drawn else "No pairs: it takes two responses to a prompt with different scores.",
    )


def accuracy_by_gap(subjects: Sequence[Subject]) -> Panel:
    """Accuracy in bins of the score gap, the same bins for all runs."""
    figure = new_figure("score gap", "accuracy", scattermode="group", scattergap=0.4)
    gaps = np.concatenate([subject.pairs.gap[subject.pairs.graded] for subject in subjects] or [np.empty(0)])
    if len(gaps):
        edges = quantile_edges(gaps, 6)
        labels = _bin_labels(gaps, places_in(edges, gaps))
        for subject in subjects:
            pairs = subject.pairs
            places = np.where(pairs.graded, places_in(edges, pairs.gap), -1)
            bins = [place for place in range(len(labels)) if (places == place).any()]
            estimates = [
                estimate(pairs.right[places == place], pairs.prompt[places == place]) for place in bins
            ]
            if bins:
                figure.add_trace(_dots(subject, [labels[place] for place in bins], estimates, group=True))
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    _chance(figure, horizontal=True)
    return Panel(
        key="accuracy_gap",
        title="Accuracy by score gap",
        how="Pairs that differ more should be easier: accuracy that does not rise to the right has learned "
        "something other than the scores.",
        figure=figure if figure.data else None,
        note="" if figure.data else "No pairs with graded scores: a bare order of two has no gap.",
    )


def accuracy_by_source(subjects: Sequence[Subject]) -> Panel:
    """Accuracy in each part of a mixture of data."""
    figure, names = _accuracy_by(subjects, lambda prediction: prediction.source, "no source")
    note = f"The largest {_SOURCES} of {len(names)} sources." if len(names) > _SOURCES else ""
    known = len(names) > 1 or any(names)
    return Panel(
        key="accuracy_source",
        title="Accuracy by source",
        how="A source far to the left of the others is where the policy is worst; bars are 95 % intervals.",
        figure=figure if figure.data and known else None,
        note=note if known else "The rows name no source; a column “source” in the data would show here.",
    )


def accuracy_by_user(subjects: Sequence[Subject]) -> Panel | None:
    """Accuracy on the pairs of each user; ``None`` where the rows name none."""
    figure, names = _accuracy_by(subjects, _user, "no user")
    if not any(names):
        return None
    return Panel(
        key="accuracy_user",
        title="Accuracy by user",
        how="Users far to the left of the others are those whose preferences the rewards miss; bars are 95 % "
        "intervals.",
        figure=figure,
        note=f"The {_SOURCES} users with the most pairs, of {len(names)}." if len(names) > _SOURCES else "",
    )


def _user(prediction: Prediction) -> str:
    """Return the row's user, from the first column of those that name one; nothing without."""
    found = (prediction.columns.get(name) for name in _USERS)
    return next((str(value) for value in found if isinstance(value, str | int)), "")


def _accuracy_by(
    subjects: Sequence[Subject], name_of: Callable[[Prediction], str], unnamed: str
) -> tuple[go.Figure, set[str]]:
    """Return accuracies by the name that each prompt has, of the largest groups, and all names."""
    groups = [_groups(subject, name_of) for subject in subjects]
    sizes: dict[str, int] = {}
    for found in groups:
        for name, value in found.items():
            sizes[name] = max(sizes.get(name, 0), value.pairs)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:_SOURCES]
    names = {name: shown(shortened(name or unnamed, 32)) for name in largest}
    figure = new_figure("accuracy", "", scattermode="group", scattergap=0.4)
    for subject, found in zip(subjects, groups, strict=True):
        rows = [name for name in largest if name in found]
        if rows:
            labels = [names[name] for name in rows]
            figure.add_trace(_dots(subject, labels, [found[name] for name in rows], group=True, across=True))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_layout(height=max(380, 90 + 20 * len(largest) * (1 + len(subjects))))
    _chance(figure, horizontal=False)
    return figure, set(sizes)


def _dots(
    subject: Subject,
    places: Sequence[str] | Floats,
    estimates: Sequence[Estimate],
    *,
    suffix: str = "",
    line: bool = False,
    group: bool = False,
    across: bool = False,
) -> go.Scatter:
    """Return estimates with their intervals, upwards or ``across``."""
    values = np.array([item.value for item in estimates])
    bars = {
        "array": np.array([item.high for item in estimates]) - values,
        "arrayminus": values - np.array([item.low for item in estimates]),
        "width": 3,
        "thickness": 1.2,
        "color": subject.colour,
    }
    style = trace_style(subject)
    style["marker"] |= {"size": 9}
    style["name"] += suffix
    value, place = ("x", "y") if across else ("y", "x")
    where = f"%{{{place}}}" if group else f"confidence %{{{place}:.1%}}"
    right = f"right %{{{value}:.1%}} (%{{customdata}})"
    return go.Scatter(
        mode="lines+markers" if line else "markers",
        line={"color": subject.colour, "width": 1.5},
        customdata=[f"{_interval(item)}, {item.pairs:,} pairs" for item in estimates],
        hovertemplate=f"{where}<br>{right}<extra>{style['legendgroup']}</extra>",
        offsetgroup=style["legendgroup"] if group else None,
        orientation="h" if across else "v",
        **{value: values, place: places, f"error_{value}": bars},
        **style,
    )


def _interval(item: Estimate) -> str:
    if np.isnan(item.low):
        return "one prompt has no interval"
    return f"{100 * item.low:.1f} to {100 * item.high:.1f} %"


def _bin_labels(values: Floats, places: Whole) -> list[str]:
    """Return what the bins hold, such as ``1`` or ``1.5 to 2``."""
    ends = [
        (f"{values[places == place].min():.3g}", f"{values[places == place].max():.3g}")
        for place in np.unique(places)
    ]
    return [low if low == high else f"{low} to {high}" for low, high in ends]


def _groups(subject: Subject, name_of: Callable[[Prediction], str]) -> dict[str, Estimate]:
    pairs = subject.pairs
    names = np.array([name_of(subject.predictions[number]) for number in pairs.prompt], dtype=object)
    return {
        name: estimate(pairs.right[names == name], pairs.prompt[names == name]) for name in sorted(set(names))
    }


def _calibration_error(confidence: Floats, estimates: Sequence[Estimate]) -> float:
    """Return the expected calibration error: the mean over pairs of how far a bin is off."""
    off = np.abs(confidence - np.array([item.value for item in estimates]))
    return float(np.average(off, weights=[item.pairs for item in estimates]))


def _chance(figure: go.Figure, *, horizontal: bool) -> None:
    """Draw a line at one half on the accuracy's axis, and write the axis in per cent."""
    style = {"line": {"color": GREY, "dash": "dash", "width": 1}}
    if horizontal:
        figure.add_hline(0.5, **style)
        figure.update_yaxes(tickformat=".0%")
    else:
        figure.add_vline(0.5, **style)
        figure.update_xaxes(tickformat=".0%")
