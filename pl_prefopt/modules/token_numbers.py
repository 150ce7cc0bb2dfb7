"""An objective's per-token inputs, from readouts of the policy and answers of the references."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pl_prefopt.modules.line_steps import LineSteps
from pl_prefopt.references import ReferenceAnswers
from pl_prefopt.requests import TokenRequest
from pl_prefopt.scoring import Collisions, DivergingLogProbs, LogProbs, Readout, TokenStates
from pl_prefopt.types import TokenNumbers, TokenTree


def token_readouts(request: TokenRequest | None, answers: ReferenceAnswers) -> list[Readout]:
    """Return the readouts for the policy's positions that predict response tokens, log-probs first."""
    if request is None:
        return [LogProbs()]
    diverging = request.kl and answers.vocabularies
    log_probs = DivergingLogProbs(answers.vocabularies, request.kl) if diverging else LogProbs()
    further = [(request.collisions, Collisions()), (request.states, TokenStates())]
    return [log_probs, *(readout for asked, readout in further if asked)]


def token_numbers(
    values: Tensor,
    further: Sequence[Tensor],
    tree: TokenTree,
    request: TokenRequest,
    answers: ReferenceAnswers,
    lines: LineSteps | None = None,
) -> TokenNumbers:
    """Return the readouts' values as ``TokenNumbers``, with 0 at tokens that don't count.

    Args:
        values: [B, R, T, 1 + K · directions].
        further: what the further readouts of ``token_readouts`` gave, in their order.
        tree: the plain view's tokens.
        request: the objective's request.
        answers: the references' answers.
        lines: numbers the steps, if they are requested.
    """
    left_out = ~tree.counted_mask.unsqueeze(-1)
    values, rest = values.masked_fill(left_out, 0.0), list(further)
    collisions = rest.pop(0).masked_fill(left_out.squeeze(-1), 0.0) if request.collisions else None
    states = rest.pop(0).masked_fill(left_out, 0.0) if request.states else None
    shape = (*values.shape[:3], len(answers.vocabularies), len(request.kl))
    divergences = values[..., 1:].reshape(shape).permute(3, 0, 1, 2, 4)
    none = values.new_zeros((0, *values.shape[:3]))
    return TokenNumbers(
        counted=tree.counted_mask,
        policy=values[..., 0],
        references=none if answers.tokens is None else answers.tokens,
        kl={direction: divergences[..., place] for place, direction in enumerate(request.kl)},
        collisions=collisions,
        steps=None if lines is None else lines(tree),
        states=states,
    )
