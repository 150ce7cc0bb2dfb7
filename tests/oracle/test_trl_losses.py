"""Our losses, gradients and rewards against those of TRL 1.16, which are methods of its trainers.

Each method is called unbound on a stand-in that holds the few attributes it reads, and on a stand-in model
that returns log-probs made up here: no weights, no tokens, no trainer.

Where TRL differs from us by convention:
- IPO: always averages over tokens, which is our ``normalize="mean"``; it logs the reward of the sums,
  βa(y), where we log that of the averages, which its loss compares.
- f-DPO: logs βa(y) whatever the divergence, where we log βf′(u). ``f_alpha_divergence_coef`` is 1 − α.
- Robust: its ``label_smoothing`` is our ``flip_rate``. It has no conservative DPO and no DPOP; its
  conservative loss is checked by that of CPO, on the margin of the log-ratios.
- SimPO: the same γ as ours, divided by β and multiplied again inside. ORPO: its ``beta`` is our ``weight``;
  it returns the odds-ratio term alone with the sign turned; its NLL runs over the prompt too, ours over the
  response.
- Two equal rewards count as wrong in its accuracy and as one half in ours.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from pl_prefopt import objectives
from pl_prefopt.types import ResponseLogProbs, ScoredBatch, ViewLogProbs

pytest.importorskip("trl")
pytestmark = pytest.mark.oracle

PAIRS, TOKENS = 6, 9
UNUSED = {"ld_alpha": None, "use_weighting": False}
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


@pytest.fixture
def tokens():
    """Log-probs per token [2 * PAIRS, TOKENS], chosen first as TRL has them, with ragged lengths."""
    torch.manual_seed(3)
    lengths = torch.randint(1, TOKENS + 1, (2 * PAIRS,))
    mask = torch.arange(TOKENS) < lengths[:, None]
    policy = torch.where(mask, -2 * torch.rand(2 * PAIRS, TOKENS), 0.0).requires_grad_()
    reference = torch.where(mask, -2 * torch.rand(2 * PAIRS, TOKENS), 0.0).sum(dim=1)
    return SimpleNamespace(policy=policy, reference=reference, mask=mask, lengths=lengths)


def paired(values):
    """From TRL's [chosen; rejected] to ours, [PAIRS, 2]."""
    return torch.stack(values.chunk(2), dim=1)


def scored(tokens, views=None):
    """The same numbers as one of our batches, with gradient."""
    policy = ResponseLogProbs(sum=paired(tokens.policy.sum(dim=1)), length=paired(tokens.lengths))
    return ScoredBatch(
        policy=policy,
        references=paired(tokens.reference)[None],
        scores=torch.tensor([[1.0, 0.0]]).expand(PAIRS, 2),
        present=torch.ones(PAIRS, 2, dtype=torch.bool),
        graded=torch.zeros(PAIRS, dtype=torch.bool),
        views=views or {},
    )


def outputs(tokens, collisions=None):
    unused = torch.zeros_like(tokens.policy)
    return SimpleNamespace(
        log_probs=tokens.policy,
        entropy=unused,
        mean_logits=unused,
        is_top1=unused.bool(),
        log_sum_sq_probs=collisions,
    )


def padded_mask(tokens):
    """TRL's completion mask has one position more, the prompt's, which it cuts off."""
    return torch.cat([torch.zeros(len(tokens.mask), 1), tokens.mask], dim=1).long()


def trl_dpo(tokens, loss_type, log_sum_sq_probs=None, **settings):
    """Loss, and the means that TRL logs."""
    from trl.trainer.dpo_trainer import DPOTrainer

    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        loss_types=[loss_type],
        loss_weights=[1.0],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{"f_divergence_type": "reverse_kl", "label_smoothing": 0.0, **UNUSED, **settings},
    )
    mask = padded_mask(tokens)
    chosen, rejected = tokens.reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(stand_in, lambda **_: outputs(tokens, log_sum_sq_probs), inputs, False)
    return loss, {name: values[0] for name, values in stand_in._metrics["train"].items()}


def gradient(loss, tokens):
    return torch.autograd.grad(loss, tokens.policy, retain_graph=True)[0]


def assert_same_loss(ours, theirs, tokens):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    mine, its = gradient(ours, tokens), gradient(theirs, tokens)
    assert its.abs().max() > 1e-4
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-7)


PAIRWISE = {
    "dpo": (objectives.DPO(beta=0.2), "sigmoid", {"beta": 0.2}),
    "ipo": (objectives.IPO(beta=0.2, normalize="mean"), "ipo", {"beta": 0.2}),
    "hinge": (objectives.Hinge(beta=0.2), "hinge", {"beta": 0.2}),
    "robust": (
        objectives.RobustDPO(beta=0.2, flip_rate=0.3),
        "robust",
        {"beta": 0.2, "label_smoothing": 0.3},
    ),
    "f_reverse_kl": (
        objectives.FDPO(beta=0.2, divergence=objectives.ReverseKL()),
        "sigmoid",
        {"beta": 0.2, "f_divergence_type": "reverse_kl"},
    ),
    "f_forward_kl": (
        objectives.FDPO(beta=0.2, divergence=objectives.ForwardKL()),
        "sigmoid",
        {"beta": 0.2, "f_divergence_type": "forward_kl"},
    ),
    "f_js": (
        objectives.FDPO(beta=0.2, divergence=objectives.JensenShannon()),
        "sigmoid",
        {"beta": 0.2, "f_divergence_type": "js_divergence"},
    ),
    "f_alpha": (
        objectives.FDPO(beta=0.2, divergence=objectives.AlphaDivergence(alpha=0.3)),
        "sigmoid",
        {"beta": 0.2, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairwise_loss_and_gradient(tokens, name):
    objective, loss_type, settings = PAIRWISE[name]
    ours = objective(scored(tokens))
    theirs, _ = trl_dpo(tokens, loss_type, **settings)
    assert ours.counted.all()
    assert_same_loss(ours.loss.mean(), theirs, tokens)


@pytest.mark.parametrize("name", ["dpo", "hinge", "robust"])
def test_pairwise_rewards(tokens, name):
    objective, loss_type, settings = PAIRWISE[name]
    ours = objective(scored(tokens)).reward
    _, logged = trl_dpo(tokens, loss_type, **settings)
    assert ours[:, 0].mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-5)
    assert ours[:, 1].mean().item() == pytest.approx(logged["rewards/rejected"], rel=1e-5)
    assert (ours[:, 0] > ours[:, 1]).float().mean().item() == pytest.approx(logged["rewards/accuracies"])


def cpo_loss(chosen, rejected, **settings):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    return CPOTrainer.cpo_loss(
        SimpleNamespace(alpha=0.0, accelerator=ACCELERATOR, **settings), chosen, rejected
    )


def test_conservative_dpo(tokens):
    # CPO's loss is DPO's with the reference taken out; on log-ratios it is DPO's.
    chosen, rejected = (tokens.policy.sum(dim=1) - tokens.reference).chunk(2)
    theirs, *rewards = cpo_loss(chosen, rejected, loss_type="sigmoid", beta=0.2, label_smoothing=0.3)
    ours = objectives.DPO(beta=0.2, label_smoothing=0.3)(scored(tokens))
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.reward, torch.stack(rewards, dim=1))
    assert_same_loss(ours.loss.mean(), theirs.mean(), tokens)


def test_simpo(tokens):
    chosen, rejected = (tokens.policy.sum(dim=1) / tokens.lengths).chunk(2)
    theirs, *rewards = cpo_loss(
        chosen, rejected, loss_type="simpo", beta=2.5, simpo_gamma=1.4, label_smoothing=0.0
    )
    ours = objectives.SimPO(beta=2.5, gamma=1.4)(scored(tokens))
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.reward, torch.stack(rewards, dim=1))
    assert_same_loss(ours.loss.mean(), theirs.mean(), tokens)


def test_orpo(tokens):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    chosen, rejected = (tokens.policy.sum(dim=1) / tokens.lengths).chunk(2)
    stand_in = SimpleNamespace(beta=0.3, accelerator=ACCELERATOR)
    ratio_term, *rewards = ORPOTrainer.odds_ratio_loss(stand_in, chosen, rejected)[:3]
    theirs = -chosen - ratio_term  # the NLL is written out here: TRL takes it over prompt and response
    ours = objectives.ORPO(weight=0.3)(scored(tokens))
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.reward, torch.stack(rewards, dim=1))
    assert_same_loss(ours.loss.mean(), theirs.mean(), tokens)


@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_kto(tokens, shift):
    from trl.trainer.kto_trainer import KTOTrainer

    torch.manual_seed(4)
    policy_kl, reference_kl = torch.randn(2 * PAIRS) + shift, torch.randn(2 * PAIRS)
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: policy_kl,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = padded_mask(tokens)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.arange(2 * PAIRS) < PAIRS,  # [desirable; undesirable], as `paired` expects
        "ref_logps": tokens.reference,
        "ref_KL_logps": reference_kl,
    }
    theirs = KTOTrainer._compute_loss(stand_in, lambda **_: outputs(tokens), inputs, False)
    logged = stand_in._metrics["train"]

    view = ViewLogProbs(
        policy=ResponseLogProbs(sum=paired(policy_kl), length=torch.ones(PAIRS, 2, dtype=torch.int64)),
        references=paired(reference_kl)[None],
        present=torch.ones(PAIRS, 2, dtype=torch.bool),
    )
    objective = objectives.KTO(beta=0.2, desirable_weight=1.3, undesirable_weight=0.8)
    ours = objective(scored(tokens, views={"mismatched": view}))
    assert ours.stats["kl"].item() == pytest.approx(logged["kl"][0], abs=1e-6)
    assert (ours.stats["kl"].item() > 0) == (shift > 0)
    assert ours.reward[:, 0].mean().item() == pytest.approx(logged["rewards/chosen"][0], rel=1e-5)
    assert ours.reward[:, 1].mean().item() == pytest.approx(logged["rewards/rejected"][0], rel=1e-5)
    assert_same_loss(ours.loss.mean(), theirs, tokens)
