"""Single rewards and margins: by score, by length, by verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pl_prefopt.report.figures.panel import Panel, excerpt, new_figure, trace_style
from pl_prefopt.report.pairs import Floats, Whole
from pl_prefopt.report.subjects import Subject

_POINTS = 1500


def margin_against_gap(subjects: Sequence[Subject]) -> Panel:
    """Each graded pair: how much better the data says it is, and how much better the policy does."""
    figure = new_figure("score gap", "reward margin, nats")
    cut = False
    for subject in subjects:
        pairs = subject.pairs
        chosen = _sample(np.flatnonzero(pairs.graded))
        cut = cut or len(chosen) < pairs.graded.sum()
        if not len(chosen):
            continue
        hover = [excerpt(subject.predictions[pairs.prompt[place]].prompt) for place in chosen]
        figure.add_trace(
            _dots(
                subject,
                x=pairs.gap[chosen],
                y=pairs.margin[chosen],
                hover=hover,
                shown="score gap %{x:.3g}<br>margin %{y:.3g} nats",
            )
        )
    return Panel(
        key="margin_gap",
        title="Margin against score gap",
        how="A dot is a pair: below 0 the policy prefers the worse one; a good reward rises to the right.",
        figure=figure if figure.data else None,
        note=_scatter_note(cut, figure, "pairs with graded scores"),
    )


def reward_against_length(subjects: Sequence[Subject]) -> Panel:
    """Each response: its reward by its number of tokens."""
    figure = new_figure("response length, tokens", "reward, nats")
    cut = False
    for subject in subjects:
        items = [(item, response) for item in subject.predictions for response in item.responses]
        items = [(item, response) for item, response in items if np.isfinite(response.reward)]
        chosen = _sample(np.arange(len(items)))
        cut = cut or len(chosen) < len(items)
        if not items:
            continue
        length, reward = np.array([(response.length, response.reward) for _, response in items]).T
        figure.add_trace(
            _dots(
                subject,
                x=length[chosen],
                y=reward[chosen],
                hover=[excerpt(items[place][1].messages) for place in chosen],
                shown="%{x} tokens<br>reward %{y:.3g} nats",
                remark=f" ({_correlation(length, reward)})",
            )
        )
    return Panel(
        key="reward_length",
        title="Reward against length",
        how="A dot is a response: a cloud that rises or falls (r away from 0) rewards length itself.",
        figure=figure if figure.data else None,
        note=f"{_scatter_note(cut, figure, 'responses')} {of_scores(subjects)}".strip(),
    )


def of_scores(subjects: Sequence[Subject]) -> str:
    """Return the data's own correlations of score and length, which a reward that follows it shares."""
    found: dict[str, list[str]] = {}
    for subject in subjects:
        known = [
            (one.length, one.score)
            for item in subject.predictions
            for one in item.responses
            if one.score is not None
        ]
        if known:
            told = _correlation(*np.array(known, dtype=np.float64).T)
            found.setdefault(told, []).append(subject.run.name)
    if len(found) == 1:
        return f"Scores and lengths of the data itself: {next(iter(found))}."
    each = "; ".join(f"{', '.join(names)}: {told}" for told, names in found.items())
    return f"Scores and lengths of the data itself: {each}." if found else ""


def reward_by_label(subjects: Sequence[Subject]) -> Panel | None:
    """The rewards of single responses by their verdict; ``None`` where the data has no such rows."""
    figure = new_figure("", "reward, nats", boxmode="group")
    for subject in subjects:
        single = [item.responses[0] for item in subject.predictions if item.is_single]
        labels = {"undesirable": 0.0, "desirable": 1.0}
        found = {
            label: [
                response.reward
                for response in single
                if response.score == score and np.isfinite(response.reward)
            ]
            for label, score in labels.items()
        }
        found = {label: rewards for label, rewards in found.items() if rewards}
        if not found:
            continue
        low, first, median, third, high = np.array(
            [np.quantile(rewards, [0.05, 0.25, 0.5, 0.75, 0.95]) for rewards in found.values()]
        ).T
        style = trace_style(subject)
        figure.add_trace(
            go.Box(
                x=[f"{label} ({len(rewards):,})" for label, rewards in found.items()],
                lowerfence=low,
                q1=first,
                median=median,
                q3=third,
                upperfence=high,
                name=style["name"],
                offsetgroup=style["legendgroup"],
                marker={"color": subject.colour},
            )
        )
    if not figure.data:
        return None
    return Panel(
        key="reward_label",
        title="Reward by verdict",
        how="The box holds the middle half of the rewards, the whiskers 90 %; desirable ones should stand "
        "higher.",
        figure=figure,
    )


def _dots(
    subject: Subject, *, x: Floats, y: Floats, hover: Sequence[str], shown: str, remark: str = ""
) -> go.Scatter:
    """Return a run's dots: ``hover`` is each one's text, ``shown`` its numbers, ``remark`` for the legend."""
    style = trace_style(subject, opacity=0.55)
    style["marker"] |= {"size": 6}
    run = style["name"]
    style["name"] += remark
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        customdata=hover,
        hovertemplate=f"%{{customdata}}<br>{shown}<extra>{run}</extra>",
        **style,
    )


def _sample(places: Whole) -> Whole:
    """Return at most as many places as a browser draws with ease, always the same ones."""
    if len(places) <= _POINTS:
        return places
    return np.sort(np.random.default_rng(0).choice(places, _POINTS, replace=False))


def _scatter_note(cut: bool, figure: go.Figure, what: str) -> str:
    if not figure.data:
        return f"No {what} were measured."
    return f"A random {_POINTS:,} of each run's {what}." if cut else ""


def _correlation(first: Floats, second: Floats) -> str:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return "r undefined"
    return f"r = {np.corrcoef(first, second)[0, 1]:.2f}"
