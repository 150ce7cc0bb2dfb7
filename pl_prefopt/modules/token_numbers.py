"""An objective's per-token inputs, from readouts of the policy and answers of the references."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt.references import ReferenceAnswers
from pl_prefopt.requests import TokenRequest
from pl_prefopt.scoring import Collisions, DivergingLogProbs, LogProbs, Readout
from pl_prefopt.types import TokenNumbers, TokenTree


def token_readouts(request: TokenRequest | None, answers: ReferenceAnswers) -> list[Readout]:
    """Return the readouts for the policy's positions that predict response tokens, log-probs first."""
    if request is None:
        return [LogProbs()]
    diverging = request.kl and answers.vocabularies
    log_probs = DivergingLogProbs(answers.vocabularies, request.kl) if diverging else LogProbs()
    return [log_probs, Collisions()] if request.collisions else [log_probs]


def token_numbers(
    values: Tensor,
    tree: TokenTree,
    request: TokenRequest,
    answers: ReferenceAnswers,
    collisions: Tensor | None = None,
) -> TokenNumbers:
    """Return the readouts' values as ``TokenNumbers``, with 0 at tokens that don't count.

    Args:
        values: [B, R, T, 1 + K · directions].
        tree: the plain view's tokens.
        request: the objective's request.
        answers: the references' answers.
        collisions: [B, R, T], of the readout ``Collisions``.
    """
    values = values.masked_fill(~tree.counted_mask.unsqueeze(-1), 0.0)
    if collisions is not None:
        collisions = collisions.masked_fill(~tree.counted_mask, 0.0)
    shape = (*values.shape[:3], len(answers.vocabularies), len(request.kl))
    divergences = values[..., 1:].reshape(shape).permute(3, 0, 1, 2, 4)
    none = values.new_zeros((0, *values.shape[:3]))
    return TokenNumbers(
        counted=tree.counted_mask,
        policy=values[..., 0],
        references=none if answers.tokens is None else answers.tokens,
        kl={direction: divergences[..., place] for place, direction in enumerate(request.kl)},
        collisions=collisions,
    )
