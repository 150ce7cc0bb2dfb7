"""Supervised fine-tuning: the likelihood of some of the responses, without any comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.objectives.base import ReferenceFreeObjective
from pl_prefopt.objectives.ranks import summed_over_ranks
from pl_prefopt.pairing import best, known, rankable, worst
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/reference_free.md"

Imitated: TypeAlias = Literal["best", "chosen", "desirable", "all"]
"""The responses to imitate, see ``SFT``."""


class SFT(ReferenceFreeObjective):
    """Supervised fine-tuning: −log π_θ(y|x) per token, over the responses to imitate.

    The stage before preference optimisation, as in Ouyang et al., arXiv 2203.02155. Rewards are log-probs per
    token.

    Args:
        responses: which to imitate. ``best``: those with the highest score of their prompt; the only one of a
            row that has one scored response must be desirable. ``chosen``: those that score more than another
            one. ``desirable``: those with a score above ``desirable_above``. ``all``: every response, with or
            without a score. With pairs, the first two are the chosen response.
        average: ``sequence`` averages over a response's tokens first, then over a prompt's responses and over
            prompts, so that prompts are weighted equally. ``token`` weights tokens equally, as TRL's
            ``sft`` does: the sum over all tokens of an optimiser step, on all ranks, divided by their number.
            Accumulated batches are refused with it.
        desirable_above: a response with a score above this is desirable.

    Raises:
        ConfigError: if a setting is unknown.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> SFT()(example([-8.0, -10.0])).loss
        tensor([2.])
    """

    data = ("pairs", "lists", "unpaired")
    use_when = "The model does not yet answer in the form of the data: first fine-tune, then compare."

    def __init__(
        self,
        *,
        responses: Imitated = "best",
        average: Literal["sequence", "token"] = "sequence",
        desirable_above: float = 0.5,
    ) -> None:
        super().__init__()
        if responses not in get_args(Imitated):
            raise ConfigError(
                f"responses must be one of {', '.join(get_args(Imitated))}, but is {responses!r}."
            )
        if average not in ("sequence", "token"):
            raise ConfigError(f"average must be 'sequence' or 'token', but is {average!r}.")
        self.responses, self.average, self.desirable_above = responses, average, desirable_above

    @property
    def whole_step(self) -> bool:  # type: ignore[override]
        """Whether the number of tokens of the whole optimiser step divides the loss."""
        return self.average == "token"

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows without a response to imitate."""
        if self.responses == "all":
            return
        super().check_training_rows(rows)
        if not any(self._imitates(row) for row in rows):
            raise ContractError(
                f"SFT imitates the {self.responses} responses, but none of the {len(rows)} train rows has "
                "one: set objective.init_args.responses to all to imitate every response, or desirable_above "
                "to less than the scores of those to imitate."
            )

    def _imitates(self, row: PreferenceRow) -> bool:
        if not row.scores:
            return False
        scores = torch.tensor([row.scores])
        return bool(self.imitated(scores, torch.ones_like(scores, dtype=torch.bool)).any())

    def imitated(self, scores: Tensor, present: Tensor) -> Tensor:
        """Return bool [B, R], the responses to imitate."""
        if self.responses == "all":
            return present
        there, desirable = known(scores, present), scores > self.desirable_above
        if self.responses == "desirable":
            return there & desirable
        ranked = rankable(scores, present).unsqueeze(-1)
        if self.responses == "chosen":
            return there & ranked & ~worst(scores, present)
        alone = there.sum(dim=-1, keepdim=True) == 1
        return best(scores, present) & (ranked | (alone & desirable))

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's loss and the log-probs per token."""
        imitated = self.imitated(batch.scores, batch.present)
        counted = imitated.any(dim=-1)
        sums = torch.where(batch.present, batch.policy.sum, 0.0)
        means = sums / batch.policy.length.clamp(min=1)
        if self.average == "sequence":
            loss = -torch.where(imitated, means, 0.0).sum(dim=-1) / imitated.sum(dim=-1).clamp(min=1)
        else:
            factor = self._prompts_per_token(batch, imitated)
            loss = -torch.where(imitated, sums, 0.0).sum(dim=-1) * factor
            # The mean over all prompts is the mean over tokens, that over prompts with tokens to learn isn't.
            counted = batch.present.any(dim=-1) & (factor > 0)
        return Outcome(loss=loss, counted=counted, reward=means.detach())

    def _prompts_per_token(self, batch: ScoredBatch, imitated: Tensor) -> Tensor:
        """Return prompts / tokens, which turns a mean over prompts into one over tokens; 0 if none."""
        prompts = batch.present.any(dim=-1).sum()
        tokens = torch.where(imitated, batch.policy.length, 0).sum()
        whole = summed_over_ranks(torch.stack([prompts, tokens]).to(batch.policy.sum.dtype))
        return torch.where(whole[1] > 0, whole[0] / whole[1].clamp(min=1), 0.0)
