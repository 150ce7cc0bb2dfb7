"""Judges that read log-probs: implicit rewards, Dr. SoW, follow-ups, the policy's own quality."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pl_prefopt.data.renderer import TemplateName
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Verdict
from pl_prefopt.judges.models import LanguageModel, LogProb, hashed, with_context, with_turns
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.scoring import LogProbs, PrefixCache, Scorer
from pl_prefopt.types import ResponseLogProbs, TokenTree
from pl_prefopt.views import QUALITY_TEXT, QualityPrompt

PAGE = "judges.md"


class _LikelihoodJudge(Judge):
    """What the judges have in common that score with one language model or two."""

    gives: ClassVar[Gives] = "scores"

    def __init__(
        self, models: Sequence[LanguageModel], batch_size: int, settings: tuple[object, ...]
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        self._models, self.batch_size, self._settings = tuple(models), batch_size, settings

    def fingerprint(self) -> str:
        """Return a hash of the models' weights, tokenisers and templates, and of the settings."""
        return hashed(type(self).__name__, [model.fingerprint for model in self._models], self._settings)

    def prepare(self) -> None:
        """Load the models."""
        for model in self._models:
            _ = model.renderer  # a wrong template is told before weights are read
        for model in self._models:
            model.load()

    def close(self) -> None:
        """Free the models."""
        for model in self._models:
            model.free()


class ImplicitReward(_LikelihoodJudge):
    """r(x, y) = β[log π(y|x) − log π_ref(y|x)], the implicit reward of a policy and its reference.

    Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290. Without a reference it is
    β log π(y|x). A row's context comes before its query, for both models.

    Args:
        policy: the policy.
        reference: the reference; ``null`` leaves it out.
        beta: β, which only scales the rewards; 1 gives the log-ratio.
        average: take averages per token in place of sums.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the models' device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if ``beta`` isn't above 0 or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        policy: PolicySpec,
        reference: PolicySpec | None,
        beta: float = 1.0,
        average: bool = False,
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        if not beta > 0:
            raise ConfigError(f"expected `beta` to be above 0, got {beta}.")
        specs = [policy] if reference is None else [policy, reference]
        models = [
            LanguageModel(s, template=template, arguments=template_arguments, device=device) for s in specs
        ]
        super().__init__(models, batch_size, (beta, average))
        self._beta, self._average = beta, average

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        start = time.monotonic()
        rows = [self._shown(row) for row in batch]
        scored = [model.log_probs(rows) for model in self._models]
        return _verdicts(scored, start, scale=self._beta, average=self._average)

    def _shown(self, row: JudgedRow) -> PreferenceRow:
        return with_context(row)


class QualityScore(ImplicitReward):
    """r(x, y) = β[log π(y|p ⊕ x) − log π_ref(y|p ⊕ x)], where p asks for the best response.

    The policy's own judgement of quality, Δ of Yu et al., "Direct Alignment of Language Models via
    Quality-Aware Self-Refinement", arXiv 2405.21040, eq. 12: the difference of two responses' scores is Δ.

    Args:
        policy: the policy.
        reference: the reference; ``null`` leaves it out.
        text: p, the paper's by default.
        beta: β, which only scales the scores; 0.1 in the paper.
        average: take averages per token in place of sums.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the models' device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if ``beta`` isn't above 0 or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        policy: PolicySpec,
        reference: PolicySpec | None,
        text: str = QUALITY_TEXT,
        beta: float = 1.0,
        average: bool = False,
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        super().__init__(policy, reference, beta, average, template, template_arguments, device, batch_size)
        self._view = QualityPrompt(text)
        self._settings = (*self._settings, self._view.fingerprint)

    def _shown(self, row: JudgedRow) -> PreferenceRow:
        return self._view([with_context(row)], 0)


class LogProbNorm(_LikelihoodJudge):
    """r(x, y) = −‖(log π(y_t | x, y_<t))_t‖₂, RewardBench's default for policies without a reference.

    Lambert et al., "RewardBench", arXiv 2403.13787, ``ref_free_norm="norm"`` of its code; ``ImplicitReward``
    without a reference has its ``sum`` and ``avg``.

    Args:
        policy: the policy.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the model's device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
    """

    def __init__(
        self,
        policy: PolicySpec,
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        model = LanguageModel(
            policy,
            template=template,
            arguments=template_arguments,
            device=device,
            scorer=_NormScorer,
        )
        super().__init__([model], batch_size, ())

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        start = time.monotonic()
        (model,) = self._models
        scored = [model.log_probs([with_context(row) for row in batch])]
        return _verdicts(scored, start, scale=1.0, average=False)


class _NormScorer(Scorer):
    """Gives each response minus the Euclidean norm of its tokens' log-probs, in place of their sum."""

    def __call__(
        self, model: nn.Module, tree: TokenTree, prefix_cache: PrefixCache | None = None
    ) -> ResponseLogProbs:
        (log_probs,) = self.read(model, tree, [LogProbs()], prefix_cache)
        norm = log_probs.masked_fill(~tree.counted_mask, 0.0).norm(dim=-1)
        return ResponseLogProbs(sum=-norm, length=tree.counted_mask.sum(dim=-1))


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """An example of an answer, for a model to follow.

    Attributes:
        prompt: what a user asks.
        response: the answer.
    """

    prompt: str
    response: str


class StrongOverWeak(_LikelihoodJudge):
    """r(x, y) = log π_strong(y|c ⊕ x) − log π_weak(y|x), the density ratio of Dr. SoW.

    "Dr. SoW: Density Ratio of Strong-over-weak LLMs", arXiv 2411.02481, reconstructed from the abstract. The
    better the strong model is aligned compared with the weak one, the better the signal: take a
    preference-tuned model and the base or SFT model of its family. The customisation c (instruction,
    exemplars and a row's context) is read by the strong model only. Whether the paper normalises by length
    was not found; the default is the sum.

    Args:
        strong: the better aligned model.
        weak: the other one.
        instruction: a text before the query, for the strong model.
        exemplars: examples as earlier turns, for the strong model.
        average: take averages per token in place of sums.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the models' device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
    """

    def __init__(
        self,
        strong: PolicySpec,
        weak: PolicySpec,
        instruction: str = "",
        exemplars: list[Exemplar] | None = None,
        average: bool = False,
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        specs = (strong, weak)
        models = [
            LanguageModel(s, template=template, arguments=template_arguments, device=device) for s in specs
        ]
        super().__init__(models, batch_size, (instruction, tuple(exemplars or ()), average))
        self._instruction, self._average = instruction, average
        turns = [(Message("user", one.prompt), Message("assistant", one.response)) for one in exemplars or ()]
        self._turns = [message for pair in turns for message in pair]

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        start = time.monotonic()
        strong, weak = self._models
        customised = [with_turns(with_context(row, self._instruction), self._turns) for row in batch]
        scored = [strong.log_probs(customised), weak.log_probs([row.unscored() for row in batch])]
        return _verdicts(scored, start, scale=1.0, average=self._average)


class FollowUpLikelihood(_LikelihoodJudge):
    """r(x, y) = mean_k ℓ(f⁺_k | x, y) − mean_k ℓ(f⁻_k | x, y), the follow-up likelihood as reward (FLR).

    arXiv 2409.13948, reconstructed from its description: ℓ is the average log-prob per token of a follow-up
    as the user's next turn, f⁺ are those of a content user and f⁻ those of a disappointed one. The authors'
    follow-ups, ten of each kind per dimension of quality, were not found, so that there are no defaults.

    Args:
        model: the model.
        positive: what a content user may say next, such as "That makes perfect sense!".
        negative: what a disappointed one may say; an empty list leaves that part out.
        template: how prompts are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        device: the model's device; by default a GPU if there is one.
        batch_size: rows per pass.

    Raises:
        ConfigError: if there are no follow-ups, one is empty, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        model: PolicySpec,
        positive: list[str],
        negative: list[str],
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        if not [*positive, *negative] or not all(text.strip() for text in [*positive, *negative]):
            raise ConfigError("expected texts in `positive` or `negative`, got none, or an empty one.")
        self._positive, self._negative = ([text.strip() for text in texts] for texts in (positive, negative))
        one = LanguageModel(model, template=template, arguments=template_arguments, device=device)
        super().__init__([one], batch_size, (self._positive, self._negative))

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        (model,) = self._models
        return [self._verdict(model, row) for row in batch]

    def _verdict(self, model: LanguageModel, row: JudgedRow) -> Verdict:
        start = time.monotonic()
        try:
            rendered = model.renderer.render_follow_ups(with_context(row), [*self._positive, *self._negative])
        except DataError as error:
            return Verdict(scores=(None,) * len(row.responses), problems=(str(error),))
        scored = model.score(rendered)
        seconds = time.monotonic() - start
        read = sum(one.read for answers in scored for one in answers)
        problems = dict.fromkeys(one.problem for answers in scored for one in answers if one.problem)
        return Verdict(
            scores=tuple(self._score(answers) for answers in scored),
            problems=tuple(problems),
            cost=Cost(input_tokens=read, seconds=seconds),
        )

    def _score(self, answers: Sequence[LogProb]) -> float | None:
        means = [answer.mean for answer in answers]
        known = [mean for mean in means if mean is not None]
        if len(known) < len(means):
            return None
        number = len(self._positive)
        return _average(known[:number]) - _average(known[number:])


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _verdicts(
    scored: Sequence[Sequence[Sequence[LogProb]]], start: float, *, scale: float, average: bool
) -> list[Verdict]:
    """Return verdicts from the log-probs of one model, or of two whose difference counts."""
    seconds = (time.monotonic() - start) / max(1, len(scored[0]))
    return [_verdict(answers, scale, average, seconds) for answers in zip(*scored, strict=True)]


def _verdict(models: Sequence[Sequence[LogProb]], scale: float, average: bool, seconds: float) -> Verdict:
    scores = [_difference([m[place] for m in models], scale, average) for place in range(len(models[0]))]
    problems = dict.fromkeys(one.problem for model in models for one in model if one.problem)
    read = sum(one.read for model in models for one in model)
    return Verdict(
        scores=tuple(scores), problems=tuple(problems), cost=Cost(input_tokens=read, seconds=seconds)
    )


def _difference(log_probs: Sequence[LogProb], scale: float, average: bool) -> float | None:
    values = [one.mean if average else one.sum for one in log_probs]
    first, *others = values
    if first is None or None in others:
        return None
    return scale * (first - sum(other for other in others if other is not None))
