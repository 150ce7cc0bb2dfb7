"""Constrained rewards in rounds: several judges, weighted by multipliers that are kept between rounds."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from pl_prefopt.errors import ConfigError
from pl_prefopt.judges import Judge, JudgedRow
from pl_prefopt.rewards import Multipliers
from pl_prefopt.rounds.judging import SeveralJudges


class ConstrainedScores(SeveralJudges):
    """Σ_i λ_i r_i + (N − Σ_i λ_i) p of N judges, with multipliers λ that are kept between rounds.

    Constrained RLHF (Moskovitz et al., arXiv 2310.04373): a judge's score r_i has the more weight, the
    further the mean score of the samples is below the threshold θ_i, and loses weight beyond it, where a
    higher score no longer means a better response. That weight goes to p = −log[π(y|x)/π_initial(y|x)]. The
    paper trains with PPO on advantages; here the sum is the score of a sample. λ is the same for all samples
    of a round. Once these are judged it takes one step, see ``pl_prefopt.rewards.Multipliers``, and the next
    round starts with the result.

    A response without a score from one of the judges has none. All judges are loaded at the same time.

    Args:
        judges: judges that give scores.
        thresholds: θ_i, one per judge.
        learning_rate: of the multipliers' parameters, one step per round. There is no default: the 0.01 of
            the authors' code is for the many steps of PPO.
        momentum: in [0, 1), the authors' by default.
        equality: whether λ_i = tanh(μ_i) in place of σ(μ_i), which also pushes scores down to the threshold.
        batch_size: rows per batch.

    Raises:
        ConfigError: if a judge compares, there isn't one threshold per judge, or a setting is out of range.
    """

    def __init__(
        self,
        judges: list[Judge],
        thresholds: list[float],
        learning_rate: float,
        momentum: float = 0.1,
        equality: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(judges, batch_size)
        if len(thresholds) != len(judges):
            raise ConfigError(
                f"expected one of `thresholds` per judge, got {len(thresholds)} for {len(judges)} judges."
            )
        self._settings: dict[str, Any] = {
            "thresholds": thresholds,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "equality": equality,
        }
        self._multipliers: Multipliers | None = None
        self.multipliers(None)

    def multipliers(self, state: Mapping[str, Sequence[float]] | None) -> Multipliers:
        """Return the multipliers with a saved state; ``None`` for those of the first round."""
        made = Multipliers(**self._settings)
        if state is not None:
            made.load_state_dict({name: torch.tensor(state[name]) for name in made.state_dict()})
        return made

    def by(self, multipliers: Multipliers) -> Self:
        """Return this judge with the multipliers of a round."""
        bound = copy.copy(self)
        bound._multipliers = multipliers
        return bound

    def fingerprint(self) -> str:
        """Return a hash of the judges, the settings and the multipliers."""
        told = ([one.fingerprint() for one in self.judges], self._settings, self._bound.values.tolist())
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    @property
    def _bound(self) -> Multipliers:
        if self._multipliers is None:
            raise ConfigError(
                "the multipliers of ConstrainedScores change from round to round: name it as the `judge` of "
                "`prefopt rounds`."
            )
        return self._multipliers

    def prepare(self) -> None:
        """Prepare all judges."""
        _ = self._bound
        super().prepare()

    def _score(self, row: JudgedRow, place: int, scores: Sequence[float | None]) -> float | None:
        ours, first = row.columns["log_probs"][place], row.columns["reference_log_probs"][place]
        if ours is None or first is None:
            return None  # a sample without tokens
        rewards = torch.tensor(scores, dtype=torch.float64)
        mixed = float(self._bound(rewards, torch.tensor(first - ours, dtype=torch.float64)))
        return mixed if math.isfinite(mixed) else None
