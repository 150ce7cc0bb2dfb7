"""Bootstrap confidence intervals of what a test measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.metrics import bootstrap
from pl_prefopt.metrics.pairs import log_ratio, winner_minus_loser
from pl_prefopt.metrics.states import PreferenceMetric, keep
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.types import ResponseLogProbs

_NO_VIEWS: Mapping[str, Tensor] = {}


class BootstrapIntervals(PreferenceMetric):
    """95 % percentile intervals over prompts, ``X_low`` and ``X_high`` for a metric ``X``.

    X is each metric whose entry in the registry has an ``interval``: ``accuracy``, ``margin``,
    ``log_ratio_margin_k`` of each reference, ``accuracy_view`` and ``margin_view`` of each view, ``pearson``,
    ``spearman`` and ``kendall``. All pairs are kept until the end. The same rows in the same order give the
    same intervals.

    Args:
        num_references: K.
        views: the views whose rewards are judged.
        resamples: how many times prompts are sampled with replacement.
        seed: random seed of the samples.
    """

    sizes: list[Tensor]
    difference: list[Tensor]
    graded: list[Tensor]

    def __init__(
        self,
        *,
        num_references: int = 0,
        views: Sequence[str] = (),
        resamples: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_references, self.views = num_references, tuple(views)
        self.resamples, self.seed = resamples, seed
        ratios = [f"log_ratio_margin_{k}" for k in range(num_references)]
        self.margins = ["margin", *ratios, *(f"margin_{view}" for view in views)]
        for name in ("sizes", "difference", "graded", *self.margins):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        reward: Tensor,
        policy: ResponseLogProbs,
        references: Tensor,
        scores: Tensor,
        present: Tensor,
        graded: Tensor,
        view_rewards: Mapping[str, Tensor] = _NO_VIEWS,
    ) -> None:
        """Count a batch: all [B, R], but ``references`` [K, B, R] and ``graded`` [B]."""
        wins = ALL_PAIRS(scores, present)
        ratios = {
            f"log_ratio_margin_{k}": log_ratio(policy, references[k]) for k in range(self.num_references)
        }
        viewed = {f"margin_{view}": view_rewards[view] for view in self.views}
        for name, values in {"margin": reward, "difference": scores, **ratios, **viewed}.items():
            keep(getattr(self, name), winner_minus_loser(values.float())[wins])
        sizes = wins.sum(dim=(-2, -1))
        keep(self.graded, graded.repeat_interleave(sizes).float())
        keep(self.sizes, sizes[sizes > 0].float())

    def compute(self) -> dict[str, Tensor]:
        """Return the intervals; NaN with fewer than two prompts."""
        columns = {name: self._column(name) for name in ("difference", "graded", *self.margins)}
        sizes = self._column("sizes").astype(np.int64)
        resampled: dict[str, list[bootstrap.Floats]] = {name: [] for name in self._names()}
        if len(sizes) >= 2:
            prompts = np.repeat(np.arange(len(sizes)), sizes)
            for weights in bootstrap.resampled_weights(prompts, resamples=self.resamples, seed=self.seed):
                for name, values in self._resample(columns, weights).items():
                    resampled[name].append(values)
        ends = {name: _ends(pieces) for name, pieces in resampled.items()}
        return {
            f"{name}_{end}": torch.tensor(value, dtype=torch.float32, device=self.device)
            for name, both in ends.items()
            for end, value in zip(("low", "high"), both, strict=True)
        }

    def _names(self) -> list[str]:
        return [
            "accuracy",
            *(f"accuracy_{view}" for view in self.views),
            *self.margins,
            "pearson",
            "spearman",
            "kendall",
        ]

    def _resample(
        self, columns: Mapping[str, bootstrap.Floats], weights: bootstrap.Whole
    ) -> dict[str, bootstrap.Floats]:
        means = {name: bootstrap.weighted_mean(columns[name], weights) for name in self.margins}
        shares = {
            name.replace("margin", "accuracy"): bootstrap.weighted_mean(
                (np.sign(columns[name]) + 1) / 2, weights
            )
            for name in ("margin", *(f"margin_{view}" for view in self.views))
        }
        graded = columns["graded"] > 0
        pairs = columns["margin"][graded], columns["difference"][graded], weights[:, graded]
        drawn = pairs[2].sum(axis=1) > 0
        return (
            means
            | shares
            | {name: _where(drawn, function, *pairs) for name, function in _CORRELATIONS.items()}
        )

    def _column(self, name: str) -> bootstrap.Floats:
        state: Any = getattr(self, name)
        # After a sync the states are tensors and not lists; a rank without updates has an empty list.
        values = torch.zeros(0) if isinstance(state, list) and not state else dim_zero_cat(state)
        return np.asarray(values.double().cpu().numpy())


_CORRELATIONS = {
    "pearson": bootstrap.weighted_pearson,
    "spearman": bootstrap.weighted_spearman,
    "kendall": bootstrap.weighted_kendall,
}


def _where(
    drawn: Any, function: Any, first: bootstrap.Floats, second: bootstrap.Floats, weights: bootstrap.Whole
) -> bootstrap.Floats:
    """Return the correlation of each resample; NaN if it has no graded pair, or one side is constant."""
    result = np.full(len(weights), np.nan)
    if drawn.any() and np.ptp(first) > 0 and np.ptp(second) > 0:
        result[drawn] = function(first, second, weights[drawn])
    return result


def _ends(pieces: Sequence[bootstrap.Floats]) -> tuple[float, float]:
    values = np.concatenate([*pieces, np.empty(0)])
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
