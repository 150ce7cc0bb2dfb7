"""Preference models beyond one reward per response: embeddings, mixtures, attributes, and doubtful labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.functional.reward_losses import attribute_regression, conditional_bradley_terry
from pl_prefopt.functional.router_mixtures import negative_entropy
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.objectives.base import Needs, RewardObjective
from pl_prefopt.objectives.checks import below_half, non_negative, positive
from pl_prefopt.objectives.comparisons import Comparisons
from pl_prefopt.objectives.compose import Compose
from pl_prefopt.objectives.labels import SoftLabel
from pl_prefopt.objectives.links import HingeLink, Link, Logistic
from pl_prefopt.objectives.offsets import ColumnMargin, Margin
from pl_prefopt.objectives.pair_columns import as_numbers, check_pair_column, column_of_pairs, or_else
from pl_prefopt.objectives.pair_rewards import EmbeddingScore, MixtureScore
from pl_prefopt.objectives.pair_weights import ConstantWeight
from pl_prefopt.objectives.reward_models import BradleyTerryObjective
from pl_prefopt.objectives.scores import HeadReward
from pl_prefopt.objectives.structures import MeanOfPairs, mean_over
from pl_prefopt.objectives.terms import WeightedTerm
from pl_prefopt.pairing import ALL_PAIRS, Pairing
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Outcome, ScoredBatch
from pl_prefopt.views import ContrastPrompt

PAGE = "methods/preference_models.md"
_OTHER = "contrast"


@dataclass(frozen=True)
class SquaredTarget(Link):
    """½(z − t)².

    Args:
        target: t, the margin to reach.
    """

    target: float = 10.0

    def __call__(self, margin: Tensor) -> Tensor:
        return 0.5 * (margin - self.target).square()


class GPM(Compose, RewardObjective):
    """General preference model: −log σ((s − m)/τ), s(i ≻ j) = ⟨R v_i, v_j⟩ a form of two embeddings.

    The form is skew-symmetric. Zhang et al., arXiv 2410.02197, with the sign of its definition 4.3 and of the
    authors' code. Cyclic preferences, which no reward per response expresses, are learned; with embeddings
    [r, 1] and τ = 1 it is Bradley-Terry. The code takes τ = 0.1, and 1 for a single block. It is trained on
    ``pl_prefopt.heads.EmbeddingHead``. A response's reward is the mean of s/τ against the responses to its
    prompt, so that it depends on them.

    Args:
        temperature: τ > 0.
        margin: m ≥ 0, in units of s.
        label_smoothing: ε in [0, 0.5), the share of labels believed to be flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if a setting is out of range.

    Examples:
        Embeddings [2, 1] and [0, 1]:

        >>> from pl_prefopt.objectives.examples import embedded
        >>> GPM(temperature=1.0)(embedded([[2.0, 1.0], [0.0, 1.0]])).loss  # log(1 + exp(-2))
        tensor([0.1269])
    """

    data = ("pairs", "lists")
    use_when = "Preferences may be cyclic, or depend on which response is compared with which."

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        self_margin = non_negative("margin", margin)
        super().__init__(
            score=EmbeddingScore(temperature),
            structure=MeanOfPairs(pairing),
            link=Logistic(label_smoothing),
            offsets=[Margin(self_margin / positive("temperature", temperature))] if self_margin else [],
        )
        self.margin = self_margin

    temperature = property(lambda self: self.score.temperature)
    label_smoothing = property(lambda self: self.link.label_smoothing)


class GPMRegression(Compose, RewardObjective):
    """General preference model by regression: ½(s/τ − t)², s(i ≻ j) a skew-symmetric form of embeddings.

    The alternative loss in the code of Zhang et al., arXiv 2410.02197, with τ = 0.1 and t = 10: with unit
    norm the target is the largest score there is. See ``GPM``.

    Args:
        temperature: τ > 0.
        target: t.
        pairing: which responses to compare.

    Raises:
        ConfigError: if ``temperature`` is not above 0.

    Examples:
        >>> from pl_prefopt.objectives.examples import embedded
        >>> GPMRegression()(embedded([[0.5, 1.0], [0.0, 1.0]])).loss  # ½(5 − 10)²
        tensor([12.5000])
    """

    data = ("pairs", "lists")
    use_when = "As GPM, with a loss that does not saturate on either side."

    def __init__(
        self, *, temperature: float = 0.1, target: float = 10.0, pairing: Pairing = ALL_PAIRS
    ) -> None:
        super().__init__(
            score=EmbeddingScore(temperature), structure=MeanOfPairs(pairing), link=SquaredTarget(target)
        )

    temperature = property(lambda self: self.score.temperature)
    target = property(lambda self: self.link.target)


@dataclass(frozen=True)
class RouterEntropy(WeightedTerm):
    """λ Σ_k f_k(x) log f_k(x): a penalty for a router that picks one part, at least −λ log K.

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "router_entropy"
    info = MetricInfo(
        name="router_entropy",
        help="Mean over prompts of the router's negative entropy, with its weight.",
        unit="nats",
        better="lower",
    )

    @property
    def needs(self) -> Needs:
        """The outputs of the head alone."""
        return Needs(reward_outputs=0, reward_kind="mixture", log_probs=False)

    def __call__(self, compared: Comparisons) -> Tensor:
        log_weights = compared.batch.outputs[REWARD].chunk(2, dim=-1)[1].log_softmax(dim=-1)
        return self.weight * mean_over(compared.pairs, negative_entropy(log_weights).unsqueeze(-1))


class RewardMixture(Compose, RewardObjective):
    """Mixture of rewards: −log Σ_k f_k(x) σ(r_k(y_w) − r_k(y_l)) + λ Σ_k f_k(x) log f_k(x).

    The first stage of MiCRo (Shen et al., arXiv 2505.24846), on ``pl_prefopt.heads.MixtureHead``. With K = 1
    and λ = 0 it is Bradley-Terry. The published run has K = 10, a learning rate of 2e-3, a frozen model, and
    λ = 0.5; the script's default for λ is 0. On ``pl_prefopt.heads.GroupHead``, with λ = 0, it is the M-step
    of MaxMin-RLHF (arXiv 2402.08925). A response's reward is the mean of logit P(y ≻ y′) over the responses
    y′ to its prompt.

    Args:
        router_entropy: λ ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if ``router_entropy`` is negative.

    Examples:
        Two parts with equal weights and the margins 2 and −2: −log(½σ(2) + ½σ(−2)).

        >>> from pl_prefopt.objectives.examples import embedded
        >>> batch = embedded([[2.0, 0.0, -0.6931, -0.6931], [0.0, 2.0, -0.6931, -0.6931]])
        >>> RewardMixture(router_entropy=0.0)(batch).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "Annotators disagree by kind, and the prompt says something about which kind judges."

    def __init__(self, *, router_entropy: float = 0.5, pairing: Pairing = ALL_PAIRS) -> None:
        terms = [RouterEntropy(router_entropy)] if router_entropy else []
        super().__init__(score=MixtureScore(), structure=MeanOfPairs(pairing), terms=terms)
        self.router_entropy = RouterEntropy(router_entropy).weight


class RewardHinge(Compose, RewardObjective):
    """Hinge loss of rewards: max(0, δ − (r_w − r_l)).

    PAL's other loss, with δ = 1 (Chen et al., arXiv 2406.08469), on ``pl_prefopt.heads.IdealPointHead`` or
    ``DirectionHead``; its cross-entropy is ``BradleyTerry``.

    Args:
        target: δ ≥ 0, the margin beyond which there is no gradient.
        pairing: which responses to compare.

    Raises:
        ConfigError: if ``target`` is negative.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> RewardHinge()(rewarded([0.5, 0.0])).loss
        tensor([0.5000])
    """

    data = ("pairs", "lists")
    use_when = "Pairs that are clearly right should stop changing the reward."

    def __init__(self, *, target: float = 1.0, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(score=HeadReward(), structure=MeanOfPairs(pairing), link=HingeLink(target))

    target = property(lambda self: self.link.target)


@dataclass(frozen=True)
class DoubtLabel(SoftLabel):
    """q from the strength û of a pair: 0 below a threshold (flipped), 1 − α where û is still < 0, else 1.

    Args:
        column: a column with û per row, or with a reward per response, whose difference is û. q is 1 in rows
            without a number.
        flip_below: the threshold; ``None`` flips nothing.
        label_smoothing: α in [0, 0.5).

    Raises:
        ConfigError: if ``label_smoothing`` is out of range.
    """

    column: str
    flip_below: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        below_half("label_smoothing", self.label_smoothing)

    @property
    def needs(self) -> Needs:
        """The column."""
        return Needs(columns=(self.column,))

    def check_rows(self, rows: Sequence[PreferenceRow], split: str = "train") -> None:
        """Refuse a column without any number."""
        check_pair_column(rows, self.column, split)

    def __call__(self, compared: Comparisons) -> Tensor:
        strength = or_else(column_of_pairs(compared, self.column), 0.0)
        threshold = -math.inf if self.flip_below is None else self.flip_below
        smoothed = torch.where(strength < 0, 1 - self.label_smoothing, 1.0).to(strength)
        return torch.where(strength < threshold, 0.0, smoothed)


class StrengthBradleyTerry(Compose, RewardObjective):
    """Bradley-Terry with strengths û: −log σ(d − û), flipped where û is low, smoothed where û < 0.

    Wang et al., "Secrets of RLHF II", arXiv 2401.06080: û is the mean of ten reward models' margins, as
    ``pl_prefopt.functional.preference_strength`` computes it. The loss is q φ(d − û) + (1 − q) φ(û − d) with
    φ = −log σ and q of ``DoubtLabel``: a flipped pair's margin turns over with it. The paper flips the 20
    % of HH with the lowest û; α was not found, and is 0 by default.

    Args:
        column: a column with û per row, or with a reward per response, whose difference is û.
        adaptive_margin: whether û is a margin; ``False`` for flips and smoothing alone.
        flip_below: pairs with û below this are flipped; ``None`` for none.
        label_smoothing: α in [0, 0.5), for pairs with û < 0 that are not flipped.
        pairing: which responses to compare.

    Raises:
        ConfigError: if ``label_smoothing`` is out of range.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> batch = rewarded([2.0, 0.0], columns={"strength": torch.tensor([2.0])})
        >>> StrengthBradleyTerry()(batch).loss
        tensor([0.6931])
    """

    data = ("pairs", "lists")
    use_when = "Reward models have measured how strong each preference is, and some labels are wrong."

    def __init__(
        self,
        *,
        column: str = "strength",
        adaptive_margin: bool = True,
        flip_below: float | None = None,
        label_smoothing: float = 0.0,
        pairing: Pairing = ALL_PAIRS,
    ) -> None:
        super().__init__(
            score=HeadReward(),
            structure=MeanOfPairs(pairing),
            offsets=[ColumnMargin(column)] if adaptive_margin else [],
            label=DoubtLabel(column, flip_below, label_smoothing),
        )
        self.adaptive_margin = adaptive_margin

    column = property(lambda self: self.label.column)
    flip_below = property(lambda self: self.label.flip_below)
    label_smoothing = property(lambda self: self.label.label_smoothing)


@dataclass(frozen=True)
class PairLikelihood(WeightedTerm):
    """−λ [log π_θ(y_w|x) + log π_θ(y_l|x)] / (|y_w| + |y_l|), the mean over pairs: the NLL per token of both.

    Args:
        weight: λ ≥ 0.

    Raises:
        ConfigError: if ``weight`` is negative.
    """

    name = "pair_nll"
    info = MetricInfo(
        name="pair_nll",
        help="Mean over prompts of the NLL per token of both responses of a pair, with its weight.",
        unit="nats",
        better="lower",
    )
    weight: float = 1.0

    def __call__(self, compared: Comparisons) -> Tensor:
        policy = compared.batch.policy
        sums = policy.sum.unsqueeze(-1) + policy.sum.unsqueeze(-2)
        lengths = policy.length.unsqueeze(-1) + policy.length.unsqueeze(-2)
        return -self.weight * mean_over(compared.pairs, sums / lengths.clamp(min=1))


class Themis(BradleyTerryObjective):
    """Bradley-Terry and language modelling: −λ log σ(r_w − r_l) + NLL per token of both responses.

    Li et al., "Tool-Augmented Reward Modeling", arXiv 2310.01045, with λ = 0.5 as in the authors' code.
    Responses contain the reasons for their reward (thoughts, actions, rationale), which the model learns to
    write; turns of a user inside a response, such as a tool's output, don't count. Published settings: LoRA
    with r = 8, a learning rate of 3e-4, batches of 128.

    Args:
        reward_weight: λ ≥ 0.
        pairing: which responses to compare.

    Raises:
        ConfigError: if ``reward_weight`` is negative.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> batch = rewarded([0.0, 0.0], log_probs=[-4.0, -12.0])  # of 4 tokens each: 2 + ½ log 2
        >>> Themis()(batch).loss
        tensor([2.3466])
    """

    data = ("pairs", "lists")
    use_when = "Responses explain their rewards, and the model should learn to explain as well as to judge."

    def __init__(self, *, reward_weight: float = 0.5, pairing: Pairing = ALL_PAIRS) -> None:
        super().__init__(
            weights=[ConstantWeight(reward_weight)], more_terms=[PairLikelihood()], pairing=pairing
        )

    reward_weight = property(lambda self: self.weights[0].value)


class AttributeRegression(RewardObjective):
    """Regression on several attributes: the mean of (r_a − t_a)² over the known attributes of each response.

    As HelpSteer2's regression models (Wang et al., arXiv 2410.01257), with ratings of five attributes from 0
    to 4; on ``pl_prefopt.heads.AttributeHead`` with the same attributes. A missing rating has neither loss
    nor gradient. A prompt's loss is the mean over its responses with a rating.

    Args:
        attributes: columns with a number per response, in the order of the head's outputs.
        reward: the weight of each attribute in the reward of a response, Σ_a w_a r_a; by name, 0 where not
            given.

    Raises:
        ConfigError: if there are no attributes, or ``reward`` names another.

    Examples:
        >>> from pl_prefopt.objectives.examples import embedded
        >>> columns = {"helpful": torch.tensor([[3.0, 0.0]]), "brief": torch.tensor([[torch.nan, 1.0]])}
        >>> batch = embedded([[1.0, 9.0], [0.0, 2.0]], columns=columns)
        >>> AttributeRegression(attributes=["helpful", "brief"], reward={"helpful": 1.0})(batch).loss
        tensor([2.2500])
    """

    data = ("scores", "lists", "unpaired")
    use_when = "Responses are rated on several scales, such as helpfulness and verbosity."

    def __init__(self, *, attributes: list[str], reward: dict[str, float]) -> None:
        super().__init__()
        if not attributes or len(set(attributes)) < len(attributes):
            raise ConfigError(f"attributes must name at least one column, each once, but is {attributes}.")
        unknown = sorted(reward.keys() - set(attributes))
        if unknown or not reward:
            raise ConfigError(
                f"expected `reward` to give weights to some of {', '.join(attributes)}, got "
                f"{', '.join(unknown) or 'none'}."
            )
        self.attributes, self.reward = list(attributes), dict(reward)

    @property
    def needs(self) -> Needs:
        """A head with one output per attribute, and their columns."""
        return Needs(
            max_references=0,
            reward_outputs=len(self.attributes),
            log_probs=False,
            columns=tuple(self.attributes),
        )

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse an attribute without any rating, or with one per row instead of one per response."""
        self._check_attributes(rows, "train")

    def check_evaluation_rows(self, rows: Sequence[PreferenceRow], split: str) -> None:
        """Refuse an attribute with one rating per row, where a loss is computed."""
        if split != "predict":
            self._check_attributes(rows, split)

    def _check_attributes(self, rows: Sequence[PreferenceRow], split: str) -> None:
        for name in self.attributes:
            values = [row.columns.get(name) for row in rows]
            if any(value is not None and not isinstance(value, tuple) for value in values):
                raise ContractError(
                    f"expected one number per response in the column '{name}', got one per row in the "
                    f"{split} rows: give a list with one number per response."
                )
            check_pair_column(rows, name, split)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses with a rating."""
        outputs = torch.where(batch.present.unsqueeze(-1), batch.outputs[REWARD], 0.0)
        target = torch.stack([as_numbers(batch, name, outputs) for name in self.attributes], dim=-1)
        target = torch.where(batch.present.unsqueeze(-1), target, torch.nan)
        rated = ~target.isnan().all(dim=-1)
        losses = attribute_regression(outputs, target).sum(dim=-1) / rated.sum(dim=-1).clamp(min=1)
        weights = outputs.new_tensor([self.reward.get(name, 0.0) for name in self.attributes])
        return Outcome(
            loss=losses, counted=rated.any(dim=-1), reward=(outputs.detach() * weights).sum(dim=-1)
        )


class ConditionalBradleyTerry(RewardObjective):
    """Rc-BT: −log σ(r(x, y) − r(x′, y)), one response under the row's prompt and under another one.

    "MAPL", arXiv 2505.12845: y satisfies the instructions of its own prompt x, and not all of those of x′,
    which is the row's ``prompt_rejected``. A prompt's loss is the mean over its responses; scores aren't
    read. Rewards that depend on the response alone cancel, those that depend on the prompt alone don't.
    Together with ``BradleyTerry`` it is a ``Sum``, whose weights are the paper's λ; the published learning
    rate is 1e-5, with batches of 64.

    Examples:
        >>> from pl_prefopt.objectives.examples import rewarded
        >>> from pl_prefopt.types import ViewLogProbs
        >>> import dataclasses
        >>> batch, other = rewarded([2.0], scores=[1.0]), rewarded([0.0], scores=[1.0])
        >>> view = ViewLogProbs(
        ...     policy=other.policy, references=other.references, present=other.present, outputs=other.outputs
        ... )
        >>> ConditionalBradleyTerry()(dataclasses.replace(batch, views={"contrast": view})).loss
        tensor([0.1269])
    """

    data = ("unpaired", "pairs", "lists")
    use_when = "A response is right for one prompt and wrong for a similar one with other instructions."

    def __init__(self) -> None:
        super().__init__()

    @property
    def needs(self) -> Needs:
        """One reward per response, and the other prompt."""
        view = ContrastPrompt()
        return Needs(
            max_references=0,
            reward_outputs=1,
            log_probs=False,
            columns=(view.column,),
            views={_OTHER: view},
            trained_views=frozenset({_OTHER}),
        )

    def check_training_rows(self, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows without another prompt; scores aren't needed."""
        for index in range(len(rows)):
            ContrastPrompt()(rows, index)

    def forward(self, batch: ScoredBatch) -> Outcome:
        """Average each prompt's losses over its responses."""
        there = batch.present & batch.views[_OTHER].present
        own, other = (
            torch.where(there, outputs[REWARD].squeeze(-1), 0.0)
            for outputs in (batch.outputs, batch.views[_OTHER].outputs)
        )
        losses = torch.where(there, conditional_bradley_terry(own, other), 0.0)
        loss = losses.sum(dim=-1) / there.sum(dim=-1).clamp(min=1)
        reward = torch.where(batch.present, batch.outputs[REWARD].squeeze(-1), 0.0).detach()
        return Outcome(loss=loss, counted=there.any(dim=-1), reward=reward)
