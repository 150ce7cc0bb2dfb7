"""The metrics of a stage: those of the registry and those that the user adds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo, current_name
from pl_prefopt.metrics.intervals import BootstrapIntervals
from pl_prefopt.metrics.registry import REGISTRY
from pl_prefopt.metrics.states import PreferenceMetric
from pl_prefopt.types import Outcome, ScoredBatch

INPUTS = (
    "reward",
    "policy",
    "references",
    "scores",
    "present",
    "graded",
    "view_rewards",
    "columns",
    "loss",
    "counted",
)
"""The keyword arguments of a suite's ``update``. A metric's own ``update`` names those that it reads."""


def build_suite(
    stage: str,
    num_references: int,
    views: Sequence[str] = (),
    added: Sequence[PreferenceMetric] = (),
    within: str = "",
    *,
    log_probs: bool = True,
) -> MetricCollection:
    """Build the metrics of a stage; their names begin with ``{stage}/``, or ``{stage}/{within}/``.

    ``train`` gets the cheap means only; any other stage gets all, and ``test`` intervals too. A value is
    NaN where nothing was counted, such as a correlation on rows without grades.

    Args:
        stage: ``train``, ``val``, ``test`` or ``predict``.
        num_references: K; there is one ``log_ratio_k`` for each.
        views: the second views whose rewards are judged.
        added: metrics to measure in addition to those of the registry, checked with ``check_added``.
        log_probs: whether there are log-probs of the policy, which reward models do without.
        within: the name of the set of rows that is measured; empty for all rows of the stage.

    Returns:
        A collection whose ``update`` takes ``INPUTS`` by keyword and hands each metric what it asks for.
    """
    entries = [one for one in REGISTRY if one.is_logged_in(stage) and (log_probs or not one.log_probs)]
    metrics: dict[str, Metric | MetricCollection] = {
        name: metric for entry in entries for name, metric in entry.built(num_references, views)
    }
    if stage == "test":
        metrics["intervals"] = BootstrapIntervals(num_references=num_references, views=views)
    metrics |= {one.info.name: one.clone() for one in added if one.info.is_logged_in(stage)}
    # Without `compute_groups=False` two metrics whose states agree after the first batch, as all rewards
    # of an untrained policy do, would share one state from then on.
    prefix = f"{stage}/{within}/" if within else f"{stage}/"
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def update(suite: Any, scored: ScoredBatch, outcome: Outcome, within: Tensor | None = None) -> None:
    """Update the metrics of a suite with a batch.

    Args:
        suite: the metrics.
        scored: the log-probs of the batch.
        outcome: what the objective made of them.
        within: bool [B], the rows to measure; the others are treated like the fillers of a rank's last batch.
            All by default.
    """
    scores, present, graded, counted = scored.scores, scored.present, scored.graded, outcome.counted
    if within is not None:
        present, graded, counted = present & within[:, None], graded & within, counted & within
        scores = scores.masked_fill(~within[:, None], torch.nan)
    suite.update(
        reward=outcome.reward,
        policy=scored.policy,
        references=scored.references,
        scores=scores,
        present=present,
        graded=graded,
        view_rewards=outcome.view_rewards,
        columns=scored.columns,
        loss=outcome.loss,
        counted=counted,
    )


def columns_read(metrics: Iterable[PreferenceMetric]) -> dict[str, str]:
    """Return the columns that metrics ask for, each with the class of one that does."""
    return {column: type(metric).__name__ for metric in metrics for column in metric.columns}


def with_info(metrics: Iterable[PreferenceMetric]) -> tuple[PreferenceMetric, ...]:
    """Return metrics that say what they are.

    Raises:
        ConfigError: naming one that doesn't.
    """
    found = tuple(metrics)
    for one in found:
        info = getattr(one, "info", None)
        if not isinstance(info, MetricInfo) or "{" in info.name:
            raise ConfigError(
                f"expected the metric {type(one).__name__} to have an `info`, a "
                "pl_prefopt.metrics.MetricInfo with the name of one number."
            )
    return found


def check_added(
    added: Sequence[PreferenceMetric], stats: Iterable[MetricInfo], num_references: int, views: Sequence[str]
) -> None:
    """Check that the metrics added to a run have unique names and only request known inputs.

    Args:
        added: the run's own metrics, of ``with_info``.
        stats: what the objective declares to log.
        num_references: K.
        views: the second views whose rewards are judged.

    Raises:
        ConfigError: naming the class and the name.
    """
    taken = {
        name + end: "one of prefopt's own"
        for entry in REGISTRY
        for name, _ in entry.built(num_references, views)
        for end in ("", *(("_low", "_high") if entry.interval else ()))
    }
    for stat in stats:
        # Files are read with former names as the present ones, so that a former name would become another.
        if stat.name in taken or current_name(stat.name) != stat.name:
            raise ConfigError(
                f"the objective logs '{stat.name}', the name of another number: give its part another name."
            )
        taken[stat.name] = "a number of the objective"
    for one in added:
        _check_one(one, taken)
        taken[one.info.name] = f"another {type(one).__name__}"


def _check_one(one: PreferenceMetric, taken: dict[str, str]) -> None:
    kind, name = type(one).__name__, one.info.name
    if name in taken or current_name(name) != name:
        other = taken.get(name, f"'{current_name(name)}' of earlier versions")
        raise ConfigError(f"the metric {kind} is called '{name}', as {other} is: give it another name.")
    unknown = [name for name in inspect.signature(one.update).parameters if name not in INPUTS]
    if unknown:
        raise ConfigError(
            f"{kind}.update asks for '{unknown[0]}', which a metric is not given: it may ask for "
            f"{', '.join(INPUTS)}."
        )
