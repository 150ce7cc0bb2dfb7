"""Tree TPO: rewards that weight the steps of a response, which are its lines."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.objectives.base import Needs
from pl_prefopt.objectives.checks import positive
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.pair_weights import SwapGain
from pl_prefopt.objectives.scores import Rewards, Score, Scored
from pl_prefopt.objectives.structures import SumOfPairs
from pl_prefopt.objectives.token_level import TokenLevelObjective
from pl_prefopt.objectives.token_scores import tokens_of
from pl_prefopt.requests import TokenRequest
from pl_prefopt.rows import Message, PreferenceRow, Value
from pl_prefopt.types import TokenNumbers

PAGE = "methods/token_level.md"


class StepWeights(ABC):
    """Gives each step of a response its weight, at least 0 and without gradient."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the weights are computed from."""

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:  # noqa: B027 - not all weights read the rows
        """Raise a ``ContractError`` or a ``DataError`` if they can't be read from the rows of a split."""

    @abstractmethod
    def __call__(self, scored: Scored, pairs: Tensor) -> Tensor:
        """Return w [B, R, T], that of step s at place s of the last dimension.

        Args:
            scored: log-probs, with numbers per token.
            pairs: bool [B, R, R], winner by row and loser by column.
        """


@dataclass(frozen=True)
class SimilarToBest(StepWeights):
    """w_s = 1 + cos(e_s, e*_s), e_s the mean hidden state of step s, e*_s that of the best response's step s.

    Liao et al. ("TPO"), arXiv 2410.12854, as reconstructed from the authors' code. Hidden states are the
    policy's last ones, without gradient (the code's have one), of the positions that predict the tokens of
    the step. Not found, and so this project's choice: a step that the best response doesn't have has the
    weight 1, and best responses that tie are averaged over.
    """

    @property
    def needs(self) -> Needs:
        """The steps and the policy's hidden states."""
        return Needs(tokens=TokenRequest(steps=True, states=True))

    def __call__(self, scored: Scored, pairs: Tensor) -> Tensor:
        tokens = tokens_of(scored)
        assert tokens.steps is not None, "asked for in `needs`"
        assert tokens.states is not None, "asked for in `needs`"
        states = tokens.states.detach()
        place = tokens.steps.clamp(min=0).unsqueeze(-1).expand_as(states)
        counted = tokens.counted.unsqueeze(-1)
        # The cosine of sums is that of means.
        sums = torch.zeros_like(states).scatter_add(2, place, torch.where(counted, states, 0.0))
        directions = torch.nn.functional.normalize(sums, dim=-1)
        cosines = torch.einsum("brsd,bqsd->brqs", directions, directions)
        best = pairs.any(dim=-1) & ~pairs.any(dim=-2)
        comparable = (best.unsqueeze(-1) & _present_steps(tokens)).unsqueeze(1)
        mean = torch.where(comparable, cosines, 0.0).sum(dim=2) / comparable.sum(dim=2).clamp(min=1)
        return (1 + mean).clamp(min=0)


@dataclass(frozen=True)
class GivenSteps(StepWeights):
    """A column of the rows as the weights: a list of numbers per response, one for each step.

    They are what a process reward model or a tree search says of the steps. Steps that truncation cut off
    take no part.

    Args:
        column: its name.
    """

    column: str = "step_rewards"

    @property
    def needs(self) -> Needs:
        """The steps and the column."""
        return Needs(columns=(self.column,), tokens=TokenRequest(steps=True))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse rows without one number of at least 0 per line of each response.

        Raises:
            DataError: naming the row.
        """
        for row in rows:
            where = f"{row.origin or 'a row'} ({split})"
            given = self._of(row, where)
            for number, (response, weights) in enumerate(zip(row.responses, given, strict=True), 1):
                if any(turn.more for turn in response):
                    raise DataError(
                        f"GivenSteps counts the lines of responses, but response {number} of {where} has "
                        "reasoning or tool calls, which the chat template writes: use SimilarToBest, or put "
                        "them into the text."
                    )
                lines = count_lines(response)
                if len(weights) != lines:
                    raise DataError(
                        f"expected one number per line of each response in the column '{self.column}', got "
                        f"{len(weights)} for the {lines} lines of response {number} of {where}: correct the "
                        "column; lines without visible text don't count."
                    )

    def _of(self, row: PreferenceRow, where: str) -> list[list[float]]:
        value = row.columns.get(self.column)
        weights = [_weights(text) for text in value] if isinstance(value, tuple) else []
        if len(weights) != len(row.responses) or None in weights:
            shown = repr(value)[:100]
            raise DataError(
                f"expected a list of lists in the column '{self.column}', for each response one finite "
                f"number of at least 0 per line, but {where} has {shown}: correct the column."
            )
        return [each for each in weights if each is not None]

    def __call__(self, scored: Scored, pairs: Tensor) -> Tensor:
        steps = tokens_of(scored).steps
        assert steps is not None, "asked for in `needs`"
        column = scored.columns[self.column]
        # NaN, and with it a non-finite loss, where the tokens have a line that the text didn't.
        weights = torch.full(steps.shape, torch.nan, dtype=scored.policy.sum.dtype)
        for b, texts in enumerate(column):
            for r, text in enumerate(texts if isinstance(texts, tuple) else (texts,)):
                found = [] if text is None else _weights(text)  # absent responses have no text
                if found is None:
                    raise ContractError(
                        f"expected a list of numbers per response in the column '{self.column}', got "
                        f"{text!r:.100}: correct the column."
                    )
                found = found[: steps.shape[-1]]
                weights[b, r, : len(found)] = torch.tensor(found)
        return weights.to(steps.device)


def _weights(text: Value) -> list[float] | None:
    """Return the weights of a response, ``None`` if the text isn't a JSON list of finite numbers from 0."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if not isinstance(found, list) or not all(map(_is_weight, found)):
        return None
    return [float(each) for each in found]


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def count_lines(response: Sequence[Message]) -> int:
    """Return the number of lines with visible text in the assistant's turns; 1 if there are none.

    The end token of a response without visible text is a step, too.
    """
    texts = (turn.content for turn in response if turn.role == "assistant")
    return max(1, sum(bool(line.strip()) for text in texts for line in text.split("\n")))


def _present_steps(tokens: TokenNumbers) -> Tensor:
    """Return bool [B, R, T], true at place s where the response has a step s."""
    assert tokens.steps is not None, "asked for in `needs`"
    counts = torch.zeros_like(tokens.steps).scatter_add(
        2, tokens.steps.clamp(min=0), (tokens.steps >= 0).to(tokens.steps.dtype)
    )
    return counts > 0


@dataclass(frozen=True)
class StepLogRatio(Score):
    """β Σ_s w_s a_s, a_s the log-ratio of step s, a line of the response; normalised, divided by Σ_s w_s.

    Liao et al. ("TPO"), arXiv 2410.12854, as reconstructed from the authors' code, which normalises. With
    weights of 1 and without normalisation it is ``LogRatio``.

    Args:
        beta: β > 0, the strength of the KL penalty.
        normalize: whether the reward is the weighted mean over steps instead of their sum.
        steps: the weights of the steps.

    Raises:
        ConfigError: if ``beta`` is not above 0.
    """

    beta: float
    normalize: bool
    steps: StepWeights

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    @property
    def needs(self) -> Needs:
        """One reference that reads the policy's tokens, and what the weights need."""
        own = Needs(min_references=1, max_references=1, tokens=TokenRequest(steps=True))
        return Needs.of_all(own, self.steps.needs)

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """See the weights' ``check_rows``."""
        self.steps.check_rows(rows, split)

    def __call__(self, scored: Scored, present: Tensor, pairs: Tensor) -> Rewards:
        """Return the rewards."""
        reward = torch.where(present, self.token_reward(scored, pairs).sum(dim=-1), 0.0)
        return Rewards(chosen=reward.unsqueeze(-1), rejected=reward.unsqueeze(-2), response=reward)

    @property
    def token_rewarded(self) -> bool:
        """True."""
        return True

    def token_reward(self, scored: Scored, pairs: Tensor) -> Tensor:
        """Return βw_s a_t of a token t in step s, divided by Σ_s w_s where that is asked for."""
        tokens = tokens_of(scored)
        assert tokens.steps is not None, "asked for in `needs`"
        weights = self.steps(scored, pairs).detach().to(tokens.policy.dtype)
        if self.normalize:
            there = _present_steps(tokens)
            total = torch.where(there, weights, 0.0).sum(dim=-1, keepdim=True)
            weights = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        weights = torch.where(tokens.counted, weights.gather(2, tokens.steps.clamp(min=0)), 0.0)
        return self.beta * weights * (tokens.policy - tokens.references[0])


SIMILAR_TO_BEST = SimilarToBest()
"""The published weights."""


class TreeTPO(Compose, TokenLevelObjective):
    """Tree preference optimisation: −Σ_{v_i > v_j} λ_ij log σ(r_i − r_j), r = β Σ_s w_s a_s over steps s.

    v are the scores, λ is ``LambdaLoss``'s, a_s is the log-ratio of a step, and a step is a line with visible
    text. Liao et al., "TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference Trees",
    arXiv 2410.12854. Reconstructed: the paper's details of step rewards weren't available, and the authors'
    code can't be used as it is (it has no λ, no shift by one token, and the sign of the outer loss is
    wrong). From it come β = 0.5, the weights and their normalisation; that steps are lines is this project's
    choice. With weights of 1 and without normalisation it is ``LambdaLoss``.

    Args:
        beta: β > 0, the strength of the KL penalty; 0.5 in the authors' code.
        normalize: whether r is divided by Σ_s w_s, as in the authors' code; then long solutions have no
            larger rewards than short ones. The paper's choice wasn't found, so there is no default.
        steps: the weights w of steps.

    Raises:
        ConfigError: if ``beta`` is not above 0.

    Examples:
        Two responses of two one-token steps with log-ratios (1, 2) and (0, 0). The second step of the worse
        one is at right angles to the best one's, so that its weights are 2 and 1, and the best one's 2 and 2:
        r = 0.5 · (1 + 2) / 2 − 0, and λ = 1/log 2 − 1/log 3 for the scores 1 and 0.

        >>> from pl_prefopt.types import ResponseLogProbs, ScoredBatch
        >>> tokens = TokenNumbers(
        ...     counted=torch.ones(1, 2, 2, dtype=torch.bool),
        ...     policy=torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]]),
        ...     references=torch.tensor([[[[-2.0, -3.0], [-2.0, -2.0]]]]),
        ...     steps=torch.tensor([[[0, 1], [0, 1]]]),
        ...     states=torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]]),
        ... )
        >>> batch = ScoredBatch(
        ...     policy=ResponseLogProbs(sum=tokens.policy.sum(-1), length=torch.tensor([[2, 2]])),
        ...     references=tokens.references.sum(-1),
        ...     scores=torch.tensor([[1.0, 0.0]]),
        ...     present=torch.tensor([[True, True]]),
        ...     graded=torch.tensor([True]),
        ...     tokens=tokens,
        ... )
        >>> TreeTPO(normalize=True)(batch).loss, 0.53245 * torch.tensor(-0.75).exp().log1p()
        (tensor([0.2060]), tensor(0.2060))
    """

    data = ("lists", "pairs")
    use_when = "Responses are solutions in steps, line by line, with scores from a tree search or a verifier."

    def __init__(self, *, beta: float = 0.5, normalize: bool, steps: StepWeights = SIMILAR_TO_BEST) -> None:
        super().__init__(
            score=StepLogRatio(beta, normalize, steps), structure=SumOfPairs(), weights=[SwapGain()]
        )

    beta = property(lambda self: self.score.beta)
    normalize = property(lambda self: self.score.normalize)
    steps = property(lambda self: self.score.steps)
