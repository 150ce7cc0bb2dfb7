"""An objective's per-token inputs, from readouts of the policy and answers of the references."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt.references import ReferenceAnswers
from pl_prefopt.requests import TokenRequest
from pl_prefopt.scoring import DivergingLogProbs, LogProbs, Readout
from pl_prefopt.types import TokenNumbers, TokenTree


def token_readout(request: TokenRequest | None, answers: ReferenceAnswers) -> Readout:
    """Return the readout for the policy's positions that predict response tokens."""
    if request is None or not request.kl or not answers.vocabularies:
        return LogProbs()
    return DivergingLogProbs(answers.vocabularies, request.kl)


def token_numbers(
    values: Tensor, tree: TokenTree, request: TokenRequest, answers: ReferenceAnswers
) -> TokenNumbers:
    """Return a readout's values as ``TokenNumbers``, with 0 at tokens that don't count.

    Args:
        values: [B, R, T, 1 + K · directions].
        tree: the plain view's tokens.
        request: the objective's request.
        answers: the references' answers.
    """
    values = values.masked_fill(~tree.counted_mask.unsqueeze(-1), 0.0)
    shape = (*values.shape[:3], len(answers.vocabularies), len(request.kl))
    divergences = values[..., 1:].reshape(shape).permute(3, 0, 1, 2, 4)
    none = values.new_zeros((0, *values.shape[:3]))
    return TokenNumbers(
        counted=tree.counted_mask,
        policy=values[..., 0],
        references=none if answers.tokens is None else answers.tokens,
        kl={direction: divergences[..., place] for place, direction in enumerate(request.kl)},
    )
