"""One figure per objective where losses or rewards are on an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pl_prefopt.report.figures.panel import Panel
from pl_prefopt.report.subjects import Subject, of_one_family, same_objective

_DIFFERENT = "The runs' settings of the objective differ: compare the shapes, not the values."


def per_scale(subjects: Sequence[Subject], make: Callable[[Sequence[Subject]], Panel | None]) -> list[Panel]:
    """Return the figure of all runs, or one for the runs of each objective, since their scales differ.

    Where numbers of one objective differ, such as β, the caption says that the values don't compare.
    """
    groups = of_one_family(subjects)
    made = {name: _captioned(make, members) for name, members in groups.items()} if len(groups) > 1 else {}
    drawn = {name: panel for name, panel in made.items() if panel is not None and panel.figure is not None}
    if not drawn:
        panel = _captioned(make, subjects)
        return [] if panel is None else [panel]
    return [
        replace(panel, key=f"{panel.key}_{place}", title=f"{panel.title} · {name}")
        for place, (name, panel) in enumerate(drawn.items(), start=1)
    ]


def _captioned(
    make: Callable[[Sequence[Subject]], Panel | None], subjects: Sequence[Subject]
) -> Panel | None:
    panel = make(subjects)
    if panel is None or same_objective(subjects):
        return panel
    return replace(panel, how=f"{panel.how} {_DIFFERENT}")
