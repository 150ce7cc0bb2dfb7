"""The callbacks that every run has unless its configuration says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar

from pl_prefopt.callbacks import DashboardLayout, Generations, MarginHistogram, ProgressBar, Throughput
from pl_prefopt.errors import ConfigError, suggest


class _Default(NamedTuple):
    """A callback that a run has by default.

    Attributes:
        make: builds it.
        kind: a configured callback of this class replaces it.
        needs_logger: whether it writes to loggers only.
    """

    make: Callable[[], Callback]
    kind: type[Callback]
    needs_logger: bool


CALLBACKS = {
    "LearningRateMonitor": _Default(LearningRateMonitor, LearningRateMonitor, needs_logger=True),
    "ProgressBar": _Default(ProgressBar, AnyProgressBar, needs_logger=False),
    "Throughput": _Default(Throughput, Throughput, needs_logger=False),
    "DashboardLayout": _Default(DashboardLayout, DashboardLayout, needs_logger=True),
    "MarginHistogram": _Default(MarginHistogram, MarginHistogram, needs_logger=True),
    "Generations": _Default(Generations, Generations, needs_logger=True),
}
"""The default callbacks, by their names in ``default_callbacks``."""


def callbacks_of_run(configured: Any, chosen: bool | Mapping[str, bool], trainer: Any) -> list[Callback]:
    """Return the default callbacks, then those configured.

    A configured callback replaces the default of its kind. Callbacks that the trainer's switches
    ``logger: false``, ``enable_progress_bar: false`` and ``barebones`` exclude are left out, even if
    configured.

    Args:
        configured: ``trainer.callbacks``.
        chosen: ``default_callbacks``.
        trainer: the trainer's settings.

    Raises:
        ConfigError: if ``chosen`` names no default callback.
    """
    excluded = _excluded(trainer)
    own = [one for one in listed(configured) if not isinstance(one, excluded)]
    defaults = [
        default.make()
        for name, default in CALLBACKS.items()
        if _is_chosen(name, chosen)
        and not any(isinstance(one, default.kind) for one in own)
        and not issubclass(default.kind, excluded)
        and not (default.needs_logger and _has_no_logger(trainer))
    ]
    return [*defaults, *own]


def has_progress_bar(callbacks: Iterable[Callback]) -> bool:
    """Return whether there is a progress bar; without one, Lightning adds its own."""
    return any(isinstance(one, AnyProgressBar) for one in callbacks)


def listed(asked: Any) -> list[Any]:
    """Return the value of a setting as a list of zero, one or several objects."""
    if asked is None:
        return []
    return list(asked) if isinstance(asked, list | tuple) else [asked]


def check_chosen(chosen: bool | Mapping[str, bool]) -> None:
    """Raise a ``ConfigError`` if ``default_callbacks`` names an unknown callback."""
    for name in chosen if isinstance(chosen, Mapping) else ():
        if name not in CALLBACKS:
            raise ConfigError(
                f"expected `default_callbacks` to name {', '.join(CALLBACKS)}, got '{name}'"
                f"{suggest(name, CALLBACKS) or '.'}"
            )


def _is_chosen(name: str, chosen: bool | Mapping[str, bool]) -> bool:
    return chosen.get(name, True) if isinstance(chosen, Mapping) else chosen


def _has_no_logger(trainer: Any) -> bool:
    return trainer.logger is False or trainer.barebones


def _excluded(trainer: Any) -> tuple[type[Callback], ...]:
    """Return the callback classes that Lightning rejects given the trainer's switches."""
    if trainer.barebones:
        return LearningRateMonitor, AnyProgressBar, Checkpoint, Throughput
    without_logger = (LearningRateMonitor,) if trainer.logger is False else ()
    without_bar = (AnyProgressBar,) if trainer.enable_progress_bar is False else ()
    return *without_logger, *without_bar
