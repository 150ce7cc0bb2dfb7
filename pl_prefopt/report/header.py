"""What a run was: model, data, date, steps, duration, hardware."""

from __future__ import annotations

from pl_prefopt.evaluations import Facts
from pl_prefopt.report.runs import Run

_UNKNOWN = "not recorded"


def header(run: Run) -> list[tuple[str, str]]:
    """Return the facts of a run with their names."""
    facts, main = run.facts, run.evaluation("test") or run.evaluation("val")
    date = facts.started if facts else main.date if main else None
    return [
        ("model", run.settings.get("model.init_args.policy.name", _UNKNOWN)),
        ("data", _data(run)),
        ("date", date[:16].replace("T", " ") + " UTC" if date else _UNKNOWN),
        ("steps", _trained(facts) if facts else _steps(run)),
        ("duration", duration(facts.seconds) if facts else _UNKNOWN),
        ("hardware", f"{facts.hardware}, {facts.precision}" if facts else _UNKNOWN),
    ]


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> duration(12.34), duration(754), duration(90061)
    ('12.3 s', '12 min 34 s', '25 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _data(run: Run) -> str:
    """Return the training data: a path, or those of several sources."""
    given = run.settings.get("data.train")
    if given is None:
        paths = [value for key, value in run.settings.items() if _is_source(key)]
        given = ", ".join(paths) or None
    rows = run.facts.rows.get("train", {}).get("rows") if run.facts else None
    name = _UNKNOWN if given in (None, "null") else str(given)
    return name if rows is None else f"{name}, {rows:,} rows"


def _is_source(key: str) -> bool:
    """Whether a setting is the path of a training source, such as ``data.train.helpful.path``."""
    return key.startswith("data.train.") and (key.endswith(".path") or key.count(".") == 2)


def _trained(facts: Facts) -> str:
    """Return the steps that the run took, which are not all of its weights'."""
    start = f", from step {facts.first_step:,} on" if facts.first_step else ""
    return f"{facts.steps - facts.first_step:,}{start}"


def _steps(run: Run) -> str:
    """Return the steps as far as the curves tell them."""
    last = [curve.steps[-1] for name, curve in run.curves.items() if name.startswith("train/")]
    return f"{max(last):,.0f}" if last else _UNKNOWN
