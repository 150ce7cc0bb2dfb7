"""SPO's preference degrees: a head classifies how much of a response was removed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pl_prefopt.errors import ConfigError
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, ReferenceObjective
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.scores import LogRatio
from pl_prefopt.objectives.structures import MeanOfPairs
from pl_prefopt.objectives.terms import WeightedTerm
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.requests import LinearHead
from pl_prefopt.views import KeywordRemoval

PAGE = "methods/more_inputs.md"
_HEAD = "degree"


@dataclass(frozen=True)
class DegreeClassification(WeightedTerm):
    """−γ log p(k|y_k), the mean over a prompt's responses y and degrees k: a head classifies the degree.

    y_0 is a response as it is, y_k the same without the k-th share of its keyword phrases. The head reads the
    hidden state at the last token. A response counts where it is shorter, in tokens, than that of the degree
    below: otherwise nothing was removed, or all that was removed had been truncated.

    Args:
        weight: γ ≥ 0.
        removed: the shares of keyword phrases to remove, ascending, above 0 and at most 1; K of them make
            K + 1 degrees.

    Raises:
        ConfigError: if ``weight`` is negative, or ``removed`` is empty, out of range or not ascending.
    """

    name = "degree_loss"
    info = MetricInfo(
        name="degree_loss",
        help="Mean over prompts of γ times the cross-entropy of the degree, how much was removed.",
        unit="nats",
        better="lower",
    )
    removed: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = [0.0, *self.removed]
        if len(shares) < 2 or any(low >= high for low, high in itertools.pairwise(shares)):
            raise ConfigError(f"expected `removed` to be ascending shares above 0, got {list(self.removed)}.")
        self.views()  # refuses shares above 1

    def views(self) -> dict[str, KeywordRemoval]:
        """Return the view of each degree above 0."""
        return {f"degree_{k}": KeywordRemoval(share) for k, share in enumerate(self.removed, start=1)}

    @property
    def needs(self) -> Needs:
        """A view per degree, with gradient, and the head."""
        views = self.views()
        return Needs(
            views=views,
            trained_views=frozenset(views),
            heads={_HEAD: LinearHead(outputs=len(views) + 1)},
        )

    def __call__(self, compared: Comparisons) -> Tensor:
        count = compared.rewards.response.new_zeros(len(compared.pairs))
        total = count.clone()
        for losses, counts in self._losses(compared):
            total = total + torch.where(counts, losses, 0.0).sum(dim=-1)
            count = count + counts.sum(dim=-1)
        return self.weight * total / count.clamp(min=1)

    def _losses(self, compared: Comparisons) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each degree the loss of each response, [B, R], and whether it counts."""
        batch = compared.batch
        present = batch.present & compared.pairs.flatten(1).any(dim=-1, keepdim=True)
        length = batch.policy.length
        yield _cross_entropy(batch.outputs[_HEAD], 0), present
        for degree, name in enumerate(self.views(), start=1):
            view = batch.views[name]
            shorter = view.policy.length < length
            length = view.policy.length
            yield _cross_entropy(view.outputs[_HEAD], degree), present & view.present & shorter


def _cross_entropy(outputs: Tensor, degree: int) -> Tensor:
    targets = torch.full(outputs.shape[:-1], degree, device=outputs.device)
    return cross_entropy(outputs.movedim(-1, 1), targets, reduction="none")


class DegreeDPO(Compose, ReferenceObjective):
    """SPO with preference degrees: −log σ(βh) − γ E log p(k|y_k), y_k a response with fewer keywords.

    "Self-supervised Preference Optimization", arXiv 2409.17791, as this project reads it: second-hand sources
    say that key contents, found by RAKE, are removed from responses in growing amounts, that a classification
    of the degree is trained along with the alignment loss, L + γ L_degree, and that both responses take part.
    The number of degrees, the shares, γ and what the head reads were not found: the first three have no
    defaults, and the head is linear on the last token's hidden state. With γ = 0 it is DPO. A head that
    gives all degrees the same probability has a degree loss of γ log(K + 1), K the number of shares.

    Args:
        beta: β > 0, the strength of the KL penalty.
        degree_weight: γ ≥ 0.
        removed: the shares of keyword phrases to remove, ascending, such as [0.3, 0.6].
        pairing: which responses are compared.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        With a head that gives 0 for each of two degrees, log 2 is added to DPO's log 2:

        >>> import dataclasses
        >>> from pl_prefopt.objectives.examples import example, with_view
        >>> batch = with_view(example([-8.0, -8.0], [-8.0, -8.0]), "degree_1", [-5.0, -5.0])
        >>> outputs = {"degree": torch.zeros(1, 2, 2)}
        >>> view = dataclasses.replace(batch.views["degree_1"], outputs=outputs)
        >>> batch = dataclasses.replace(batch, outputs=outputs, views={"degree_1": view})
        >>> DegreeDPO(degree_weight=1.0, removed=[0.5])(batch).loss
        tensor([1.3863])
    """

    use_when = "Pairs, and the policy should distinguish complete responses from those with content removed."

    def __init__(
        self,
        *,
        beta: float = 0.1,
        degree_weight: float,
        removed: list[float],
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        terms = [DegreeClassification(degree_weight, removed)]
        super().__init__(score=LogRatio(beta), structure=MeanOfPairs(pairing), terms=terms)

    beta = property(lambda self: self.score.beta)
    degree_weight = property(lambda self: self.terms[0].weight)
    removed = property(lambda self: self.terms[0].removed)
