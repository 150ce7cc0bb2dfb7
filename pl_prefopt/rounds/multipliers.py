"""The stage that takes the step of constrained rewards' multipliers: from one round to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pl_prefopt.errors import RunError
from pl_prefopt.rewards import Multipliers
from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.plan import Rounds, Stage
from pl_prefopt.rounds.stages import MARK, SUMMARY, judged_rows


def multipliers_of(settings: Rounds, number: int) -> Multipliers:
    """Return the multipliers that the scores of round ``number`` are made with."""
    judge = settings.judge
    assert isinstance(judge, ConstrainedScores)
    if number == 1:
        return judge.multipliers(None)
    held = Stage(number - 1, "multipliers").folder(Path(settings.out)) / SUMMARY
    return judge.multipliers(json.loads(held.read_text(encoding="utf-8"))["state"])


def updated_multipliers(settings: Rounds, number: int) -> dict[str, Any]:
    """Return what round ``number`` says about each reward, and the state of the multipliers after it.

    Raises:
        RunError: if a judge has no score of any sample.
    """
    multipliers = multipliers_of(settings, number)
    used = multipliers.values.tolist()
    means = _mean_scores(settings, number, len(used))
    multipliers.update(torch.tensor(means))
    told = zip(multipliers.thresholds.tolist(), means, used, strict=True)
    return {
        "rewards": {
            str(place): {"threshold": threshold, "mean": mean, "multiplier": value}
            for place, (threshold, mean, value) in enumerate(told, 1)
        },
        "state": {name: tensor.tolist() for name, tensor in multipliers.state_dict().items()},
    }


def _mean_scores(settings: Rounds, number: int, judges: int) -> list[float]:
    """Return the mean of each judge's scores of the round's own samples."""
    totals, counts = [0.0] * judges, [0] * judges
    for row in judged_rows(settings, number):
        for scores, initial in zip(row["parts"], row[MARK], strict=True):
            for place, score in enumerate(scores):
                if score is not None and not initial:
                    totals[place] += score
                    counts[place] += 1
    if 0 in counts:
        raise RunError(
            f"judge {counts.index(0) + 1} of ConstrainedScores has no score of any sample of round {number}, "
            "so its multiplier can't be updated: check the judge."
        )
    return [total / count for total, count in zip(totals, counts, strict=True)]
