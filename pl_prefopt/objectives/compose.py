"""Objectives as compositions: score × structure × link, with offsets, weights and terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, Objective
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.labels import SoftLabel, labelled
from pl_prefopt.objectives.links import LOGISTIC, GivenLosses, Link
from pl_prefopt.objectives.offsets import Offset
from pl_prefopt.objectives.pair_weights import PairWeight
from pl_prefopt.objectives.scores import Score
from pl_prefopt.objectives.structures import MEAN_OF_PAIRS, Structure
from pl_prefopt.objectives.terms import Term
from pl_prefopt.objectives.two_sided import TwoSidedLink
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch, TokenNumbers, ViewLogProbs

PAGE = "methods/compose.md"

_Scored = TypeVar("_Scored", ScoredBatch, ViewLogProbs)


class _Needing(Protocol):
    @property
    def needs(self) -> Needs: ...


class Compose(Objective):
    """An objective made of parts, each of them a class that YAML can name.

    The score gives each response an implicit reward r(y). The structure picks pairs of a winner w and a
    loser l, and combines their margins

        z = r_w − r_l − Σ offsets

    into one loss per prompt by means of the link; a pair's loss is multiplied by its weights, and terms are
    added. Offsets are in units of the reward: the scale β belongs to the score.

    Args:
        score: the implicit reward of a response.
        structure: which responses are compared, and how comparisons add up.
        link: the loss of a margin, or of both rewards of a pair; then without offsets or a label.
        offsets: what a margin must reach beyond 0.
        weights: of the pairs, for structures in which each pair has a loss of its own.
        terms: losses to add, each logged by its name.
        label: the probability q that the winner of a pair is preferred, 1 by default; with it, the loss of a
            pair is q φ(z) + (1 − q) φ(−z) for the link φ. It needs a structure as weights do.

    Raises:
        ConfigError: if the parts do not go together.

    Examples:
        DPO with γ = 1, on one prompt with the log-ratios 3 and 1:

        >>> from pl_prefopt.objectives.scores import LogRatio
        >>> from pl_prefopt.objectives.offsets import Margin
        >>> from pl_prefopt.types import ResponseLogProbs
        >>> objective = Compose(score=LogRatio(beta=0.5), offsets=[Margin(gamma=1.0)])
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=torch.tensor([[-7.0, -9.0]]), length=torch.tensor([[4, 4]])),
        ...     references=torch.tensor([[[-10.0, -10.0]]]),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([False]),
        ... )
        >>> objective(batch).loss, objective(batch).reward
        (tensor([0.6931]), tensor([[1.5000, 0.5000]]))
    """

    use_when = "Something between the named methods."

    def __init__(
        self,
        *,
        score: Score,
        structure: Structure = MEAN_OF_PAIRS,
        link: Link | TwoSidedLink = LOGISTIC,
        offsets: Sequence[Offset] = (),
        weights: Sequence[PairWeight] = (),
        terms: Sequence[Term] = (),
        label: SoftLabel | None = None,
    ) -> None:
        super().__init__()
        if weights and not structure.separate:
            raise ConfigError(
                f"{type(structure).__name__} merges margins before the link, so that no pair has a loss for "
                "`weights` to multiply: set `weights` to [], or `structure` to MeanOfPairs or SumOfPairs."
            )
        views = [name for offset in offsets for name in offset.rewarded_views]
        if views and score.needs.tokens is not None:
            raise ConfigError(
                f"{type(score).__name__} reads single tokens, but an offset asks it for rewards of the view "
                f"'{views[0]}', of which there are only sums: remove the offset, or use another `score`."
            )
        if isinstance(link, TwoSidedLink) or label is not None:
            _check_pair_losses(structure, link, offsets, label)
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ConfigError(f"expected `terms` of different names, got {', '.join(names)}.")
        self.score, self.structure, self.link, self.label = score, structure, link, label
        self.offsets, self.weights, self.terms = tuple(offsets), tuple(weights), tuple(terms)

    # Settings have one place, in the parts; an objective only shows them.
    pairing = property(lambda self: self.structure.pairing)

    @property
    def needs(self) -> Needs:
        """What the parts must be given, and two responses."""
        labels = () if self.label is None else (self.label,)
        parts: tuple[_Needing, ...] = (self.score, *self.offsets, *self.weights, *self.terms, *labels)
        needs = Needs.of_all(Needs(min_responses=2), *(part.needs for part in parts))
        # Offsets, weights and labels read log-probs of single tokens, if any.
        log_probs = self.score.needs.log_probs or any(term.needs.log_probs for term in self.terms)
        return dataclasses.replace(needs, log_probs=log_probs or needs.tokens is not None)

    @property
    def stats(self) -> tuple[MetricInfo, ...]:
        """Those of the score and of the terms."""
        return (*self.score.stats, *(term.info for term in self.terms))

    @property
    def token_rewarded(self) -> bool:
        """Whether the score has rewards per token."""
        return self.score.token_rewarded

    @property
    def rewarded_views(self) -> tuple[str, ...]:
        """Those that offsets ask the score for."""
        return tuple(name for offset in self.offsets for name in offset.rewarded_views)

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows that give no training signal, or that lack what a part reads."""
        super().check_training_rows(rows)
        self.score.check_rows(rows)
        self._check_parts(rows, "train")

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Refuse rows that lack what the score reads; for ``predict``, what the loss reads may be missing."""
        self.score.check_rows(rows, split)
        if split != "predict":
            self._check_parts(rows, split)

    def _check_parts(self, rows: Sequence[PreferenceRow], split: str) -> None:
        parts: list[Offset | PairWeight | Term | SoftLabel] = [*self.offsets, *self.weights, *self.terms]
        for part in parts if self.label is None else [*parts, self.label]:
            part.check_rows(rows, split)

    def pairs(self, batch: ScoredBatch) -> Tensor:
        """Return bool [B, R, R], the pairs to compare, winner by row and loser by column."""
        return self.structure.pairing(batch.scores, batch.present)

    def margins(self, compared: Comparisons) -> Tensor:
        """Return z of each pair, [B, R, R]."""
        margins = compared.margins
        for offset in self.offsets:
            margins = margins - offset(compared)
        return margins

    def _pair_link(self, compared: Comparisons, margins: Tensor) -> Link:
        """Return a link that knows what the loss of a pair depends on in addition to its margin."""
        if isinstance(self.link, TwoSidedLink):
            return GivenLosses(self.link(compared.rewards.chosen, compared.rewards.rejected))
        if self.label is not None:
            return GivenLosses(labelled(self.link, margins, self.label(compared)))
        return self.link

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and each response's reward."""
        pairs = self.pairs(batch)
        compared = Comparisons(without_absent(batch), pairs, self.score)
        margins = self.margins(compared)
        weights = margins.new_ones(())
        for weight in self.weights:
            weights = weights * weight(compared).detach()
        losses = {term.name: term(compared) for term in self.terms}
        counted = pairs.any(dim=-1).any(dim=-1)
        compared_loss = self.structure(margins, pairs, weights, self._pair_link(compared, margins))
        token_reward = None if batch.tokens is None else self.score.token_reward(compared.batch, pairs)
        return Outcome(
            loss=sum(losses.values(), compared_loss),
            counted=counted,
            reward=compared.rewards.response.detach(),
            stats={**compared.rewards.stats, **_means(losses, counted)},
            view_rewards=compared.view_rewards,
            token_reward=None if token_reward is None else token_reward.detach(),
        )


def _check_pair_losses(
    structure: Structure, link: Link | TwoSidedLink, offsets: Sequence[Offset], label: SoftLabel | None
) -> None:
    """Refuse a link of two rewards, or a label, beside parts that it can't go with."""
    if isinstance(link, TwoSidedLink) and (offsets or label is not None):
        raise ConfigError(
            f"{type(link).__name__} is a loss of two rewards, so that there is no margin for `offsets` "
            "or a `label`: set `offsets` to [] and `label` to null, or `link` to one of margins, such as "
            "Logistic."
        )
    if not structure.separate:
        raise ConfigError(
            f"{type(structure).__name__} merges margins before the link, so that no pair has a loss of "
            "its own: set `structure` to MeanOfPairs or SumOfPairs, or `link` to one of margins and "
            "`label` to null."
        )


def without_absent(batch: ScoredBatch) -> ScoredBatch:
    """Return the batch with 0 in place of values of absent responses, so that NaN reaches no gradient."""

    def filled(scored: _Scored) -> _Scored:
        policy = dataclasses.replace(scored.policy, sum=torch.where(batch.present, scored.policy.sum, 0.0))
        references = torch.where(batch.present, scored.references, 0.0)
        outputs = {
            name: torch.where(batch.present.unsqueeze(-1), values, 0.0) if values.dim() == 3 else values
            for name, values in scored.outputs.items()
        }
        return dataclasses.replace(scored, policy=policy, references=references, outputs=outputs)

    alike = {name: view for name, view in batch.views.items() if view.present.shape == batch.present.shape}
    views = {**batch.views, **{name: filled(view) for name, view in alike.items()}}
    tokens = None if batch.tokens is None else _tokens_without_absent(batch.tokens, batch.present)
    return dataclasses.replace(filled(batch), views=views, tokens=tokens)


def _tokens_without_absent(tokens: TokenNumbers, present: Tensor) -> TokenNumbers:
    there = present.unsqueeze(-1)
    collisions, steps, states = tokens.collisions, tokens.steps, tokens.states
    return TokenNumbers(
        counted=tokens.counted & there,
        policy=torch.where(there, tokens.policy, 0.0),
        references=torch.where(there, tokens.references, 0.0),
        kl={direction: torch.where(there, values, 0.0) for direction, values in tokens.kl.items()},
        collisions=None if collisions is None else torch.where(there, collisions, 0.0),
        steps=None if steps is None else torch.where(there, steps, -1),
        states=None if states is None else torch.where(there.unsqueeze(-1), states, 0.0),
    )


def _means(losses: Mapping[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """Return the mean of each loss over the prompts that count."""
    count = counted.sum().clamp(min=1)
    return {name: loss.detach().sum() / count for name, loss in losses.items()}
