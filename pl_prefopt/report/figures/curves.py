"""Learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import plotly.graph_objects as go

from pl_prefopt.metric_info import find_info
from pl_prefopt.metrics import REGISTRY
from pl_prefopt.report.curves import Curve, thinned
from pl_prefopt.report.figures.panel import Panel, new_figure, trace_style
from pl_prefopt.report.figures.scales import per_scale
from pl_prefopt.report.subjects import Subject

CURVES = {
    "loss": (
        "Loss",
        "loss, mean over prompts",
        "Training should fall; validation that rises again is overfitting.",
    ),
    "accuracy": ("Accuracy", "accuracy", "Share of pairs in the right order; 50 % is chance."),
    "margin": (
        "Reward margin",
        "margin, nats",
        "The better response's reward minus the worse one's; growing in training alone is overfitting.",
    ),
    "chosen_logp": (
        "Log-probability of the better response",
        "log-prob of a response, nats",
        "Falling means that even the better response becomes less likely.",
    ),
}


def learning_curves(subjects: Sequence[Subject]) -> list[Panel]:
    """One figure per metric, of loss and margin per objective; lines are training, marks validations."""
    panels = []
    for metric in CURVES:
        if metric in ("loss", "margin"):
            panels += per_scale(subjects, partial(_learning_curve, metric=metric))
        else:
            panels.append(_learning_curve(subjects, metric))
    return panels


def _learning_curve(subjects: Sequence[Subject], metric: str) -> Panel:
    title, axis, how = CURVES[metric]
    figure = new_figure("optimiser steps", axis)
    for subject in subjects:
        curves = subject.run.curves
        training, validation = curves.get(f"train/{metric}"), curves.get(f"val/{metric}")
        if training is not None:
            figure.add_trace(_line(subject, thinned(training), marks=False, legend=True))
        if validation is not None:
            figure.add_trace(_line(subject, thinned(validation), marks=True, legend=training is None))
    info = find_info(metric, REGISTRY)
    if info is not None and info.unit == "%":
        figure.update_yaxes(tickformat=".0%")
    empty = not figure.data
    return Panel(
        key=f"curve_{metric}",
        title=title,
        how=f"{how} Line: training; marks: validation.",
        figure=None if empty else figure,
        note="No run logged this in training." if empty else "",
    )


def _line(subject: Subject, curve: Curve, *, marks: bool, legend: bool) -> go.Scatter:
    style = trace_style(subject)
    style["marker"] |= {"size": 8, "line": {"color": "#ffffff", "width": 1}}
    what = "validation" if marks else "training"
    return go.Scatter(
        x=curve.steps,
        y=curve.values,
        mode="lines+markers" if marks else "lines",
        line={"color": subject.colour, "width": 1 if marks else 2, "dash": "dot" if marks else "solid"},
        showlegend=legend,
        hovertemplate=f"step %{{x:,.0f}}<br>%{{y:.4g}}<extra>{style['name']}<br>{what}</extra>",
        **style,
    )
