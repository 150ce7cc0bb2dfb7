"""Bootstrap confidence intervals of what a test measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.metrics import bootstrap
from pl_prefopt.metrics.pairs import log_ratio, winner_minus_loser
from pl_prefopt.metrics.states import PreferenceMetric, keep
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.types import ResponseLogProbs

_SECONDS_BETWEEN_LINES = 60
_Correlate: TypeAlias = Callable[[bootstrap.Whole], dict[str, bootstrap.Floats]]
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
            graded = columns["graded"] > 0
            correlate = _correlations(columns["margin"][graded], columns["difference"][graded])
            for weights in self._resampled(sizes):
                for name, values in self._resample(columns, weights, correlate).items():
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

    def _resampled(self, sizes: bootstrap.Whole) -> Iterator[bootstrap.Whole]:
        """Yield the weights of the resamples, and say every minute how many there have been."""
        prompts, done = np.repeat(np.arange(len(sizes)), sizes), 0
        began = told = time.monotonic()
        for weights in bootstrap.resampled_weights(prompts, resamples=self.resamples, seed=self.seed):
            yield weights
            done, now = done + len(weights), time.monotonic()
            if now - told >= _SECONDS_BETWEEN_LINES:
                left = (now - began) / done * (self.resamples - done)
                rank_zero_info(
                    f"intervals of {len(prompts):,} pairs: {done:,} of {self.resamples:,} resamples, "
                    f"about {left / 60:.0f} minutes left"
                )
                told = now

    def _resample(
        self, columns: Mapping[str, bootstrap.Floats], weights: bootstrap.Whole, correlate: _Correlate
    ) -> dict[str, bootstrap.Floats]:
        means = {name: bootstrap.weighted_mean(columns[name], weights) for name in self.margins}
        shares = {
            name.replace("margin", "accuracy"): bootstrap.weighted_mean(
                (np.sign(columns[name]) + 1) / 2, weights
            )
            for name in ("margin", *(f"margin_{view}" for view in self.views))
        }
        return means | shares | correlate(weights.compress(columns["graded"] > 0, axis=1))

    def _column(self, name: str) -> bootstrap.Floats:
        state: Any = getattr(self, name)
        # After a sync the states are tensors and not lists; a rank without updates has an empty list.
        values = torch.zeros(0) if isinstance(state, list) and not state else dim_zero_cat(state)
        return np.asarray(values.double().cpu().numpy())


def _correlations(first: bootstrap.Floats, second: bootstrap.Floats) -> _Correlate:
    """Return what computes the correlations under weights [resamples, pairs].

    They are NaN for a resample without a pair, or if one side is constant.
    """
    varied = len(first) > 0 and np.ptp(first) > 0 and np.ptp(second) > 0
    ranked = bootstrap.RankCorrelations(first, second) if varied else None

    def correlate(weights: bootstrap.Whole) -> dict[str, bootstrap.Floats]:
        results = {name: np.full(len(weights), np.nan) for name in ("pearson", "spearman", "kendall")}
        drawn = weights.sum(axis=1) > 0
        if ranked is not None and drawn.any():
            weights = weights[drawn]
            results["pearson"][drawn] = bootstrap.weighted_pearson(first, second, weights)
            results["spearman"][drawn] = ranked.spearman(weights)
            results["kendall"][drawn] = ranked.kendall(weights)
        return results

    return correlate


def _ends(pieces: Sequence[bootstrap.Floats]) -> tuple[float, float]:
    values = np.concatenate([*pieces, np.empty(0)])
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
