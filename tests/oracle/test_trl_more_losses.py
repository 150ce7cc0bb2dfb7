"""The rest of TRL 1.16's losses against ours: those of DPOTrainer and CPOTrainer, and unpaired APO-zero.

As in `test_trl_losses.py` the trainers' methods run on a stub. Where TRL differs on purpose:
- `sigmoid` ignores `label_smoothing`: conservative DPO is not among its losses.
- `discopop` is NaN for βh < −88 in float32; ours is finite.
- `sft` averages over the tokens of one device's batch, ours with `average="token"` over those of all ranks.
- CPO's likelihood term averages over the chosen tokens of a batch, ours over prompts; it is written out here.
- Its running reward mean (BCO) is no longer in the wheel.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pl_prefopt import objectives
from pl_prefopt.types import TokenNumbers
from tests.oracle import test_trl_losses as losses
from tests.oracle.test_trl_losses import assert_same_loss, cpo_loss, paired, scored, trl_dpo

pytest.importorskip("trl")
pytestmark = pytest.mark.oracle
tokens = losses.tokens

DPO_LOSSES = {
    "exo_pair": (objectives.EXO(beta=0.2, epsilon=0.01), {"label_smoothing": 0.01}),
    "nca_pair": (objectives.NCA(beta=0.2), {}),
    "bco_pair": (objectives.BCOPair(beta=0.2), {}),
    "sppo_hard": (objectives.SPPOHard(beta=0.2), {}),
    "aot": (objectives.AOT(beta=0.2, label_smoothing=0.1), {"label_smoothing": 0.1}),
    "aot_unpaired": (objectives.AOTUnpaired(beta=0.2, label_smoothing=0.1), {"label_smoothing": 0.1}),
    "apo_zero": (objectives.APOZero(beta=0.2), {}),
    "apo_down": (objectives.APODown(beta=0.2), {}),
    "discopop": (
        objectives.DiscoPOP(beta=0.2, tau=0.3),
        {"args": SimpleNamespace(discopop_tau=0.3)},
    ),
    "sft": (objectives.SFT(average="token"), {}),
    "sigmoid_norm": (objectives.NormDPO(beta=0.2), {}),
}


def only_counted(tokens):
    """Leave out the gradient at padding, where tokens are zeros here and a loss may mask them or not."""
    tokens.policy.register_hook(lambda slope: torch.where(tokens.mask, slope, 0.0))


@pytest.mark.parametrize("loss_type", DPO_LOSSES)
def test_dpo_trainers_loss_and_gradient(tokens, loss_type):
    objective, settings = DPO_LOSSES[loss_type]
    theirs, logged = trl_dpo(tokens, loss_type, beta=0.2, **settings)
    ours = objective(scored(tokens))
    assert ours.counted.all()
    if loss_type == "sft":
        only_counted(tokens)
    assert_same_loss(ours.loss.mean(), theirs, tokens)
    if loss_type not in ("sft", "sigmoid_norm"):  # whose rewards are per token here
        assert ours.reward[:, 0].mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-5)
        assert ours.reward[:, 1].mean().item() == pytest.approx(logged["rewards/rejected"], rel=1e-5)


def test_trls_sigmoid_no_longer_smooths_labels(tokens):
    smoothed, _ = trl_dpo(tokens, "sigmoid", beta=0.2, label_smoothing=0.3)
    torch.testing.assert_close(smoothed, objectives.DPO(beta=0.2)(scored(tokens)).loss.mean())
    ours = objectives.CDPO(beta=0.2, label_smoothing=0.3)(scored(tokens)).loss.mean()
    assert abs(ours - smoothed) > 0.01


def with_tokens(tokens, reference, collisions=None):
    """Our batch with numbers per token: theirs begin at the first column, as responses do here."""
    own = tokens.policy * tokens.mask
    batch = scored(tokens)
    numbers = TokenNumbers(
        counted=paired(tokens.mask),
        policy=paired(own),
        references=paired(reference)[None],
        collisions=None if collisions is None else paired(collisions),
    )
    sums = paired(reference.sum(dim=1))[None]
    return replace(batch, references=sums, tokens=numbers)


def test_log_probs_beyond_the_shorter_response_weigh_less_by_ld_alpha(tokens):
    from trl.trainer.dpo_trainer import DPOTrainer

    reference = torch.where(tokens.mask, -2 * torch.rand_like(tokens.policy), 0.0)
    # TRL weights those of the reference in the same way, when it precomputes them.
    stub = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", autocast=nullcontext),
        model=SimpleNamespace(is_gradient_checkpointing=False),
        ref_model=True,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ld_alpha=0.3,
    )
    mask = losses.padded_mask(tokens)
    chosen, rejected = DPOTrainer.compute_ref_log_probs(
        stub,
        lambda **_: SimpleNamespace(log_probs=reference),
        {"input_ids": mask * 0, "attention_mask": mask * 0 + 1, "completion_mask": mask},
    )
    computed = SimpleNamespace(**{**vars(tokens), "reference": torch.cat([chosen, rejected])})
    theirs, _ = trl_dpo(computed, "sigmoid", beta=0.2, ld_alpha=0.3)
    ours = objectives.LDDPO(beta=0.2, alpha=0.3)(with_tokens(tokens, reference))
    only_counted(tokens)
    assert_same_loss(ours.loss.mean(), theirs, tokens)


def test_pairs_are_weighted_by_use_weighting(tokens):
    collisions = torch.where(tokens.mask, -torch.rand_like(tokens.policy), 0.0)
    theirs, _ = trl_dpo(tokens, "sigmoid", beta=0.2, use_weighting=True, log_sum_sq_probs=collisions)
    reference = torch.zeros_like(tokens.policy.detach())
    batch = replace(with_tokens(tokens, reference, collisions), references=scored(tokens).references)
    only_counted(tokens)
    assert_same_loss(objectives.WPO(beta=0.2)(batch).loss.mean(), theirs, tokens)


def compose(score, link):
    return objectives.Compose(score=score, link=link, terms=[objectives.NegativeLogLikelihood(0.7)])


CPO_LOSSES = {
    "sigmoid": (objectives.CPO(beta=0.2, nll_weight=0.7, label_smoothing=0.1), {"label_smoothing": 0.1}),
    "hinge": (compose(objectives.SumLogProb(0.2), objectives.HingeLink()), {}),
    "ipo": (compose(objectives.MeanLogProb(0.2), objectives.Squared(0.2)), {}),
    "simpo": (objectives.CPOSimPO(beta=0.2, gamma=0.3, nll_weight=0.7), {"simpo_gamma": 0.3}),
}


@pytest.mark.parametrize("loss_type", CPO_LOSSES)
def test_cpo_trainers_loss_and_gradient(tokens, loss_type):
    objective, settings = CPO_LOSSES[loss_type]
    means = tokens.policy.sum(dim=1) / tokens.lengths
    seen = means if loss_type in ("ipo", "simpo") else tokens.policy.sum(dim=1)
    theirs, *rewards = cpo_loss(
        *seen.chunk(2), loss_type=loss_type, beta=0.2, **{"label_smoothing": 0.0, **settings}
    )
    ours = objective(scored(tokens))
    torch.testing.assert_close(ours.reward, torch.stack(rewards, dim=1))
    assert_same_loss(ours.loss.mean(), (theirs - 0.7 * means.chunk(2)[0]).mean(), tokens)


def test_alphapo(tokens):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    chosen, rejected = (tokens.policy.sum(dim=1) / tokens.lengths).chunk(2)
    settings = {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.1, "label_smoothing": 0.0, "alpha": 0.25}
    theirs, *rewards = CPOTrainer.cpo_loss(
        SimpleNamespace(accelerator=losses.ACCELERATOR, **settings), chosen, rejected
    )
    ours = objectives.AlphaPO()(scored(tokens))
    torch.testing.assert_close(ours.reward, torch.stack(rewards, dim=1))
    assert_same_loss(ours.loss.mean(), theirs.mean(), tokens)


def test_unpaired_apo_zero(tokens):
    from trl.trainer.kto_trainer import KTOTrainer

    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=losses.ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=False,
        loss_type="apo_zero_unpaired",
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: None,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = losses.padded_mask(tokens)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.arange(2 * losses.PAIRS) < losses.PAIRS,
        "ref_logps": tokens.reference,
    }
    theirs = KTOTrainer._compute_loss(stub, lambda **_: losses.outputs(tokens), inputs, False)
    objective = objectives.APOZeroUnpaired(beta=0.2, desirable_weight=1.3, undesirable_weight=0.8)
    assert_same_loss(objective(scored(tokens)).loss.mean(), theirs, tokens)
