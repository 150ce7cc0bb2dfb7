"""What a logged number is: name, meaning, range, unit, and which direction is better.

Metrics and objectives declare their numbers with a ``MetricInfo`` each. Tables, dashboards, reports, the
progress bar and the checks of monitored names read nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

OTHER = "of the objective"
"""The group of numbers that an objective reports of itself."""

RENAMED = {"marginal_{k}": "log_ratio_margin_{k}", "kl_{k}": "log_ratio_{k}"}
"""Names of earlier versions, and what they are now. Files with the former names are read."""

_ENDS = ("_low", "_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One logged number, or several that differ by a number or a word in their name.

    Attributes:
        name: without the stage. ``{k}`` stands for the number of a reference, counted from 0; any other word
            in braces, such as ``{view}``, stands for a name.
        help: one sentence on what it is.
        range: the least and the greatest value that it can have.
        unit: ``%`` for a share between 0 and 1 that is shown in per cent, ``nats``, or nothing.
        group: under which title tables list it.
        better: which direction is better, if any.
        logged: ``train`` for all stages, ``evaluation`` for validation and test, ``test`` for test alone.
        interval: whether a test adds its 95 % interval, as ``<name>_low`` and ``<name>_high``.
        plot: the title of the plot on a dashboard, which those of the same title share.
        headline: whether a report's main table has it.
        progress_bar: whether the progress bar shows it.
    """

    name: str
    help: str
    range: tuple[float, float] = (-math.inf, math.inf)
    unit: Literal["", "%", "nats"] = ""
    group: str = OTHER
    better: Literal["higher", "lower", "none"] = "none"
    logged: Literal["train", "evaluation", "test"] = "train"
    interval: bool = False
    plot: str = ""
    headline: bool = False
    progress_bar: bool = False

    @property
    def label(self) -> str:
        """The name as people write it: ``log_ratio_k`` for ``log_ratio_{k}``."""
        return re.sub(r"[{}]", "", self.name)

    @property
    def pattern(self) -> str:
        r"""A regular expression for the names that it stands for.

        >>> print(MetricInfo(name="alpha_{k}", help="").pattern)
        alpha_\d+
        """
        parts = re.split(r"\{(\w+)\}", self.name)
        places = (r"\d+" if word == "k" else r"\w+" for word in parts[1::2])
        words = (re.escape(part) for part in parts[::2])
        return "".join(part for pair in zip(words, [*places, ""], strict=True) for part in pair)

    def is_logged_in(self, stage: str) -> bool:
        """Return whether ``stage``, such as ``train`` or ``val``, logs it."""
        return self.logged == "train" or stage == self.logged or (stage != "train" and self.logged != "test")


def find_info(name: str, infos: Sequence[MetricInfo]) -> MetricInfo | None:
    """Return what ``name``, without its stage, is; an interval's end is its metric, as is one of a set.

    >>> infos = [MetricInfo(name="lr_{k}", help="", interval=True), MetricInfo(name="lr_all", help="")]
    >>> [getattr(find_info(name, infos), "name", None) for name in ("lr_3", "lr_all", "lr_3_low", "lr_x")]
    ['lr_{k}', 'lr_all', 'lr_{k}', None]
    >>> find_info("helpful/lr_3", infos).name
    'lr_{k}'
    """
    exact = next((info for info in infos if info.name == name), None)
    found = (
        exact or _of_interval(name, infos) or next((i for i in infos if re.fullmatch(i.pattern, name)), None)
    )
    _, slash, last = name.partition("/")
    return find_info(last, infos) if found is None and slash else found


def _of_interval(name: str, infos: Sequence[MetricInfo]) -> MetricInfo | None:
    base = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), None)
    found = find_info(base, infos) if base else None
    return found if found is not None and found.interval else None


def grouped(names: Iterable[str], infos: Sequence[MetricInfo]) -> dict[str, list[str]]:
    """Sort metrics, named without their stage, by the groups and the order of ``infos``; unknown ones last.

    >>> margin = MetricInfo(name="margin", help="", group="pairs")
    >>> infos = [margin, MetricInfo(name="lr_{k}", help="", group="rates")]
    >>> grouped(["lr_1", "lr_0", "alpha_0", "margin"], infos)
    {'pairs': ['margin'], 'rates': ['lr_0', 'lr_1'], 'of the objective': ['alpha_0']}
    >>> grouped(["easy/margin", "margin"], infos)
    {'pairs': ['margin', 'easy/margin']}
    """
    titles = [*dict.fromkeys(info.group for info in infos if info.group != OTHER), OTHER]
    places = {}
    for name in names:
        info = find_info(name, infos)
        places[name] = (OTHER, len(infos)) if info is None else (info.group, infos.index(info))
    # A metric of all rows comes before those of named sets.
    ordered = sorted(places, key=lambda name: (places[name][1], name.count("/"), name))
    sorted_in = {title: [name for name in ordered if places[name][0] == title] for title in titles}
    return {title: members for title, members in sorted_in.items() if members}


def current_name(name: str) -> str:
    """Return what a metric of an earlier version, with or without its stage, is called now.

    >>> current_name("test/marginal_0_low"), current_name("val/helpful/kl_1"), current_name("val/margin")
    ('test/log_ratio_margin_0_low', 'val/helpful/log_ratio_1', 'val/margin')
    """
    for old, new in RENAMED.items():
        start, _, _ = old.partition("{")
        pattern = rf"((?:.*/)?){re.escape(start)}(\d+|k|\{{k\}})((?:_low|_high)?)"
        if (found := re.fullmatch(pattern, name)) is not None:
            return f"{found[1]}{new.partition('{')[0]}{found[2]}{found[3]}"
    return name


def monitor_mistake(
    monitor: str, mode: str | None, infos: Sequence[MetricInfo], setting: str = ""
) -> str | None:
    """Return what is wrong with a monitored metric, as the end of a sentence; ``None`` if nothing is known.

    Args:
        monitor: its name with the stage.
        mode: ``min`` or ``max``: which values are taken for better.
        infos: what can be logged.
        setting: what ``mode`` is called, with a dot after the name of its section.

    Examples:
        >>> loss = MetricInfo(name="loss", help="", better="lower")
        >>> monitor_mistake("val/loss", "max", [loss], "best.")
        'lower values of val/loss are better, but `best.mode` is max: set it to min.'
    """
    if (new := current_name(monitor)) != monitor:
        return f"the metric '{monitor}' is called '{new}' now."
    stage, _, name = monitor.partition("/")
    info = find_info(name, infos)
    if info is None:
        return None
    if info.interval and name.endswith(_ENDS) and info.name != name.rpartition("/")[2] and stage != "test":
        return f"'{monitor}' is measured by `prefopt test` alone, as the end of an interval."
    if not info.is_logged_in(stage):
        return f"'{monitor}' is not measured in training: set it to 'val/{name}'."
    right = {"higher": "max", "lower": "min"}.get(info.better, mode)
    if mode in ("min", "max") and mode != right:
        return (
            f"{info.better} values of {monitor} are better, but `{setting}mode` is {mode}: set it to {right}."
        )
    return None
