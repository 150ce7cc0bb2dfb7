"""Bradley-Terry with a contrastive term on the embeddings of responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from pl_prefopt.errors import ConfigError
from pl_prefopt.functional.reward_losses import contrastive
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.reward_models import BradleyTerryObjective
from pl_prefopt.objectives.terms import WeightedTerm
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.requests import HiddenState
from pl_prefopt.views import Repeated

PAGE = "methods/preference_models.md"
_STATE, _AGAIN = "state", "again"

Contrasted: TypeAlias = Literal["responses", "differences"]
"""What is embedded: each response of a pair, or the winner's state less the loser's."""


@dataclass(frozen=True)
class Contrastive(WeightedTerm):
    """−λ log softmax_j(cos(u_i, v_j)/τ)_i: two passes over a response with different dropout (SimCSE).

    u and v are the hidden states at the last token, or their differences over a pair. i and j run over all
    pairs' responses, or all pairs, in the batch of one device, so that a prompt's loss depends on the
    others in its batch: ``data.batch_size`` sets the number of negatives, and neither accumulated batches nor
    other devices add to it. Responses with the same text in two rows of a batch are each other's negatives.
    Evaluation has no dropout, so that its two passes are identical, and its value can't be compared with that
    of training. Reconstructed, see ``functional.contrastive``.

    Args:
        weight: λ ≥ 0.
        temperature: τ > 0.
        of: ``responses`` or ``differences``.

    Raises:
        ConfigError: if a setting is out of range.
    """

    name = "contrastive"
    info = MetricInfo(
        name="contrastive",
        help="Mean over prompts of the contrastive loss of two passes over a response, with its weight.",
        unit="nats",
        better="lower",
    )
    temperature: float
    of: Contrasted = "responses"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        if self.of not in get_args(Contrasted):
            raise ConfigError(f"of must be one of {', '.join(get_args(Contrasted))}, but is {self.of!r}.")

    @property
    def needs(self) -> Needs:
        """Hidden states of two passes, both with gradient."""
        return Needs(
            views={_AGAIN: Repeated()},
            trained_views=frozenset({_AGAIN}),
            heads={_STATE: HiddenState()},
            log_probs=False,
        )

    def __call__(self, compared: Comparisons) -> Tensor:
        batch, counted = compared.batch, compared.pairs
        first, second = batch.outputs[_STATE], batch.views[_AGAIN].outputs[_STATE]
        if self.of == "differences":
            first, second = (each.unsqueeze(2) - each.unsqueeze(1) for each in (first, second))
        else:
            counted = counted.any(dim=-1) | counted.any(dim=-2)
        losses = compared.margins.new_zeros(counted.shape)
        if counted.any():
            found = contrastive(first[counted], second[counted], temperature=self.temperature)
            losses = losses.masked_scatter(counted, found.to(losses))
        return self.weight * losses.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)


class ContrastiveBradleyTerry(BradleyTerryObjective):
    """Bradley-Terry and SimCSE: −log σ(r_w − r_l) − λ log softmax_j(cos(u_i, v_j)/τ)_i.

    Wang et al., "Secrets of RLHF II", arXiv 2401.06080: the contrastive term makes responses, or the
    differences between chosen and rejected ones, more distinct for the reward model. See ``Contrastive`` for
    the term. Reconstructed: λ and τ were not found and have no defaults. The paper's batches for such runs
    have 16 pairs. The policy needs dropout, such as ``policy.lora.lora_dropout``, and each row is computed
    twice. With λ = 0 it is Bradley-Terry.

    Args:
        contrastive_weight: λ ≥ 0.
        temperature: τ > 0.
        of: ``responses``, or ``differences`` between the two of a pair.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        With rewards 0 and orthogonal states at τ = ½: log 2 − log[e² / (e² + 1)].

        >>> import dataclasses, torch
        >>> from pl_prefopt.objectives.examples import rewarded, with_view
        >>> state = {"state": torch.eye(2).unsqueeze(0)}
        >>> batch = with_view(rewarded([0.0, 0.0]), "again", [0.0, 0.0])
        >>> view = dataclasses.replace(batch.views["again"], outputs=state)
        >>> batch = dataclasses.replace(batch, outputs={**batch.outputs, **state}, views={"again": view})
        >>> ContrastiveBradleyTerry(contrastive_weight=1.0, temperature=0.5)(batch).loss
        tensor([0.8201])
    """

    data = ("pairs", "lists")
    use_when = "A reward model should tell responses apart that are close, and its policy has dropout."

    def __init__(
        self,
        *,
        contrastive_weight: float,
        temperature: float,
        of: Contrasted = "responses",
        label_smoothing: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        terms = [Contrastive(contrastive_weight, temperature, of)]
        super().__init__(label_smoothing=label_smoothing, more_terms=terms, pairing=pairing)

    contrastive_weight = property(lambda self: self.terms[0].weight)
    temperature = property(lambda self: self.terms[0].temperature)
    of = property(lambda self: self.terms[0].of)
