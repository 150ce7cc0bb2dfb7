"""Preferences as a skew-symmetric form of embeddings: the general preference model (GPM).

A response has an embedding v of 2k numbers, which are k blocks of two. Preferences may be cyclic: with one
block three responses can beat each other in turn, which no scalar reward expresses.

Zhang et al., "Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment", arXiv
2410.02197.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize


def skew_score(first: Tensor, second: Tensor) -> Tensor:
    """Return s(i ≻ j) = ⟨R v_i, v_j⟩ = Σ_b (v_i[2b] v_j[2b+1] − v_i[2b+1] v_j[2b]).

    Definition 4.3 of arXiv 2410.02197, with R made of blocks [[0, −1], [1, 0]]. (Its Theorem 4.4 prints the
    opposite sign; this is that of the definition and of the authors' code.) s(j ≻ i) = −s(i ≻ j), and a
    response ties with itself. With v = [r, 1] it is r_i − r_j, the margin of Bradley-Terry.

    Args:
        first: v_i, [..., 2k].
        second: v_j, [..., 2k]; the two broadcast.

    Examples:
        >>> skew_score(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
        tensor(2.)
    """
    (first_even, first_odd), (second_even, second_odd) = _halves(first), _halves(second)
    return (first_even * second_odd - first_odd * second_even).sum(dim=-1)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[..., 0::2], values[..., 1::2]


def skew_scores(embeddings: Tensor) -> Tensor:
    """Return s(i ≻ j) of all pairs of responses, [..., R, R], from R embeddings, [..., R, 2k].

    Examples:
        Three responses at angles of 120 degrees beat each other in turn:

        >>> angles = torch.tensor([0.0, 1.0, 2.0]) * 2 * torch.pi / 3
        >>> scores = skew_scores(torch.stack([angles.cos(), angles.sin()], dim=-1))
        >>> [round(float(scores[i, (i + 1) % 3]), 3) for i in range(3)]
        [0.866, 0.866, 0.866]
    """
    even, odd = _halves(embeddings)
    products = even @ odd.transpose(-1, -2)
    return products - products.transpose(-1, -2)


def gate_blocks(embeddings: Tensor, gates: Tensor) -> Tensor:
    """Return D v: each block b of an embedding multiplied by √λ_b, so that s = Σ_b λ_b s_b.

    The paper's scale operator D(x) on both sides of the form: v_iᵀ D R D v_j with D = diag(√λ(x)).

    Args:
        embeddings: v, [..., 2k].
        gates: log λ_b(x), [..., k]; logarithms, so that the square root's slope is finite.

    Examples:
        >>> gate_blocks(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4.0, 1.0]).log())
        tensor([2., 4., 3., 4.])
    """
    return embeddings * (gates / 2).exp().repeat_interleave(2, dim=-1)


def unit_norm(embeddings: Tensor) -> Tensor:
    """Return v/‖v‖, 0 for v = 0."""
    return normalize(embeddings, dim=-1)


def gpm_logistic(score: Tensor, *, temperature: float, margin: float | Tensor = 0.0) -> Tensor:
    """Return −log σ((s − m)/τ), s the winner's score against the loser.

    Args:
        score: s.
        temperature: τ > 0.
        margin: m.

    Examples:
        >>> gpm_logistic(torch.tensor([0.2]), temperature=0.1)
        tensor([0.1269])
    """
    return -logsigmoid((score - margin) / temperature)


def gpm_regression(score: Tensor, *, temperature: float, target: float = 10.0) -> Tensor:
    """Return ½(s/τ − t)²: the regression form of the authors' code, with its target t = 10.

    With τ = 0.1 and unit norm the target is s = 1, the largest score there is.

    Args:
        score: s, the winner's score against the loser.
        temperature: τ > 0.
        target: t.

    Examples:
        >>> gpm_regression(torch.tensor([1.0, 0.0]), temperature=0.1)
        tensor([ 0., 50.])
    """
    return 0.5 * (score / temperature - target).square()


def mean_score(scores: Tensor, present: Tensor) -> Tensor:
    """Return ŝ_i = mean_j s(i ≻ j) over the responses j of a prompt, i itself (0) included; 0 where absent.

    The reward of a response among those to its prompt, as in GPO. For one number per response that doesn't
    depend on the others there would have to be no cycles.

    Args:
        scores: s(i ≻ j), [..., R, R].
        present: bool [..., R].
    """
    both = present.unsqueeze(-1) & present.unsqueeze(-2)
    return torch.where(both, scores, 0.0).sum(dim=-1) / present.sum(dim=-1, keepdim=True).clamp(min=1)
