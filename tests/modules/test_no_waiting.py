"""A training step waits for the device at no point, and a batch moves to it by one copy.

The meta device has no values: whatever reads one raises, as a GPU would make it wait.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch.utils._python_dispatch import TorchDispatchMode

from pl_prefopt.data.worst_case_batches import full_batch
from pl_prefopt.metrics import build_suite
from pl_prefopt.modules import (
    DPOModule,
    MPPOModule,
    MRPOModule,
    ReferenceFreeModule,
    RewardModule,
    SrModule,
    TokenLevelModule,
)
from pl_prefopt.modules import reward_outputs as reward_outputs_module
from pl_prefopt.objectives import DPO, KTO, MRPO, TDPO2, BradleyTerry, PairMNM, SimPO, SrDPO
from pl_prefopt.policies import sketch_policy
from pl_prefopt.references import ReferenceAnswers
from pl_prefopt.scoring import HiddenStates, LogProbs
from pl_prefopt.types import together
from tests.runs import lora_spec

FAMILIES = {
    "DPO": (DPOModule, DPO),
    "KTO": (DPOModule, KTO),
    "MPPO": (MPPOModule, PairMNM),
    "MRPO": (MRPOModule, MRPO),
    "SimPO": (ReferenceFreeModule, SimPO),
    "Sr-DPO": (SrModule, SrDPO),
    "TDPO": (TokenLevelModule, TDPO2),
    "reward": (RewardModule, BradleyTerry),
}


class PolicyAsReference:
    """Answers for references that share the policy's model."""

    def __init__(self, count):
        self.num_references = count

    @torch.no_grad()
    def answer(self, host, batch):
        read, count = host.scorer.read, self.num_references
        sums = {
            view: host.scorer(host.policy, tree).sum.expand(count, -1, -1)
            for view, tree in batch.trees.items()
        }
        if host.reference_tokens is None:
            return ReferenceAnswers(log_probs=sums)
        tokens, states = read(host.policy, batch.trees["plain"], [LogProbs(), HiddenStates()])
        vocabulary = host.scorer.vocabulary(host.policy, states, nullcontext)
        return ReferenceAnswers(log_probs=sums, tokens=tokens.unsqueeze(0), vocabularies=(vocabulary,))


def on_meta(module):
    """Put a module's model on the meta device, as training in bfloat16 has it."""
    plugin = HalfPrecision("bf16-true")
    module.policy = sketch_policy(module.policy_spec)
    with torch.device("meta"):
        module.heads = module.build_heads(module.policy)
    plugin.convert_module(module)
    module.scorer.presume(module.policy, torch.device("cpu"))
    references, views = module.needs.min_references, module.objective.rewarded_views
    suite = build_suite("train", references, views, (), log_probs=module.reads_log_probs)
    module.suites, module.set_suites = torch.nn.ModuleDict({"train_stage": suite}).to("meta"), {}
    module._references = PolicyAsReference(references) if references else None
    steps = SimpleNamespace(_should_accumulate=lambda: False)
    module._trainer = SimpleNamespace(
        precision_plugin=plugin,
        world_size=1,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(epoch_loop=steps),
        gradient_clip_val=1.0,
        gradient_clip_algorithm=None,
        state=SimpleNamespace(fn="fit"),
    )
    module._mean.start(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family_reads_no_value_and_computes_its_loss_in_float32(
    tiny_model, monkeypatch, family
):
    # Autocast has no meta device.
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: "meta" not in kind and asked(*kind))
    monkeypatch.setattr(reward_outputs_module.torch, "autocast", lambda *_, **__: nullcontext())
    kind, objective = FAMILIES[family]
    module = kind(lora_spec(tiny_model), objective(), master_weights=True)
    on_meta(module)
    views = list(module.views)
    batch = together(full_batch(rows=2, responses=2, prompt=8, response=6, views=views)).to("meta")
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    of_policy = {weight.dtype for name, weight in trained.items() if name.startswith("policy.")}
    assert of_policy == {torch.bfloat16}
    optimizer = module.build_optimizer(trained)
    with module.trainer.precision_plugin.forward_context():
        loss = module.training_step(batch, 0)
    if family != "reward":  # whose head leaves float32 on the meta device, and there only
        assert loss.dtype == torch.float32
    loss.backward()
    module.on_after_backward()
    module.configure_gradient_clipping(optimizer, 1.0, None)
    optimizer.step()
    optimizer.zero_grad()


class Copies(TorchDispatchMode):
    """Counts copies to the meta device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.is_meta:
            self.count += 1
        return result


def test_a_batch_in_one_piece_of_memory_moves_by_one_copy():
    batch = full_batch(rows=3, responses=2, prompt=5, response=7, views=[])
    batch.trees["again"] = batch.trees["plain"]
    batch.columns |= {
        "number": torch.tensor([0.5, torch.nan, 2.0], dtype=torch.float64),
        "text": ("a", "b", None),
    }
    batch.scores = torch.tensor([[0.1, torch.nan]] * 3)
    whole = together(batch)
    with Copies() as copies:
        moved = whole.to("meta")
    assert copies.count == 1
    assert moved.numbers == batch.numbers == (0, 1, 2)
    assert moved.trees["plain"].response_sizes == batch.trees["plain"].response_sizes
    back = whole.to("cpu")
    for one, its in ((whole, batch), (back, batch)):
        assert one.columns["text"] == its.columns["text"]
        for name in ("index", "present", "scores", "graded"):
            torch.testing.assert_close(getattr(one, name), getattr(its, name), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(one.columns["number"], its.columns["number"], equal_nan=True)
        for view, tree in its.trees.items():
            for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "counted_mask"):
                assert torch.equal(getattr(one.trees[view], name), getattr(tree, name))
    # A tensor from elsewhere is moved all the same.
    whole.scores = whole.scores.clone()
    with Copies() as copies:
        assert whole.to("meta").scores.is_meta
    assert copies.count > 1
