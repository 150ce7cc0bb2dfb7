"""Every attention, head and kind of layer gives the log-probs and gradients of one row per response."""

from __future__ import annotations

import dataclasses

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


def policy_of(spec, device):
    """A policy in training, whose adapter does something, always the same."""
    torch.manual_seed(0)
    policy = with_fast_layers(build_policy(spec), spec).to(device).train()
    for name, weight in policy.named_parameters():
        if "lora_B" in name:  # which start at 0
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator(weight.device).manual_seed(1))
    return policy


def results(spec, tree, layout, head="chunked"):
    """Log-probs and the gradients of the adapter."""
    policy, scorer = policy_of(spec, tree.prompt_ids.device), Scorer(layout, head)
    scored = scorer(policy, tree).sum
    if head == "fused":
        assert isinstance(scorer._head, FusedHead)
    if layout == "tree":
        assert scorer.attention == expected_attention(spec, tree.prompt_ids.device)
    scored.sum().backward()
    gradients = [weight.grad.float().flatten() for weight in policy.parameters() if weight.grad is not None]
    return scored.detach().float(), torch.cat(gradients)


def expected_attention(spec, device):
    if spec.attn_implementation != "auto":
        return spec.attn_implementation
    if device.type == "cpu":
        return "sdpa"
    return "flex_attention" if spec.dtype == "float32" else "tree_varlen"


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def spec_of(model, dtype="float32", attention="sdpa", **settings):
    return PolicySpec(
        name=str(model), dtype=dtype, attn_implementation=attention, lora=dict(LORA), **settings
    )


def check(spec, tree, model, dtype, head="chunked"):
    """Compare with separate rows in float32; in less, the error may be thrice that of separate rows."""
    exact = results(spec_of(model), tree, "plain")
    found = results(spec, tree, "auto" if head == "fused" else "tree", head)
    usual = results(spec_of(model, dtype), tree, "plain")
    for mine, theirs, best in zip(found, usual, exact, strict=True):
        assert relative(theirs, best) < 0.2, "the same policy"
        assert relative(mine, best) <= 3 * relative(theirs, best) + 1e-4


def skip_what_cannot_run(attention, dtype, device):
    if attention == "flex_attention" and device.type == "cpu":
        pytest.skip("flex_attention has no gradient on a CPU")
    if attention == "tree_varlen" and device.type == "cuda" and dtype == "float32":
        pytest.skip("FlashAttention computes in bfloat16 and float16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", ["gpu_model", "windowed_model"])
def test_attention(kind, tree, device, attention, dtype, request):
    skip_what_cannot_run(attention, dtype, device)
    model = request.getfixturevalue(kind)
    check(spec_of(model, dtype, attention), tree, model, dtype)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "tree_varlen"])
@pytest.mark.parametrize("kind", ["gpu_model", "windowed_model"])
def test_keys_and_values_of_an_earlier_pass(kind, tree, device, attention, request):
    """A second view of prompts with the same beginning, of which the first has none of it."""
    model, shared = request.getfixturevalue(kind), (0, 9, 30)
    skip_what_cannot_run(attention, "bfloat16", device)
    view = RandomRows(SIZES, 300).batch(range(len(SIZES))).trees["plain"].to(device)
    view.prompt_ids[:] = (view.prompt_ids + 7) % 250 + 5
    for row, count in enumerate(shared):
        view.prompt_ids[row, :count] = tree.prompt_ids[row, :count]
    view = dataclasses.replace(view, shared_with_plain=shared, shared_prefix=0)

    def scored(dtype, attention, layout):
        policy, scorer = policy_of(spec_of(model, dtype, attention), device), Scorer(layout)
        with torch.no_grad():
            cache = scorer.prefix_cache(policy, device)
            assert (cache is not None) == (layout == "tree")
            scorer(policy, tree, cache)
            return scorer(policy, view, cache).sum.float()

    exact, usual = scored("float32", "sdpa", "plain"), scored("bfloat16", "sdpa", "plain")
    found = scored("bfloat16", attention, "tree")
    assert relative(found, exact) <= 3 * relative(usual, exact) + 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_head(gpu_model, tree, device, dtype):
    pytest.importorskip("cut_cross_entropy")
    if device.type == "cpu":
        pytest.skip("the kernel of cut-cross-entropy needs a GPU")
    check(spec_of(gpu_model, dtype), tree, gpu_model, dtype, head="fused")


LAYERS = {
    "Liger": {"kernels": "liger"},
    "compiled": {"compile": "layers"},
    "Liger, compiled": {"kernels": "liger", "compile": "layers"},
    "Liger, compiled, checkpointing": {
        "kernels": "liger",
        "compile": "layers",
        "gradient_checkpointing": True,
    },
    "compiled, checkpointing": {"compile": "layers", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_layers(gpu_model, tree, device, dtype, settings):
    if "kernels" in settings:
        pytest.importorskip("liger_kernel")
    if device.type == "cpu":
        pytest.skip("tests/policies/test_fast_layers.py does this on a CPU")
    attention = "auto" if dtype == "bfloat16" else "sdpa"
    check(spec_of(gpu_model, dtype, attention, **settings), tree, gpu_model, dtype)


@pytest.mark.parametrize("gradient", [True, False], ids=["gradient", "no gradient"])
def test_flex_attention_makes_no_mask(gpu_model, device, gradient):
    """Of one row of 8,000 tokens, all scores of a layer would take 1 GiB, in every length anew."""
    if device.type == "cpu":
        pytest.skip("memory is measured on a GPU")
    policy, scorer = policy_of(spec_of(gpu_model, "bfloat16", "flex_attention"), device), Scorer("tree")
    for length in (300, 310, 333):
        sizes = [(length, [length, length])] * 8
        batch = RandomRows(sizes, 300).batch(range(8)).trees["plain"].to(device)
        with torch.set_grad_enabled(gradient):
            scored = scorer(policy, batch).sum
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            scored = scorer(policy, batch).sum
        if gradient:
            scored.sum().backward()
        assert torch.cuda.max_memory_allocated() - before < 2**29
    assert scorer.attention == "flex_attention"
