"""Losses of reward models beyond one pair of responses to one prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize


def conditional_bradley_terry(satisfied: Tensor, violated: Tensor) -> Tensor:
    """Return −log σ(r(x_w, y) − r(x_l, y)): Rc-BT, one response under two prompts.

    "MAPL", arXiv 2505.12845: y satisfies the instructions of x_w and not those of x_l. The prompts differ,
    and so a term of the reward that depends on the prompt alone, such as log Z(x) in an implicit reward, does
    not cancel; one that depends on the response alone does.

    Args:
        satisfied: r(x_w, y).
        violated: r(x_l, y).

    Examples:
        >>> conditional_bradley_terry(torch.tensor([2.0]), torch.tensor([0.0]))
        tensor([0.1269])
    """
    return -logsigmoid(satisfied - violated)


def attribute_regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the known attributes of (r_a − t_a)², [...]; 0 where none is known.

    Args:
        predicted: r_a of A attributes, [..., A].
        target: t_a, [..., A], NaN where an attribute is missing: it then has neither loss nor gradient.

    Examples:
        >>> attribute_regression(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, torch.nan]]))
        tensor([4.])
    """
    known = ~target.isnan()
    squares = (torch.where(known, predicted, 0.0) - torch.where(known, target, 0.0)).square()
    return squares.sum(dim=-1) / known.sum(dim=-1).clamp(min=1)


def language_and_reward(token_nll: Tensor, counted: Tensor, margin: Tensor, *, weight: float = 0.5) -> Tensor:
    """Return the mean NLL of a pair's tokens − λ log σ(r_w − r_l): Themis' auxiliary language model loss.

    Li et al., "Tool-Augmented Reward Modeling", arXiv 2310.01045. The tokens are those that explain the
    reward (thought, action, rationale) of both responses; λ = 0.5 belongs to the preference, as in the
    authors' code.

    Args:
        token_nll: −log π_θ of each token of both responses, [B, T].
        counted: bool [B, T]; tokens such as a tool's output may be left out.
        margin: r_w − r_l, [B].
        weight: λ.

    Examples:
        >>> tokens, counted = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
        >>> language_and_reward(tokens, counted, torch.tensor([0.0]))  # 2 + ½ log 2
        tensor([2.3466])
    """
    language = torch.where(counted, token_nll, 0.0).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
    return language - weight * logsigmoid(margin)


def contrastive(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Return −log softmax_j(cos(u_i, v_j)/τ)_i: two views of a response against those of the others (SimCSE).

    Reconstructed. "Secrets of RLHF II", arXiv 2401.06080, adds such a term to a reward model's loss; its
    temperature and weight were not found, so they have no defaults. The views are two passes with different
    dropout, of a response's embedding or of the difference between chosen and rejected. Each row's loss
    depends on the whole batch: with accumulation or on several ranks the negatives are those of the local
    batch alone.

    Args:
        first: u, [N, D].
        second: v, [N, D].
        temperature: τ > 0.

    Examples:
        Orthogonal embeddings: −log[e² / (e² + 1)].

        >>> contrastive(torch.eye(2), torch.eye(2), temperature=0.5)
        tensor([0.1269, 0.1269])
    """
    similarity = normalize(first, dim=-1) @ normalize(second, dim=-1).transpose(-1, -2) / temperature
    return cross_entropy(similarity, torch.arange(len(first), device=first.device), reduction="none")
