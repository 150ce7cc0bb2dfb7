"""The trials of a sweep, kept by Optuna in a SQLite file, so that a killed sweep resumes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.sweeps.plan import Sweep

STORAGE = "trials.db"
_NAME = "prefopt"
_VALUES, _ERROR = "values", "error"
_FAILURES = 3
"""Trials that may fail before any succeeds; then something else than the searched settings is wrong."""


class Pruned(Exception):  # noqa: N818 - no error
    """Raised by ``Train`` where ``Report`` said that the trial is to end."""


Report = Callable[[Sequence[float]], bool]
"""Takes a run's values of the metric so far, one per validation; returns whether to end the trial."""


class Train(Protocol):
    """Trains one run of a trial."""

    def __call__(self, number: int, settings: Mapping[str, Any], seed: int, report: Report) -> float:
        """Return the run's value.

        Args:
            number: of the trial.
            settings: the searched settings and their values.
            seed: the run's seed.
            report: receives the validations' values while the run trains.

        Raises:
            Pruned: if ``report`` ended the trial.
            RunError: if the run failed, in which case the next trial begins.
        """


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial that has ended.

    Attributes:
        number: counted from 0.
        state: ``complete``, ``pruned`` or ``fail``.
        settings: the searched settings and their values.
        values: the value of each seed's run that has been trained to its end.
        value: the mean of the values if the trial is complete.
        error: why the trial failed.
    """

    number: int
    state: str
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    value: float | None = None
    error: str = ""

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def search(
    sweep: Sweep, train: Train, ended: Callable[[Sequence[TrialResult]], None] = lambda _: None
) -> list[TrialResult]:
    """Run the trials that are missing; return all, the best first.

    A trial that was interrupted continues with the same settings. The sampler's random numbers depend only on
    the trial's number, so that an interrupted sweep tries the same values as an uninterrupted one.

    Args:
        sweep: the settings.
        train: trains one run.
        ended: is called with all results after each trial.

    Raises:
        RunError: if the first trials all fail.
    """
    optuna = _optuna()
    study = _open(optuna, sweep)
    if sweep.sampler == "grid":
        for values in sweep.grid:
            study.enqueue_trial(values, skip_if_exists=True)
    started = 0
    while (trial := _next(optuna, study, sweep)) is not None:
        _run(optuna, study, trial, sweep, train)
        started += 1
        found = _results(study, sweep)
        ended(found)
        if started >= _FAILURES and all(one.state == "fail" for one in found):
            raise RunError(
                f"the first {len(found)} trials all failed, the last one because {found[-1].error}"
            )
    return _results(study, sweep)


def _results(study: Any, sweep: Sweep) -> list[TrialResult]:
    """Return the trials that have ended: complete ones from the best on, pruned ones, failed ones."""
    found = [_result(one) for one in study.trials if one.state.is_finished()]
    sign = 1 if sweep.mode == "min" else -1
    order = {"complete": 0, "pruned": 1, "fail": 2}

    def place(one: TrialResult) -> tuple[int, float, int]:
        return order[one.state], 0.0 if one.value is None else sign * one.value, one.number

    return sorted(found, key=place)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("prefopt sweep needs Optuna: pip install 'pl-prefopt[sweep]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(optuna: Any, sweep: Sweep) -> Any:
    """Return the study in the sweep's folder, created if necessary."""
    file = Path(sweep.out).absolute() / STORAGE
    file.parent.mkdir(parents=True, exist_ok=True)
    prune = sweep.prune
    pruner = (
        optuna.pruners.NopPruner()
        if prune is None
        else optuna.pruners.MedianPruner(prune.first_trials, prune.first_validations)
    )
    return optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=_NAME,
        direction="minimize" if sweep.mode == "min" else "maximize",
        pruner=pruner,
        load_if_exists=True,
    )


def _next(optuna: Any, study: Any, sweep: Sweep) -> Any:
    """Return an interrupted trial, or a new one; ``None`` if all are done."""
    trials = study.trials
    running = next((one for one in trials if one.state == optuna.trial.TrialState.RUNNING), None)
    if running is not None:
        return optuna.trial.Trial(study, running._trial_id)
    if sum(one.state.is_finished() for one in trials) >= sweep.count:
        return None
    seed = sweep.seed + sum(one.state.is_finished() for one in trials)
    samplers = optuna.samplers
    tpe = sweep.sampler == "tpe"
    study.sampler = samplers.TPESampler(seed=seed) if tpe else samplers.RandomSampler(seed=seed)
    return study.ask()


def _run(optuna: Any, study: Any, trial: Any, sweep: Sweep, train: Train) -> None:
    """Train a trial with each seed and record its mean value, or why it ended."""
    settings = {name: one.suggest(trial, name) for name, one in sweep.dimensions.items()}
    values: dict[str, float] = dict(trial.user_attrs.get(_VALUES, {}))
    report = _reporter(trial, reported=len(study.trials[trial.number].intermediate_values))
    state = optuna.trial.TrialState
    try:
        for seed in (one for one in sweep.seeds if str(one) not in values):
            value = train(trial.number, settings, seed, report if seed == sweep.seeds[0] else _never_prune)
            if not math.isfinite(value):
                raise RunError(f"{sweep.metric} of seed {seed} is {value}")
            values[str(seed)] = value
            trial.set_user_attr(_VALUES, values)
    except Pruned:
        study.tell(trial, state=state.PRUNED)
    except RunError as error:
        trial.set_user_attr(_ERROR, str(error))
        study.tell(trial, state=state.FAIL)
    else:
        study.tell(trial, statistics.fmean(values.values()))


def _reporter(trial: Any, reported: int) -> Report:
    """Return a function that reports a run's values to Optuna, each once; it has the first ``reported``."""

    def report(found: Sequence[float]) -> bool:
        nonlocal reported
        for place in range(reported, len(found)):
            trial.report(found[place], place)
        reported = max(reported, len(found))
        return reported > 0 and bool(trial.should_prune())

    return report


def _never_prune(_: Sequence[float]) -> bool:
    return False


def _result(trial: Any) -> TrialResult:
    complete = trial.state.name == "COMPLETE"
    return TrialResult(
        number=trial.number,
        state=trial.state.name.lower(),
        settings=trial.params,
        values=trial.user_attrs.get(_VALUES, {}),
        value=trial.value if complete else None,
        error=trial.user_attrs.get(_ERROR, ""),
    )
