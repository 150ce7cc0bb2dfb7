"""Mixtures of rewards: K Bradley-Terry models, weighted by the prompt (MiCRo) or by a few labelled examples.

Shen et al., "MiCRo: Mixture Modeling and Context-aware Routing for Personalized Preference Learning", arXiv
2505.24846. Weights are given as logarithms, so that a weight near 0 keeps its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def mixture_nll(log_weights: Tensor, margins: Tensor) -> Tensor:
    """Return −log Σ_k f_k(x) σ(d_k), the likelihood of a preference under the mixture.

    The probabilities are mixed, and not the rewards: σ(Σ_k f_k d_k) is another model. Computed as
    −logsumexp_k(log f_k + log σ(d_k)). With K = 1 it is Bradley-Terry; it is never above Σ_k f_k BT_k.

    Args:
        log_weights: log f_k(x), [..., K].
        margins: d_k = r_k(y_w) − r_k(y_l), [..., K]; the two broadcast.

    Examples:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> mixture_nll(half, torch.tensor([2.0, -2.0]))  # −log(½σ(2) + ½σ(−2)) = log 2
        tensor(0.6931)
    """
    return -(log_weights + logsigmoid(margins)).logsumexp(dim=-1)


def responsibilities(log_weights: Tensor, margins: Tensor) -> Tensor:
    """Return the posterior f_k σ(d_k) / Σ_i f_i σ(d_i) of each part given the preference, [..., K].

    The mixture's gradient with respect to d_k is this times Bradley-Terry's, and with respect to the router's
    logits f − this.

    Examples:
        >>> responsibilities(torch.tensor([0.5, 0.5]).log(), torch.tensor([2.0, -2.0]))
        tensor([0.8808, 0.1192])
    """
    return (log_weights + logsigmoid(margins)).softmax(dim=-1)


def negative_entropy(log_weights: Tensor) -> Tensor:
    """Return Σ_k f_k log f_k, which is at least −log K: MiCRo's penalty for a router that picks one part.

    Examples:
        >>> negative_entropy(torch.tensor([0.5, 0.5]).log())
        tensor(-0.6931)
    """
    weights = log_weights.exp()
    return (weights * torch.where(weights > 0, log_weights, 0.0)).sum(dim=-1)


def hedge(log_weights: Tensor, losses: Tensor, *, step: float) -> Tensor:
    """Return log w′ of w′_k ∝ w_k exp(−η Σ_n ℓ_nk): the multiplicative update of weights by losses (Hedge).

    MiCRo's second stage learns the weights of a context from a few labelled examples in this way. The paper's
    step was not found (reconstructed), so it has no default. With ℓ_k = −log σ(d_k) and η = 1 the update is
    Bayes' rule; equal losses leave the weights as they are.

    Args:
        log_weights: log w_k, [K], of weights that add up to 1.
        losses: ℓ_nk of N examples, [N, K].
        step: η > 0.

    Examples:
        >>> hedge(torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.1, 1.1]]), step=1.0).exp()
        tensor([0.7311, 0.2689])
    """
    return (log_weights - step * losses.sum(dim=0)).log_softmax(dim=-1)


def context_weights(log_weights: Tensor, margins: Tensor, *, step: float) -> Tensor:
    """Return log w, [K], of a context given N labelled pairs: MiCRo's second stage.

    The mean of the router's weights over the pairs, where a prompt counts once for each of its pairs, updated
    by ``hedge`` with the losses −log σ(d_k).
    ``mixture_logit`` with these weights judges further pairs of the context.

    Args:
        log_weights: log f_k of each pair's prompt, [N, K].
        margins: d_k of each pair, the winner's reward less the loser's, [N, K].
        step: η > 0, without a default: see ``hedge``.

    Examples:
        >>> prior, margins = torch.zeros(2, 2).log_softmax(dim=-1), torch.tensor([[2.0, -2.0], [2.0, -2.0]])
        >>> context_weights(prior, margins, step=1.0).exp()
        tensor([0.9820, 0.0180])
    """
    prior = (log_weights.logsumexp(dim=0)).log_softmax(dim=-1)
    return hedge(prior, -logsigmoid(margins), step=step)


def mixture_logit(log_weights: Tensor, margins: Tensor) -> Tensor:
    """Return logit P of P = Σ_k f_k σ(d_k): the margin of one Bradley-Terry model with the same probability.

    −log σ of it is ``mixture_nll``, and it changes its sign with the margins. Computed as the difference of
    the two sides' log-probabilities, which stays exact where P rounds to 1; weights need not add up to 1.

    Examples:
        >>> mixture_logit(torch.zeros(1), torch.tensor([2.0]))
        tensor(2.)
    """
    return mixture_nll(log_weights, -margins) - mixture_nll(log_weights, margins)


def mixture_probability(log_weights: Tensor, margins: Tensor) -> Tensor:
    """Return Σ_k f_k σ(d_k), the probability that the first response is preferred.

    P(i ≻ j) + P(j ≻ i) = 1. (The authors' evaluation scores single responses by Σ_k f_k log σ(r_k), which is
    not the probability that was trained.)
    """
    return (log_weights.exp() * torch.sigmoid(margins)).sum(dim=-1)
