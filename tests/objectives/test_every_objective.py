"""What holds for every objective, found by looking for them: a new one is tested by being exported.

Batches are float64, ragged, with ties and unknown scores; see `tests/frozen/batches.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from jsonargparse import ArgumentParser

from pl_prefopt import objectives
from pl_prefopt.cli.listing import DATA
from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.metrics import build_suite, update
from pl_prefopt.modules.compatibility import check_rows
from pl_prefopt.objectives import (
    DPO,
    FDPO,
    IPO,
    MRPO,
    PRO,
    SPPO,
    AdaptiveClip,
    BRAIn,
    Compose,
    FixedClip,
    FixedWeights,
    Geometric,
    GivenWinRates,
    HingeLink,
    LogRatio,
    MultiDPO,
    Objective,
    PairMNM,
    PlackettLuce,
    ReferenceProposal,
    RobustDPO,
    SimPO,
    SrDPO,
    SrIPO,
    Sum,
    UniformWeights,
    VirtualReference,
)
from pl_prefopt.objectives.base import DataKind
from pl_prefopt.pairing import BestAgainstEach, BestAgainstWorst
from pl_prefopt.requests import REWARD
from pl_prefopt.types import Outcome, ScoredBatch, _mapped
from tests.data.support import dataset
from tests.frozen.batches import NAN, frozen_batch
from tests.frozen.numbers import METHODS, built
from tests.objectives.batches import heads_of, rewards_of, tokens_of

ROOT = Path(__file__).parents[2]
WITHOUT_DEFAULTS: dict[str, Callable[[], Objective]] = {
    "BRAIn": lambda: BRAIn(temperature=2.0, proposal=ReferenceProposal(1)),
    "Compose": lambda: Compose(score=LogRatio(0.2), structure=PlackettLuce(), link=HingeLink()),
    "Sum": lambda: Sum(parts={"dpo": DPO(), "simpo": SimPO()}, weights={"simpo": 0.5}),
    "ODPO": lambda: objectives.ODPO(offset=objectives.LogScoreGap(alpha=0.5)),
    "LengthDPO": lambda: objectives.LengthDPO(alpha=0.1),
    "SmPO": lambda: objectives.SmPO(beta=0.1, score_range=(1.0, 10.0)),
    "OSP": lambda: objectives.OSP(beta=0.2),
    "DNO": lambda: objectives.DNO(eta=0.2),
    "GammaDPO": lambda: objectives.GammaDPO(gamma=0.5),
    "FlexDPO": lambda: objectives.FlexDPO(beta_chosen=0.2, beta_rejected=0.1, sft_weight=0.1),
    "NormDPO": lambda: objectives.NormDPO(beta=2.0),
    "INPO": lambda: objectives.INPO(eta=0.2, tau=0.05),
    "VPO": lambda: objectives.VPO(alpha=0.3),
    "SLiCHF": lambda: objectives.SLiCHF(delta=1.0, nll_weight=0.1),
    "RRHF": lambda: objectives.RRHF(nll_weight=0.1),
    "ASFT": lambda: objectives.ASFT(weight=0.5),
    "AttributeRegression": lambda: objectives.AttributeRegression(
        attributes=["helpful", "brief"], reward={"helpful": 1.0, "brief": -0.5}
    ),
    "MarginBradleyTerry": lambda: objectives.MarginBradleyTerry(margin=objectives.ColumnMargin("strength")),
    "RcDPO": lambda: objectives.RcDPO(beta=0.2),
    "TreeTPO": lambda: objectives.TreeTPO(normalize=True),
    "DegreeDPO": lambda: objectives.DegreeDPO(degree_weight=0.5, removed=[0.3, 0.6]),
    "ContrastiveBradleyTerry": lambda: objectives.ContrastiveBradleyTerry(
        contrastive_weight=0.5, temperature=0.5
    ),
}
"""How to make one that has no defaults."""
VARIANTS: dict[str, Callable[[], Objective]] = {
    "cDPO": lambda: DPO(label_smoothing=0.1),
    "DPO, best against worst": lambda: DPO(pairing=BestAgainstWorst()),
    "DPO, best against each": lambda: DPO(pairing=BestAgainstEach()),
    "IPO per token": lambda: IPO(normalize="mean"),
    "rDPO": lambda: RobustDPO(flip_rate=0.2),
    "f-DPO, forward": lambda: FDPO(divergence=objectives.ForwardKL()),
    "f-DPO, Jensen-Shannon": lambda: FDPO(divergence=objectives.JensenShannon()),
    "f-DPO, alpha": lambda: FDPO(divergence=objectives.AlphaDivergence(alpha=0.5)),
    "MRPO, geometric": lambda: MRPO(aggregate=Geometric(), clip=FixedClip(0.5)),
    "MRPO, fixed": lambda: MRPO(weights=FixedWeights([0.2, 0.3, 0.5]), pairing=BestAgainstWorst()),
    "Multi-DPO, uniform": lambda: MultiDPO(weights=UniformWeights(), clip=AdaptiveClip(1e6)),
    "Sr-MRPO": lambda: SrDPO(reference=VirtualReference()),
    "Sr-IPO, several": lambda: SrIPO(
        reference=VirtualReference(UniformWeights(), FixedClip(0.2), Geometric())
    ),
    "Sr-IPO, strong": lambda: SrIPO(strength=1.0),
    "PRO without SFT": lambda: PRO(sft_weight=0.0),
    "SPPO, given win rates": lambda: SPPO(beta=0.1, win_rates=GivenWinRates()),
    "Pair-MNM, warm": lambda: PairMNM(temperature=2.5),
    "VPO, both": lambda: objectives.VPO(alpha=0.3, calibration="both"),
    "VPO, reference samples": lambda: objectives.VPO(alpha=0.3, calibration="reference_samples"),
    "BCO, density ratio": lambda: objectives.BCO(beta=0.2, probability_column="preference"),
    "SFT, chosen": lambda: objectives.SFT(responses="chosen"),
    "SFT, desirable": lambda: objectives.SFT(responses="desirable", desirable_above=5.0),
    "SFT per token": lambda: objectives.SFT(average="token"),
    "Bradley-Terry, smoothed and centred": lambda: objectives.BradleyTerry(label_smoothing=0.1, centring=0.1),
    "Bradley-Terry, score gap": lambda: objectives.MarginBradleyTerry(
        margin=objectives.ScoreGap(alpha=0.5), centring=0.01
    ),
    "GPM, warm": lambda: objectives.GPM(temperature=50.0, margin=0.3, label_smoothing=0.1),
    "Mixture without entropy": lambda: objectives.RewardMixture(router_entropy=0.0),
    "Bradley-Terry, flipped": lambda: objectives.StrengthBradleyTerry(flip_below=-0.2, label_smoothing=0.1),
    "Bradley-Terry, contrasted differences": lambda: objectives.ContrastiveBradleyTerry(
        contrastive_weight=0.5, temperature=0.5, of="differences"
    ),
    "Plackett-Luce rewards, centred": lambda: objectives.RewardPlackettLuce(centring=0.1),
}
"""Settings other than the defaults."""
LEARNS_FROM_COLUMNS = {"AttributeRegression": "its targets are columns, and not the scores"}
LEARNS_WITHOUT_SCORES = {"ConditionalBradleyTerry": "its prompts are compared, and not its responses"}
LOOKS_AT_THE_WHOLE_BATCH = {
    "KTO": "its reference point is a mean over the batch",
    "AOT": "it sorts the batch",
    "AOTUnpaired": "it sorts the batch",
    "SFT per token": "it divides by the tokens of the batch",
    "ContrastiveBradleyTerry": "the other responses of the batch are its negatives",
    "Bradley-Terry, contrasted differences": "the other pairs of the batch are its negatives",
}
TAKES_PARTNERS_AS_CONSTANTS = {"AOTUnpaired": "the gradient of a partner comes from the partner's own prompt"}
WAITS_FOR_THE_DEVICE = {
    "AOT": "the number of pairs, which it sorts, is known to the device",
    "AOTUnpaired": "the number of pairs, which it sorts, is known to the device",
    "ContrastiveBradleyTerry": "so is the number of responses that are compared",
    "Bradley-Terry, contrasted differences": "so is the number of pairs that are compared",
    "ScaledBradleyTerry": "it refuses negative weights in rows that nobody has checked",
}
"""Those that read values of tensors in a step, for which a GPU's queue runs empty."""
ROUGH_AT_TIES = {
    "Hinge": "a hinge has no slope at its kink",
    "Compose": "a hinge has no slope at its kink",
    "SLiCHF": "a hinge has no slope at its kink",
    "RRHF": "a hinge has no slope at its kink",
    "DPOP": "its penalty has no slope where policy and reference agree",
}

STOPS_GRADIENTS = {
    "TDPO2": "a winner's divergence has no gradient",
    "WPO": "weights have no gradient",
    "TreeTPO": "step weights have no gradient",
}
"""Those whose gradient is not the loss's slope; closed forms test it."""


def concrete() -> list[str]:
    """The names of all objectives that can be instantiated."""
    found = {name: getattr(objectives, name) for name in objectives.__all__}
    return [
        name
        for name, value in found.items()
        if inspect.isclass(value)
        and issubclass(value, Objective)
        and not inspect.isabstract(value)
        and name not in ("MPPOComparison",)
    ]


CLASSES = concrete()
NAMES = [*CLASSES, *VARIANTS]


@pytest.mark.parametrize("name", CLASSES)
def test_its_docstring_shows_a_number(name):
    """TDPO2's is in that of TDPO1, beside which it stands."""
    assert ">>>" in (getattr(objectives, name).__doc__ or "") or name == "TDPO2"


def made(name: str) -> Objective:
    if name in VARIANTS:
        return VARIANTS[name]().eval()
    return WITHOUT_DEFAULTS.get(name, getattr(objectives, name))().eval()


def batch_for(objective: Objective) -> ScoredBatch:
    """A batch with all that the objective needs."""
    most = objective.needs.max_references
    batch = frozen_batch(references=3 if most is None else most, views=objective.needs.views)
    numbers = torch.linspace(0.1, 0.9, len(batch.graded), dtype=torch.float64)
    marks = torch.arange(batch.scores.numel()).view_as(batch.scores) % 3 == 0
    columns = {"preference": numbers, "strength": 5 * numbers - 1, "reference_sample": marks}
    columns |= {"margin": numbers, "magnitude": 3 * numbers}
    columns |= {"rationale": numbers, "prompt_rejected": numbers}
    ratings = torch.where(marks, torch.nan, torch.arange(batch.scores.numel()).view_as(batch.scores) % 5.0)
    columns |= {"helpful": ratings, "brief": ratings.roll(1, 0)}
    rated = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    columns |= {name: ratings.roll(place, 0) for place, name in enumerate(rated)}
    return dataclasses.replace(
        batch, columns={name: columns[name] for name in objective.needs.columns if name in columns}
    )


def changed(batch: ScoredBatch, rows: Callable[[torch.Tensor], torch.Tensor]) -> ScoredBatch:
    """Apply ``rows`` to every tensor [B, R], and to each reference's."""

    def of_scored(scored):
        policy = dataclasses.replace(
            scored.policy, sum=rows(scored.policy.sum), length=rows(scored.policy.length)
        )
        references = (
            torch.stack([rows(one) for one in scored.references])
            if len(scored.references)
            else (rows(scored.policy.sum).new_empty((0, *rows(scored.policy.sum).shape)))
        )
        return {"policy": policy, "references": references, "present": rows(scored.present)}

    views = {name: dataclasses.replace(view, **of_scored(view)) for name, view in batch.views.items()}

    def of_column(values):
        wide = values if values.dim() == 2 else values.unsqueeze(1).expand(batch.scores.shape)
        return rows(wide) if values.dim() == 2 else rows(wide)[:, 0]

    columns = {name: of_column(values) for name, values in batch.columns.items()}
    changes = {**of_scored(batch), "scores": rows(batch.scores), "columns": columns}
    return dataclasses.replace(batch, **changes, views=views)


def scored_with(objective: Objective, batch: ScoredBatch, sums: torch.Tensor) -> Outcome:
    """The outcome where the policy's log-probs are ``sums``, of tokens too if the objective asks for them.

    The first output of a reward head is ``sums`` as well, and the others are linear in it. Log-probs are NaN
    where the objective does without them.
    """
    needs = objective.needs
    policy = dataclasses.replace(batch.policy, sum=sums if needs.log_probs else torch.full_like(sums, NAN))
    views = {
        name: dataclasses.replace(
            view, outputs={REWARD: view.policy.sum.unsqueeze(-1)} | heads_of(view.policy.sum, needs)
        )
        for name, view in batch.views.items()
    }
    batch = dataclasses.replace(batch, policy=policy, views=views, outputs=heads_of(sums, needs))
    if needs.reward_outputs is not None:
        batch = dataclasses.replace(batch, outputs={**batch.outputs, **rewards_of(sums, needs)})
    if objective.needs.tokens is not None:
        batch = dataclasses.replace(batch, tokens=tokens_of(batch, objective.needs.tokens))
    return objective(batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reads_no_value_from_the_device(name):
    """On the meta device, which has none; neither do the training metrics read one."""
    objective, seen = made(name).train(), []
    hook = objective.register_forward_pre_hook(lambda _, arguments: seen.append(*arguments))
    evaluated(objective, batch_for(objective))
    hook.remove()
    (scored,) = seen
    batch = _mapped(scored, lambda each: each.detach().to("meta").requires_grad_(each.requires_grad))

    def step():
        outcome = objective.to("meta")(batch)
        outcome.loss.sum().backward()
        references, views = len(batch.references), objective.rewarded_views
        suite = build_suite("train", references, views, (), log_probs=objective.needs.log_probs).to("meta")
        update(suite, batch, outcome)

    if name not in WAITS_FOR_THE_DEVICE:
        step()
        return
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step()


def evaluated(objective: Objective, batch: ScoredBatch) -> tuple[Outcome, torch.Tensor]:
    """The outcome, and the gradient of the summed loss at the policy's log-probs."""
    sums = batch.policy.sum.detach().requires_grad_()
    outcome = scored_with(objective, batch, sums)
    (slope,) = torch.autograd.grad(outcome.loss.sum(), sums)
    return outcome, slope


KINDS = {
    "pairs": [{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}],
    "lists": [{"prompt": "Hi.", "responses": ["Yes.", "Well.", "No."], "ranks": [1, 2, 3]}],
    "unpaired": [{"prompt": "Hi.", "completion": "Yes.", "label": True}],
}
"""Rows of each kind of data without grades."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return {kind: dataset(rows, tmp_path_factory.mktemp(kind)) for kind, rows in KINDS.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_rows_of_a_kind_that_it_does_not_take_are_refused_in_a_sentence(name, kinds):
    """Before a model loads. Columns that rows lack are refused for any objective, see `tests/data`."""
    objective = made(name)
    for kind, rows in kinds.items():
        if kind not in objective.data and not objective.needs.columns:
            with pytest.raises((ContractError, DataError)) as found:
                check_rows(objective, {"train": rows})
            assert re.fullmatch(r"[^\n]+\.", str(found.value)), found.value


def check_equal(found: tuple[Outcome, torch.Tensor], expected: tuple[Outcome, torch.Tensor]) -> None:
    (outcome, slope), (other, at) = found, expected
    assert torch.equal(outcome.counted, other.counted)
    for one, two in ((outcome.loss, other.loss), (outcome.reward, other.reward), (slope, at)):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_the_command_line_knows_the_kinds_of_data():
    assert get_args(DataKind) == DATA


def test_all_objectives_are_found():
    assert {"DPO", "KTO", "SimPO", "MRPO", "SrDPO", "PairMNM", "PointCE", "Compose", "Sum"} <= set(NAMES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_catalogue_knows_its_data_its_references_and_its_use(name):
    objective = made(name)
    fewest, most = type(objective).references
    needs = objective.needs
    assert fewest <= needs.min_references
    assert most is None or (needs.max_references is not None and needs.max_references <= most)
    assert set(objective.data) <= set(DATA)
    assert vars(type(objective))["use_when"].endswith(".")


@pytest.mark.parametrize("name", sorted(path.stem for path in METHODS.glob("*.yaml")))
def test_a_file_of_configs_methods_makes_an_objective(name):
    objective = built(name)
    outcome, slope = evaluated(objective, batch_for(objective))
    assert outcome.counted.any()
    assert outcome.loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_rewards_have_their_shapes_and_gradients(name):
    objective = made(name)
    batch = batch_for(objective)
    outcome, slope = evaluated(objective, batch)
    assert outcome.loss.shape == outcome.counted.shape == batch.graded.shape
    assert outcome.reward.shape == batch.scores.shape
    assert outcome.loss.isfinite().all()
    assert slope.isfinite().all()
    assert slope.any(), "something is learned"
    assert (outcome.loss[~outcome.counted] == 0).all()
    assert (slope[~outcome.counted] == 0).all()
    assert not outcome.reward.requires_grad
    assert not any(value.requires_grad for value in outcome.stats.values())
    assert outcome.reward[batch.present].isfinite().all()
    assert (slope[~batch.present] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_responses_does_not_matter(name):
    """Chosen and rejected may be swapped, too, as long as the scores go along."""
    objective = made(name)
    batch = batch_for(objective)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    back = order.argsort()
    (outcome, slope), expected = (
        evaluated(objective, changed(batch, lambda values: values[:, order])),
        evaluated(objective, batch),
    )
    outcome = dataclasses.replace(outcome, reward=outcome.reward[:, back])
    check_equal((outcome, slope[:, back]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_prompts_does_not_matter(name):
    objective = made(name)
    batch = batch_for(objective)
    order = torch.arange(len(batch.graded)).flip(0)
    outcome, slope = evaluated(objective, changed(batch, lambda values: values[order]))
    outcome = dataclasses.replace(
        outcome, loss=outcome.loss[order], counted=outcome.counted[order], reward=outcome.reward[order]
    )
    check_equal((outcome, slope[order]), evaluated(objective, batch))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LOOKS_AT_THE_WHOLE_BATCH])
def test_a_batch_equals_its_prompts_one_by_one(name):
    objective = made(name)
    batch = batch_for(objective)
    outcome, slope = evaluated(objective, batch)
    for row in range(len(batch.graded)):
        one = slice(row, row + 1)
        alone = dataclasses.replace(changed(batch, lambda v, one=one: v[one]), graded=batch.graded[one])
        part = dataclasses.replace(
            outcome, loss=outcome.loss[one], counted=outcome.counted[one], reward=outcome.reward[one]
        )
        check_equal(evaluated(objective, alone), (part, slope[one]))


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_any_content_changes_nothing(name):
    """More absent responses, NaN at those that are there, and infinite log-probs."""
    objective = made(name)
    batch = batch_for(objective)
    expected = evaluated(objective, batch)
    for filler in (float("nan"), float("inf"), -1e30):

        def spoiled(values, filler=filler):
            if values.dtype == torch.bool:
                return torch.cat([values, torch.zeros_like(values[:, :2])], dim=1)
            if not values.is_floating_point():
                return torch.cat([values, torch.zeros_like(values[:, :2])], dim=1)
            values = torch.where(batch.present, values, filler)
            return torch.cat([values, torch.full_like(values[:, :2], filler)], dim=1)

        other = changed(batch, spoiled)
        other = dataclasses.replace(other, scores=torch.where(other.present, other.scores, torch.nan))
        outcome, slope = evaluated(objective, other)
        assert slope[~other.present].eq(0).all()
        width = batch.scores.shape[1]
        outcome = dataclasses.replace(
            outcome, reward=torch.where(batch.present, outcome.reward[:, :width], expected[0].reward)
        )
        check_equal((outcome, slope[:, :width]), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STOPS_GRADIENTS])
def test_gradients_equal_finite_differences(name):
    objective = made(name)
    batch = batch_for(objective)
    if name in ROUGH_AT_TIES:
        batch = dataclasses.replace(
            batch, policy=dataclasses.replace(batch.policy, sum=batch.policy.sum.detach() * 1.01)
        )

    def loss(sums):
        losses = scored_with(objective, batch, sums).loss
        return losses.sum() if name in TAKES_PARTNERS_AS_CONSTANTS else losses

    sums = torch.where(batch.present, batch.policy.sum.detach(), 0.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, sums, eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name):
    objective = made(name)
    batch = batch_for(objective)
    single = dataclasses.replace(
        changed(batch, lambda values: values.float() if values.is_floating_point() else values)
    )
    (outcome, slope), (exact, at) = evaluated(objective, single), evaluated(objective, batch)
    assert outcome.loss.dtype == torch.float32
    torch.testing.assert_close(outcome.loss.double(), exact.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope.double(), at, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEARNS_WITHOUT_SCORES])
def test_a_batch_with_nothing_to_compare_has_a_gradient_of_zero(name):
    """Distributed training needs a backward pass on every rank, whatever its rows are."""
    objective = made(name)
    batch = batch_for(objective)
    unknown = {name: torch.full_like(values, NAN) for name, values in batch.columns.items()}
    batch = dataclasses.replace(batch, columns=unknown if name in LEARNS_FROM_COLUMNS else batch.columns)
    outcome, slope = evaluated(
        objective, dataclasses.replace(batch, scores=torch.full_like(batch.scores, NAN))
    )
    assert not outcome.counted.any()
    assert (outcome.loss == 0).all()
    assert (slope == 0).all()
    assert all(value.isfinite() for value in outcome.stats.values())


@pytest.mark.parametrize("name", NAMES)
def test_second_views_are_constants(name):
    objective = made(name)
    batch = batch_for(objective)
    trained = objective.needs.trained_views
    constants = [
        view.policy.sum.requires_grad_() for name, view in batch.views.items() if name not in trained
    ]
    outcome = scored_with(objective, batch, batch.policy.sum)
    if constants:
        found = torch.autograd.grad(outcome.loss.sum(), constants, allow_unused=True)
        assert all(slope is None or not slope.any() for slope in found)
    assert not any(rewards.requires_grad for rewards in outcome.view_rewards.values())


@pytest.mark.parametrize("name", CLASSES)
def test_a_configuration_makes_the_same_objective_again(name):
    if name in WITHOUT_DEFAULTS:
        pytest.skip("its configurations are tested from the command line")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    given = parser.parse_object({"objective": {"class_path": f"pl_prefopt.objectives.{name}"}})
    again = parser.instantiate(parser.parse_string(parser.dump(given))).objective.eval()
    batch = batch_for(again)
    assert torch.equal(evaluated(again, batch)[0].loss, evaluated(made(name), batch)[0].loss)


@pytest.mark.parametrize("name", CLASSES)
def test_it_says_where_it_is_from_and_has_a_page(name):
    kind = getattr(objectives, name)
    own = [cls.__doc__ or "" for cls in kind.__mro__ if cls.__module__.startswith("pl_prefopt.objectives")]
    module = inspect.getmodule(kind)
    assert module is not None
    assert name in WITHOUT_DEFAULTS or any("arXiv" in text for text in [*own, module.__doc__ or ""])
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "methods").glob("*.md")]
    assert any(re.search(rf"\b{name}\b", page) for page in pages)
