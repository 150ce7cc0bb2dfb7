"""The settings of a sweep: the search space, and the metric by which trials are compared."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.metric_info import current_name

_NAME = re.compile(r"[A-Za-z_][\w.]*")
OWN = ("run_dir", "ckpt_path", "seed_everything", "best.monitor", "best.mode", "config", "c")
"""Settings that the sweep itself gives each run."""

Value = str | int | float | bool | None
"""A value that Optuna can store; others are kept as JSON text."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers between two ends; integers if all given numbers are integers.

    Attributes:
        low: the smallest value.
        high: the largest value.
        log: whether to sample on a logarithmic scale.
        step: the distance between neighbouring values; ``None`` for any value.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any, name: str) -> Any:
        """Return an Optuna trial's value of the setting."""
        whole = all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))
        if not whole:
            return trial.suggest_float(name, float(self.low), float(self.high), log=self.log, step=self.step)
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step or 1)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are checked before the first trial."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choices:
    """One of several values.

    Attributes:
        values: the values.
    """

    values: tuple[Value, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """Return an Optuna trial's value of the setting."""
        return trial.suggest_categorical(name, list(self.values))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are checked before the first trial."""
        return self.values


Dimension = Range | Choices


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Ends a trial whose best value so far is worse than the median of earlier trials at that validation.

    Attributes:
        first_trials: the number of trials that are completed before any is pruned.
        first_validations: the number of validations of each trial before it can be pruned.
    """

    first_trials: int = 5
    first_validations: int = 1

    def __post_init__(self) -> None:
        for name in ("first_trials", "first_validations"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"expected `prune.{name}` to be 0 or more, got {value}.")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over settings of ``prefopt fit``. A trial is one combination, trained with each seed.

    Attributes:
        out: the folder for everything.
        config: the names or files of ``prefopt fit -c``, in order.
        search: what is searched: names of settings as on the command line, each with a range
            (``{low: 1.0e-6, high: 1.0e-4, log: true}``) or a list of values.
        settings: further settings of ``prefopt fit``, such as ``trainer: {max_steps: 100}``.
        trials: the number of combinations to try, including failed and pruned ones; ``None`` with ``grid``.
        metric: the validation metric. A run's value is the best of its validations, that of ``best.ckpt``.
        mode: whether lower or higher values are better.
        seeds: ``seed_everything`` of each trial's runs. A trial's value is the mean of theirs.
        sampler: ``tpe`` samples near good trials, ``random`` anywhere, ``grid`` takes every combination.
        seed: of the sampler.
        prune: ends bad trials early, by the validations of their first seed; ``None`` trains all to the end.
        checkpoints: ``best`` removes the checkpoints of all finished trials but the best one.
    """

    out: str
    config: list[str]
    search: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    trials: int | None = None
    metric: str = "val/accuracy"
    mode: Literal["min", "max"] = "max"
    seeds: list[int] = field(default_factory=lambda: [0])
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = 0
    prune: Prune | None = None
    checkpoints: Literal["all", "best"] = "all"

    def __post_init__(self) -> None:
        if not self.metric.startswith("val/"):
            raise ConfigError(f"expected a validation's `metric`, such as val/loss, got '{self.metric}'.")
        object.__setattr__(self, "metric", current_name(self.metric))  # of an earlier version's sweep
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"expected `seeds` to be different whole numbers, got {self.seeds}.")
        if not self.search:
            raise ConfigError("expected `search` to name at least one setting.")
        if self.sampler == "grid":
            self._check_grid()
        elif self.trials is None or self.trials < 1:
            raise ConfigError(f"expected `trials` to be a number above 0, got {self.trials}.")

    def _check_grid(self) -> None:
        if self.trials is not None:
            raise ConfigError("the sampler 'grid' tries every combination: remove `trials`.")
        if name := next((name for name, one in self.dimensions.items() if isinstance(one, Range)), None):
            raise ConfigError(f"the sampler 'grid' needs lists of values, but search.{name} is a range.")

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """What is searched, by the setting's name."""
        return {name: _dimension(name, given) for name, given in self.search.items()}

    @property
    def grid(self) -> list[dict[str, Value]]:
        """All combinations of values."""
        values = [one.extremes for one in self.dimensions.values()]
        return [dict(zip(self.search, one, strict=True)) for one in itertools.product(*values)]

    @property
    def count(self) -> int:
        """The number of trials."""
        return len(self.grid) if self.trials is None else self.trials

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield combinations that have each end of a range and each choice at least once."""
        first = {name: one.extremes[0] for name, one in self.dimensions.items()}
        yield first
        for name, one in self.dimensions.items():
            for value in one.extremes[1:]:
                yield {**first, name: value}

    def folder(self, number: int, seed: int) -> Path:
        """Return the run folder of a trial's seed."""
        return Path(self.out) / f"trial-{number}" / f"seed-{seed}"


def _dimension(name: str, given: Any) -> Dimension:
    where = f"search.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"expected a setting's name as on the command line in `search`, got '{name}'.")
    if name in OWN:
        raise ConfigError(f"{where}: the sweep sets `{name}` for each run; search another setting.")
    if isinstance(given, list):
        return Choices(_choices(where, given))
    if isinstance(given, Mapping):
        return _range(where, given)
    raise ConfigError(
        f"{where}: expected a list of values or a range such as {{low: 0.01, high: 1.0}}, got {given!r}."
    )


def _choices(where: str, given: list[Any]) -> tuple[Value, ...]:
    values = tuple(one if isinstance(one, Value) else json.dumps(one) for one in given)
    if not values or len(set(map(repr, values))) < len(values):
        raise ConfigError(f"{where}: expected different values, got {given}.")
    return values


def _range(where: str, given: Mapping[str, Any]) -> Range:
    known = [one.name for one in fields(Range)]
    for name in given:
        if name not in known:
            raise ConfigError(f"{where} has no setting '{name}'{suggest(str(name), known) or '.'}")
    low, high, step = (_number(where, name, given.get(name)) for name in ("low", "high", "step"))
    log = given.get("log", False)
    if low is None or high is None or low >= high:
        raise ConfigError(f"{where}: expected `low` below `high`, got {low} and {high}.")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: expected `log` to be true or false, got {log!r}.")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{where}: a logarithmic scale needs `low` above 0 and no `step`.")
    if step is not None and step <= 0:
        raise ConfigError(f"{where}: expected `step` above 0, got {step}.")
    return Range(low=low, high=high, log=log, step=step)


def _number(where: str, name: str, value: Any) -> int | float | None:
    """Return a number; YAML takes 1e-6, without a dot, for text."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: expected `{name}` to be a number, got {value!r}.") from None
