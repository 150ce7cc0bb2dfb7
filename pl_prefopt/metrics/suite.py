"""The metrics of a stage: those of the registry and those that the user adds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from torchmetrics import Metric, MetricCollection

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics.intervals import BootstrapIntervals
from pl_prefopt.metrics.registry import REGISTRY
from pl_prefopt.metrics.states import PreferenceMetric

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
    *,
    log_probs: bool = True,
) -> MetricCollection:
    """Build the metrics of a stage; their names begin with ``{stage}/``.

    ``train`` gets the cheap means only; any other stage gets all, and ``test`` intervals too. A value is
    NaN where nothing was counted, such as a correlation on rows without grades.

    Args:
        stage: ``train``, ``val``, ``test`` or ``predict``.
        num_references: K; there is one ``kl_k`` for each.
        views: the second views whose rewards are judged.
        added: metrics to measure in addition to those of the registry, checked with ``check_added``.
        log_probs: whether there are log-probs of the policy, which reward models do without.

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
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)


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
        if stat.name in taken:
            raise ConfigError(
                f"the objective logs '{stat.name}', the name of another number: give its part another name."
            )
        taken[stat.name] = "a number of the objective"
    for one in added:
        _check_one(one, taken)
        taken[one.info.name] = f"another {type(one).__name__}"


def _check_one(one: PreferenceMetric, taken: dict[str, str]) -> None:
    kind, name = type(one).__name__, one.info.name
    if name in taken:
        raise ConfigError(f"the metric {kind} is called '{name}', as {taken[name]} is: give it another name.")
    unknown = [name for name in inspect.signature(one.update).parameters if name not in INPUTS]
    if unknown:
        raise ConfigError(
            f"{kind}.update asks for '{unknown[0]}', which a metric is not given: it may ask for "
            f"{', '.join(INPUTS)}."
        )
