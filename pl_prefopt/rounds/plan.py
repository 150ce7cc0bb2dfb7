"""The settings of rounds, and the stages that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pl_prefopt.data.renderer import TEMPLATE_NAMES
from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.generation import Sampling, Server
from pl_prefopt.judges import Gives, Judge
from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.judging import OwnGrades
from pl_prefopt.rounds.selection import Selection

CHANGING = (OwnGrades, ConstrainedScores)
"""Judges whose scores can't be compared between rounds."""
Named = Literal["start", "initial", "previous", "average", "centre"]
STAGES = (
    "sample",
    "sample_initial",
    "label",
    "multipliers",
    "select",
    "fit",
    "export",
    "average",
    "extrapolate",
)
"""The stages of a round before its evaluation, in order."""
EVALUATION = ("held_out", "judge", "compare", "measure")
"""The stages of an evaluation. Round 0 has these alone, without ``compare``: it is the initial policy's."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How each round trains.

    Attributes:
        config: the names or files of ``prefopt fit -c``, in order: method, hardware and others.
        settings: further settings of ``prefopt fit``, such as ``trainer: {max_steps: 100}``.
        keep_optimizer: whether a round's optimiser starts with the state of the run that trained the policy
            that the round starts from; the learning rate follows the schedule of the round.
    """

    config: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    keep_optimizer: bool = False


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How each round is evaluated.

    Attributes:
        prompts: rows with the prompts.
        sampling: how they are answered.
        judge: another judge than that of the training rows, so that reward hacking shows; optional.
        compare: a judge that compares, for win rates against the answers of the initial and the previous
            policy, in both orders; by default ``judge`` or that of the training rows, if it compares.
        max_prompts: read so many prompts from the start; ``None`` for all.
    """

    prompts: str
    sampling: Sampling = field(default_factory=lambda: Sampling(n=1))
    judge: Judge | None = None
    compare: Judge | None = None
    max_prompts: int | None = None

    def __post_init__(self) -> None:
        if self.compare is not None and self.compare.gives != "probabilities":
            raise ConfigError(
                f"expected `evaluate.compare` to be a judge that compares, such as ServerPairs, got "
                f"{self.compare.name}, which gives scores: set it as `evaluate.judge`."
            )


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Rounds of sampling, judging, selecting, training and evaluating.

    Attributes:
        out: the folder for everything.
        rounds: how many.
        prompts: rows with prompts; their own responses, if any, are the gold responses of some selections.
        policy: the policy's name or folder: a model, as ``model.init_args.policy.name`` of ``prefopt fit``.
        select: which responses are trained on.
        fit: how each round trains.
        judge: grades or compares the samples; ``None`` only for selections without scores, such as SPIN's.
        sampling: how prompts are answered; round t samples with seed ``seed + t``.
        engine: a server to sample from, such as vLLM; by default transformers in the sampling process.
        batch_size: prompts per batch of transformers.
        start: where a round's training starts: at the ``previous`` round's policy, the ``initial`` one, or
            the ``centre``. With that, two rounds are one iteration of Nash-MP or EGPO: both start from the
            policy before the first of them, and the second trains on samples of what the first has trained.
        references: the references of the objective, in its order: ``start`` is the policy that the round's
            training starts from and that wrote its samples where ``start`` is ``previous``; ``initial``,
            ``previous``, ``average`` and ``centre`` are those policies.
        sample_initial: samples per prompt of the initial policy, in addition to ``sampling.n``; rows mark
            them in the column ``reference_sample``.
        split_prompts: each round reads its own part of the prompts.
        replay: the share of the rows of earlier rounds that a round trains on in addition: 0 for none, 1 for
            all.
        average: d of the average of policies: a_t = d a_{t−1} + (1 − d) π_t; ``None`` for none.
        momentum: α of extrapolated policies (arXiv 2410.06293): the next round starts from
            π̂_t + α(π̂_t − π̂_{t−1}), in weights; 0 for none.
        evaluate: the evaluation of each round; ``None`` for none.
        max_prompts: read so many prompts from the start; ``None`` for all.
        log_probs: whether our scorer scores the samples, for the column ``log_prob``, which BRAIn reads.
    """

    out: str
    rounds: int
    prompts: str
    policy: str
    select: Selection
    fit: Fit
    judge: Judge | None = None
    sampling: Sampling = field(default_factory=Sampling)
    engine: Server = field(default_factory=Server)
    batch_size: int = 8
    start: Literal["previous", "initial", "centre"] = "previous"
    references: list[Named] = field(default_factory=lambda: ["start"])
    sample_initial: int = 0
    split_prompts: bool = False
    replay: float = 0.0
    average: float | None = None
    momentum: float = 0.0
    evaluate: HeldOut | None = None
    max_prompts: int | None = None
    log_probs: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"expected `rounds` to be at least 1, got {self.rounds}.")
        if not 0 <= self.replay <= 1:
            raise ConfigError(f"expected `replay` to be a share from 0 to 1, got {self.replay}.")
        if self.average is not None and not 0 < self.average < 1:
            raise ConfigError(f"expected `average` to be above 0 and below 1, got {self.average}.")
        if self.momentum < 0:
            raise ConfigError(f"expected `momentum` to be at least 0, got {self.momentum}.")
        if "average" in self.references and self.average is None:
            raise ConfigError("the reference 'average' needs the setting `average`, such as `average: 0.9`.")
        if self.sample_initial < 0:
            raise ConfigError(f"expected `sample_initial` to be at least 0, got {self.sample_initial}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.fit.keep_optimizer and self.start == "initial":
            raise ConfigError("`fit.keep_optimizer` needs a policy of an earlier round: set another `start`.")
        if self.start == "centre" and self.rounds % 2:
            raise ConfigError(
                "two rounds are one iteration with `start: centre`: expected an even number, got "
                f"{self.rounds}."
            )
        if self.momentum and self.start != "previous":
            raise ConfigError("`momentum` extrapolates from round to round: set `start: previous`.")
        if isinstance(self.judge, ConstrainedScores):
            self._check_constraints()
        if isinstance(evaluating_judge(self, "scores"), CHANGING):
            raise ConfigError(
                "the scores of a judge that changes from round to round can't be compared: set "
                "`evaluate.judge` to one that stays the same."
            )

    def _check_constraints(self) -> None:
        if not self.log_probs:
            raise ConfigError("ConstrainedScores reads the log-probs of samples: set `log_probs` to true.")
        if self.select.wants_gold:
            raise ConfigError(
                f"{type(self.select).__name__} ranks the data's own responses, of which ConstrainedScores "
                "knows no log-probs: set another `select` or another `judge`."
            )


def evaluating_judge(settings: Rounds, gives: Gives) -> Judge | None:
    """Return the judge of held-out answers that gives scores, or the one that gives probabilities."""
    held = settings.evaluate
    if held is None:
        return None
    wanted = (one for one in (held.compare, held.judge, settings.judge) if one is not None)
    return next((one for one in wanted if one.gives == gives), None)


class Stage(NamedTuple):
    """A stage of a round.

    Attributes:
        number: the round; 0 for the evaluation of the initial policy.
        name: what is done.
    """

    number: int
    name: str

    @classmethod
    def of(cls, text: str) -> Stage:
        """Return the stage of a text, such as ``2/fit``."""
        number, name = text.split("/")
        return cls(int(number), name)

    def __str__(self) -> str:
        return f"{self.number}/{self.name}"

    @property
    def order(self) -> tuple[int, int]:
        """Its place among all stages that any settings have."""
        return self.number, (*STAGES, *EVALUATION).index(self.name)

    def folder(self, out: Path) -> Path:
        """Return the stage's folder."""
        return out / f"round-{self.number}" / self.name

    def log(self, out: Path) -> Path:
        """Return the file for the stage's output."""
        return out / f"round-{self.number}" / f"{self.name}.log"


def stages_of(settings: Rounds) -> Iterator[Stage]:
    """Yield all stages in order."""
    left_out = {
        "label": settings.judge is None,
        "multipliers": not isinstance(settings.judge, ConstrainedScores),
        "sample_initial": not settings.sample_initial,
        "average": settings.average is None,
        "extrapolate": not settings.momentum,
        "judge": evaluating_judge(settings, "scores") is None,
    }
    compares = evaluating_judge(settings, "probabilities") is not None
    for number in range(settings.rounds + 1):
        names: tuple[str, ...] = STAGES if number else ()
        if settings.evaluate is not None:
            names += tuple(name for name in EVALUATION if name != "compare" or (compares and number))
        yield from (Stage(number, name) for name in names if not left_out.get(name, False))


def all_from(first: Stage, last: int) -> Iterator[Stage]:
    """Yield a stage and all that can follow it up to round ``last``, whatever the settings are."""
    every = (Stage(n, name) for n in range(first.number, last + 1) for name in (*STAGES, *EVALUATION))
    yield from (stage for stage in every if stage.order >= first.order)


def stage_named(text: str, settings: Rounds) -> Stage:
    """Return the stage that a command line names, such as ``2/fit``.

    Raises:
        ConfigError: if there is none.
    """
    known = {str(stage): stage for stage in stages_of(settings)}
    if text not in known:
        hint = suggest(text, known) or "."
        raise ConfigError(
            f"expected a stage from {next(iter(known))} to {list(known)[-1]}, got '{text}'{hint}"
        )
    return known[text]


class Place(NamedTuple):
    """Where a policy is: a model, and perhaps an adapter on it."""

    name: str
    adapter: str | None = None

    def spec(self) -> dict[str, Any]:
        """Return it as settings of a policy."""
        return {"name": self.name} if self.adapter is None else {"name": self.name, "adapter": self.adapter}

    @property
    def argument(self) -> str:
        """What ``--policy`` takes."""
        return self.adapter or self.name


def centre_round(number: int) -> int:
    """Return the round that trained the policy before the two rounds that ``number`` is one of; 0 for none.

    Examples:
        >>> [centre_round(number) for number in (1, 2, 3, 4)]
        [0, 0, 2, 2]
    """
    return (number - 1) // 2 * 2


class Policies:
    """The policies of each round.

    Args:
        settings: the rounds.
    """

    def __init__(self, settings: Rounds) -> None:
        self.settings, self.out = settings, Path(settings.out)

    def initial(self) -> Place:
        """The policy before the first round."""
        return Place(self.settings.policy)

    def trained(self, number: int) -> Place:
        """The policy that round ``number`` trained; before the first, the initial one."""
        return self._exported(number, "export")

    def sampling(self, number: int) -> Place:
        """The policy that samples in round ``number``: the newest one, extrapolated if there is momentum."""
        return self._exported(number - 1, "extrapolate" if self.settings.momentum else "export")

    def start(self, number: int) -> Place:
        """The policy that the training of round ``number`` starts from."""
        return {"initial": lambda _: self.initial(), "previous": self.sampling, "centre": self.centre}[
            self.settings.start
        ](number)

    def centre(self, number: int) -> Place:
        """The policy before the two rounds that ``number`` is one of: rounds 1 and 2, 3 and 4 and so on."""
        return self.trained(centre_round(number))

    def reference(self, named: Named, number: int) -> Place:
        """The policy that a reference of round ``number`` is."""
        if named == "average":
            return self._exported(number - 1, "average")
        return {
            "start": self.start,
            "initial": lambda _: self.initial(),
            "previous": self.sampling,
            "centre": self.centre,
        }[named](number)

    def _exported(self, number: int, name: str) -> Place:
        if number == 0:
            return self.initial()
        folder = Stage(number, name).folder(self.out)
        if (folder / "adapter_config.json").is_file():
            return Place(self.settings.policy, str(folder))
        return Place(str(folder))


def fit_settings(settings: Rounds, number: int, composed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the configuration of a round's ``fit`` holds beyond the user's own.

    A reference that is the policy that training starts from is ``InitialPolicy``, which needs no model of
    its own where that is an adapter; others are frozen models.

    Args:
        settings: the rounds.
        number: the round.
        composed: the user's own configuration; by default ``fit.settings``, as if its files were empty.
    """
    own = settings.fit.settings if composed is None else composed
    policies, out = Policies(settings), Path(settings.out)
    start = policies.start(number)
    policy: dict[str, Any] = {"name": start.name}
    if start.adapter is not None:
        policy |= {"adapter": start.adapter, "lora": None}
    elif start != policies.initial():
        policy |= {"lora": None}
    members: list[dict[str, Any]] = []
    for named in settings.references:
        place = policies.reference(named, number)
        if place == start:
            members.append({"class_path": "pl_prefopt.references.InitialPolicy"})
        else:
            template = (own.get("data") or {}).get("template") or "auto"
            # With `auto`, a model with the policy's tokeniser takes the policy's file of a template.
            template = template if template in TEMPLATE_NAMES else "auto"
            frozen = {"model": place.spec(), "template": template}
            members.append({"class_path": "pl_prefopt.references.FrozenModel", "init_args": frozen})
    made: dict[str, Any] = {
        "model": {"init_args": {"policy": policy}},
        "data": {"train": str(Stage(number, "select").folder(out) / "rows"), "cache_dir": str(out / "cache")},
        "run_dir": str(Stage(number, "fit").folder(out)),
    }
    made |= {"references": {"members": members}} if members else {}
    return merged_settings(made, _optimizer_settings(settings, number, own))


def _optimizer_settings(settings: Rounds, number: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which a round's optimiser starts with the state of an earlier run."""
    earlier = centre_round(number) if settings.start == "centre" else number - 1
    if not settings.fit.keep_optimizer or earlier == 0:
        return {}
    checkpoint = Stage(earlier, "fit").folder(Path(settings.out)) / "checkpoints" / "last.ckpt"
    kept = (own.get("trainer") or {}).get("callbacks") or []
    kept = [kept] if isinstance(kept, Mapping) else kept
    callback = {
        "class_path": "pl_prefopt.rounds.OptimizerState",
        "init_args": {"checkpoint": str(checkpoint)},
    }
    return {"trainer": {"callbacks": [*kept, callback]}}


def merged_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings, those of ``second`` over those of ``first``."""
    merged = dict(first)
    for name, value in second.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = merged_settings(before, value) if both else value  # type: ignore[arg-type]
    return merged
