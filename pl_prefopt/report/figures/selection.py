"""What the rewards are like, and what choosing by them gives: margins, and best-of-n by another score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pl_prefopt.metrics.bootstrap import resampled_weights
from pl_prefopt.metrics.lists import best_of_n_scores
from pl_prefopt.report.figures.panel import GREY, Panel, new_figure, trace_style
from pl_prefopt.report.pairs import Floats
from pl_prefopt.report.predictions import Prediction
from pl_prefopt.report.subjects import Subject

_BINS = 40


def margin_distribution(subjects: Sequence[Subject]) -> Panel:
    """How the margins of pairs are distributed, in the same bins for all runs."""
    figure = new_figure("margin, nats", "share of pairs", barmode="overlay")
    margins = [subject.pairs.margin for subject in subjects]
    everything = np.concatenate([np.empty(0), *margins])
    if len(everything):
        edges = np.histogram_bin_edges(everything, bins=_BINS)
        for subject, own in zip(subjects, margins, strict=True):
            if len(own):
                shares = np.histogram(own, edges)[0] / len(own)
                centres = (edges[1:] + edges[:-1]) / 2
                style = trace_style(subject, opacity=0.6)
                style["marker"] = {"color": subject.colour}
                figure.add_trace(go.Bar(x=centres, y=shares, width=np.diff(edges), **style))
        figure.add_vline(0, line={"color": GREY, "dash": "dash", "width": 1})
        figure.update_yaxes(tickformat=".0%")
    return Panel(
        key="margins",
        title="Distribution of margins",
        how="Pairs to the left of the dashed line are in the wrong order.",
        figure=figure if len(everything) else None,
        note="" if len(everything) else "No pairs: it takes two responses to a prompt with different scores.",
    )


def best_of_n(subjects: Sequence[Subject]) -> Panel | None:
    """The mean score of the best of n responses by reward; ``None`` without lists of graded responses."""
    figure = new_figure("n, the number of responses", "mean score of the best")
    for subject in subjects:
        curves = score_curves(subject.predictions)
        if len(curves):
            means = curves.mean(axis=0)
            places = np.arange(1, len(means) + 1)
            style = trace_style(subject)
            bars = _bars(curves)
            figure.add_trace(go.Scatter(x=places, y=means, error_y=bars, mode="lines+markers", **style))
    if not figure.data:
        return None
    figure.update_xaxes(dtick=1)
    return Panel(
        key="best_of_n",
        title="Best of n",
        how="A curve that bends down shows over-optimisation: the more responses compete, the more errors "
        "of the reward win. The scores should come from a judge that it was not trained on; bars are 95 % "
        "intervals.",
        figure=figure,
    )


def _bars(curves: Floats) -> dict[str, Any] | None:
    """Return the 95 % bootstrap intervals of the means of [prompts, N]; ``None`` for a single prompt."""
    if len(curves) < 2:
        return None
    samples = resampled_weights(np.arange(len(curves)), resamples=1000, seed=0)
    drawn = np.concatenate([weights @ curves / len(curves) for weights in samples])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    means = curves.mean(axis=0)
    return {"array": high - means, "arrayminus": means - low, "symmetric": False, "thickness": 1}


def score_curves(predictions: Sequence[Prediction]) -> Floats:
    """Return the mean score of the best of 1 to N responses by reward, [prompts, N].

    Of graded prompts with N responses or more, N being the number that most of them have; at least 3.
    """
    listed = [_numbers(one) for one in predictions if one.graded and len(one.responses) > 2]
    listed = [one for one in listed if np.isfinite(one).all()]
    if not listed:
        return np.empty((0, 0))
    most = int(np.bincount([one.shape[1] for one in listed]).argmax())
    return np.stack([best_of_n_scores(*one)[:most] for one in listed if one.shape[1] >= most])


def _numbers(prediction: Prediction) -> Floats:
    """Return rewards and scores, [2, responses], NaN where there is none."""
    scores = [np.nan if one.score is None else one.score for one in prediction.responses]
    return np.array([[one.reward for one in prediction.responses], scores])
