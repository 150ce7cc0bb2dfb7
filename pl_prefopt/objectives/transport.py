"""AOT: the distributions of a batch's log-ratios are compared, quantile by quantile, not pair by pair."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.compose import without_absent
from pl_prefopt.objectives.links import Logistic
from pl_prefopt.objectives.ranks import gathered
from pl_prefopt.objectives.structures import mean_over
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.types import Outcome, ScoredBatch

PAGE = "methods/pairs.md"


class TransportObjective(ReferenceObjective):
    """Sorts numbers of all pairs of a batch, on all ranks, and compares those of the same rank order.

    The loss belongs to the whole optimiser step: it is the same however the batch is divided among ranks, and
    accumulated batches are refused. Each rank must run the same number of steps.

    Args:
        beta: β > 0, the strength of the KL penalty.
        label_smoothing: ε in [0, 0.5), as in cDPO.
        pairing: which responses make a pair.
    """

    data = ("pairs", "lists")
    whole_step = True

    def __init__(
        self, *, beta: float = 0.01, label_smoothing: float = 0.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__()
        self.beta, self.link, self.pairing = positive("beta", beta), Logistic(label_smoothing), pairing

    label_smoothing = property(lambda self: self.link.label_smoothing)

    @property
    def needs(self) -> Needs:
        """One reference and two responses."""
        return Needs(min_references=1, max_references=1, min_responses=2)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Return each prompt's mean over its pairs, and the rewards βa(y)."""
        pairs = self.pairing(batch.scores, batch.present)
        batch = without_absent(batch)
        policy, reference = batch.policy.sum, batch.references[0]
        # A prompt's pairs share its weight in the mean over prompts.
        shares = (
            (1 / pairs.sum(dim=(-2, -1), keepdim=True).clamp(min=1)).to(policy).expand(pairs.shape)[pairs]
        )
        losses = self.losses(_sides(policy, pairs), _sides(reference, pairs), shares)
        grid = policy.new_zeros(pairs.shape).masked_scatter(pairs, losses)
        return Outcome(
            loss=mean_over(pairs, grid),
            counted=pairs.any(dim=-1).any(dim=-1),
            reward=self.beta * (policy - reference).detach(),
        )

    @abstractmethod
    def losses(
        self, policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], shares: Tensor
    ) -> Tensor:
        """Return the loss of each pair, [N].

        Args:
            policy: the policy's log-probs of winners and of losers, each [N].
            reference: the reference's.
            shares: the weight of each pair in its prompt, [N].
        """


class AOT(TransportObjective):
    """Alignment via optimal transport, paired: −log σ(β[u_(i) − v_(i)]), margins sorted over the batch.

    Melnyk et al., arXiv 2406.05882. u = log π_θ(y_w) − log π_θ(y_l) of each pair, v that of the reference,
    and _(i) the i-th smallest of the batch: the policy's margins dominate the reference's as distributions.
    With one pair it is cDPO, and never above it. β 0.01 is as TRL's paper index lists it.

    Args:
        beta: β > 0, the strength of the KL penalty.
        label_smoothing: ε in [0, 0.5), as in cDPO.
        pairing: which responses make a pair.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> AOT()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.6931])
    """

    use_when = "Batches are large, and the distribution of margins matters more than single pairs."

    def losses(
        self, policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], shares: Tensor
    ) -> Tensor:
        ours, theirs = policy[0] - policy[1], reference[0] - reference[1]
        (matched,) = partners(ours, theirs)
        return self.link(self.beta * (ours - matched))


class AOTUnpaired(TransportObjective):
    """Alignment via optimal transport, unpaired: −log σ(β[a_(i)(y_w) − a_(i)(y_l)]), sorted over the batch.

    Melnyk et al., arXiv 2406.05882, with a the log-ratio: winners and losers are sorted each by themselves,
    and need not answer the same prompt. A prompt's loss is the mean of those of its winner and of its loser.
    β 0.01 is as TRL's paper index lists it.

    Args:
        beta: β > 0, the strength of the KL penalty.
        label_smoothing: ε in [0, 0.5), as in cDPO.
        pairing: which responses make a pair.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import example
        >>> AOTUnpaired()(example([-10.0, -10.0], [-10.0, -10.0])).loss
        tensor([0.6931])
    """

    use_when = "Chosen and rejected responses are to be told apart as two groups."

    def losses(
        self, policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], shares: Tensor
    ) -> Tensor:
        winners, losers = (ours - theirs for ours, theirs in zip(policy, reference, strict=True))
        of_winners, share_of_losers = partners(winners, losers, shares)
        of_losers, share_of_winners = partners(losers, winners, shares)
        won = self.link(self.beta * (winners - of_winners))
        lost = self.link(self.beta * (of_losers - losers))
        # Half of a comparison is counted at the winner's prompt and half at the loser's. Its whole gradient
        # arrives, though partners, which may be on another rank, are constants: each side has that of both.
        sides = ((won, share_of_losers), (lost, share_of_winners))
        gradients = [(1 + share / shares) * (loss - loss.detach()) for loss, share in sides]
        return (won.detach() + lost.detach() + gradients[0] + gradients[1]) / 2


@torch.no_grad()
def partners(values: Tensor, others: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
    """Return for each of ``values`` that of ``others`` which is the same number of places from the smallest.

    Places are those among the values, and among the others, of all ranks.

    Args:
        values: [N], of this rank.
        others: [N], of this rank.
        carried: further numbers of the others, [N] each.

    Returns:
        The partner of each value, and its further numbers, [N] each, without gradient.

    Examples:
        >>> partners(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0]))
        (tensor([30., 10., 20.]),)
    """
    all_values, start = gathered(values)
    everyones = [gathered(each)[0] for each in (others, *carried)]
    place = torch.empty_like(all_values, dtype=torch.int64)
    place[all_values.argsort(stable=True)] = everyones[0].argsort(stable=True)
    mine = place[start : start + len(values)]
    return tuple(each[mine] for each in everyones)


def _sides(values: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``values`` [B, R] of the winner and of the loser of each pair, [N]."""
    return values.unsqueeze(-1).expand(pairs.shape)[pairs], values.unsqueeze(-2).expand(pairs.shape)[pairs]
