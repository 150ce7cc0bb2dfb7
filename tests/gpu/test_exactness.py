"""Every attention, head and kind of layer gives the log-probs and gradients of one row per response."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.policies import PolicySpec, build_policy, with_fast_layers
from pl_prefopt.scoring import Scorer
from pl_prefopt.scoring.heads import FusedHead
from scripts.benchmarks.rows import RandomRows
from tests.runs import LORA

ATTENTION = ("sdpa", "eager", "flex_attention", "auto", "tree_varlen")
SIZES = [(60, [20, 7, 33]), (11, [5, 40]), (35, [64, 1, 2])]


@pytest.fixture
def tree(device):
    return RandomRows(SIZES, 300).batch(range(len(SIZES))).trees["plain"].to(device)


def results(spec, tree, layout, head="chunked"):
    """Log-probs and the gradients of the adapter."""
    policy = with_fast_layers(build_policy(spec), spec).to(tree.prompt_ids.device)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:  # which start at 0
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator(weight.device).manual_seed(1))
    scorer = Scorer(layout, head)
    scored = scorer(policy, tree).sum
    if head == "fused":
        assert isinstance(scorer._head, FusedHead)
    if (spec.attn_implementation, spec.dtype, layout) == (
        "auto",
        "bfloat16",
        "tree",
    ) and tree.prompt_ids.is_cuda:
        assert scorer.attention == "tree_varlen"
    scored.sum().backward()
    gradients = [weight.grad.float().flatten() for weight in policy.parameters() if weight.grad is not None]
    return scored.detach().float(), torch.cat(gradients)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def spec_of(model, dtype="float32", attention="sdpa", **settings):
    return PolicySpec(
        name=str(model), dtype=dtype, attn_implementation=attention, lora=dict(LORA), **settings
    )


def check(spec, tree, model, dtype, head="chunked"):
    """Compare with separate rows in float32; in bfloat16 the error may be thrice that of separate rows."""
    exact = results(spec_of(model), tree, "plain")
    found = results(spec, tree, "auto" if head == "fused" else "tree", head)
    usual = results(spec_of(model, dtype), tree, "plain")
    for mine, theirs, best in zip(found, usual, exact, strict=True):
        assert relative(mine, best) <= 3 * relative(theirs, best) + 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_attention(gpu_model, tree, device, attention, dtype):
    if attention == "flex_attention" and device.type == "cpu":
        pytest.skip("flex_attention has no gradient on a CPU")
    if attention == "tree_varlen" and device.type == "cuda" and dtype == "float32":
        pytest.skip("FlashAttention computes in bfloat16 and float16")
    check(spec_of(gpu_model, dtype, attention), tree, gpu_model, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_head(gpu_model, tree, device, dtype):
    pytest.importorskip("cut_cross_entropy")
    if device.type == "cpu":
        pytest.skip("the kernel of cut-cross-entropy needs a GPU")
    check(spec_of(gpu_model, dtype), tree, gpu_model, dtype, head="fused")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{"kernels": "liger"}, {"compile": "layers"}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers(gpu_model, tree, device, dtype, settings, checkpointing):
    if "kernels" in settings:
        pytest.importorskip("liger_kernel")
    if device.type == "cpu":
        pytest.skip("tests/policies/test_fast_layers.py does this on a CPU")
    spec = spec_of(gpu_model, dtype, gradient_checkpointing=checkpointing, **settings)
    check(spec, tree, gpu_model, dtype)
