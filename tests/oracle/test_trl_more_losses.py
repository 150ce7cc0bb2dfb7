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
from types import SimpleNamespace

import pytest
import torch

from pl_prefopt import objectives
from tests.oracle import test_trl_losses as losses
from tests.oracle.test_trl_losses import assert_same_loss, cpo_loss, scored, trl_dpo

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


@pytest.mark.parametrize("loss_type", DPO_LOSSES)
def test_dpo_trainers_loss_and_gradient(tokens, loss_type):
    objective, settings = DPO_LOSSES[loss_type]
    theirs, logged = trl_dpo(tokens, loss_type, beta=0.2, **settings)
    ours = objective(scored(tokens))
    assert ours.counted.all()
    if loss_type == "sft":  # which masks what this file's tokens hold as zeros
        tokens.policy.register_hook(lambda slope: torch.where(tokens.mask, slope, 0.0))
    assert_same_loss(ours.loss.mean(), theirs, tokens)
    if loss_type not in ("sft", "sigmoid_norm"):  # whose rewards are per token here
        assert ours.reward[:, 0].mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-5)
        assert ours.reward[:, 1].mean().item() == pytest.approx(logged["rewards/rejected"], rel=1e-5)


def test_trls_sigmoid_no_longer_smooths_labels(tokens):
    smoothed, _ = trl_dpo(tokens, "sigmoid", beta=0.2, label_smoothing=0.3)
    torch.testing.assert_close(smoothed, objectives.DPO(beta=0.2)(scored(tokens)).loss.mean())
    ours = objectives.CDPO(beta=0.2, label_smoothing=0.3)(scored(tokens)).loss.mean()
    assert abs(ours - smoothed) > 0.01


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
