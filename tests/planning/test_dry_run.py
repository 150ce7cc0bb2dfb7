"""A dry run has the memory footprint of a real step."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision
from torch._subclasses.fake_tensor import FakeTensorMode

from pl_prefopt.data.worst_case_batches import full_batch
from pl_prefopt.modules import DPOModule, ReferenceFreeModule
from pl_prefopt.objectives import DPO, KTO
from pl_prefopt.planning import DryRun, MemoryTracker, Sharing
from pl_prefopt.planning.fake_tensors import untraced, with_fake_values, with_fake_weights
from pl_prefopt.policies import FourBit, PolicySpec, build_policy, sketch_policy
from pl_prefopt.references import (
    AdapterOff,
    Footprint,
    FrozenModel,
    InitialPolicy,
    NamedAdapter,
    PrecomputedTable,
)
from tests.cli import plugins
from tests.cli.plugins import defined
from tests.runs import LORA

STEP = "forward and backward pass"
REFERENCE = "scoring with the references"
BEFORE = "scoring all rows with the references, before training"
LONG = full_batch(rows=4, responses=2, prompt=64, response=32, views=[])
# A dry run can't see that there is no padding, where transformers omits the mask.
LONG.trees["plain"].prompt_mask[0, -1] = False
LONG.trees["plain"] = dataclasses.replace(LONG.trees["plain"], shared_prefix=-1)
SHORT = full_batch(rows=1, responses=2, prompt=4, response=4, views=[])


def adamw(weights):
    return torch.optim.AdamW(weights, lr=1e-3)


def make_module(name, *, optimizer=adamw, layout="auto", objective=None, **policy):
    spec = PolicySpec(name=str(name), **policy)
    return DPOModule(spec, objective or DPO(beta=0.1), optimizer=optimizer, layout=layout)


def plan(module, batch=SHORT, **settings):
    return DryRun(module=module, batch=batch, on_cpu=True, **settings).run()


def storages(tensors):
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def size(tensors):
    return sum(storages(tensors).values())


POLICIES = {
    "full": {},
    "bfloat16": {"dtype": "bfloat16"},
    "lora": {"lora": LORA},
    "lora on bfloat16": {"lora": LORA, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_weights_gradients_and_states_are_those_of_the_real_model(tiny_model, policy):
    planned = plan(make_module(tiny_model, **policy)).phases["optimiser step"]
    real = build_policy(PolicySpec(name=str(tiny_model), **policy))
    trained = [weight for weight in real.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer = adamw(trained)
    optimizer.step()
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert planned["weights"] == size([*real.parameters(), *real.buffers()])
    assert planned["gradients"] == size(weight.grad for weight in trained)
    # The step itself works weight by weight, with a copy or two of the largest.
    largest = max(weight.nbytes for weight in trained)
    assert size(states) <= planned["optimiser states"] <= size(states) + 3 * largest


def test_fused_kernels_keep_less(tiny_model):
    """One SiLU less per layer, float32 [tokens, intermediate size]; compiled layers are planned as others."""
    plain, fused = (
        plan(make_module(tiny_model, lora=LORA, compile="layers", **settings), LONG).phases[STEP]
        for settings in ({}, {"kernels": "liger"})
    )
    tokens, wide = 4 * (64 + 2 * 32), 64
    assert plain["activations"] - fused["activations"] >= 2 * 4 * tokens * wide
    assert plain["weights"] == fused["weights"]


def test_four_bit_weights_are_as_large_as_those_of_bitsandbytes(tiny_model):
    pytest.importorskip("bitsandbytes")
    policy = {"lora": LORA, "four_bit": FourBit()}
    planned = plan(make_module(tiny_model, **policy))
    real = build_policy(PolicySpec(name=str(tiny_model), **policy))
    states = [weight.quant_state for weight in real.parameters() if hasattr(weight, "quant_state")]
    held = [*real.parameters(), *real.buffers()]
    for state in states:
        held += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert states
    assert planned.phases["optimiser step"]["weights"] == pytest.approx(size(held), rel=0.02)
    whole = sum(
        weight.numel() for weight in build_policy(PolicySpec(name=str(tiny_model), lora=LORA)).parameters()
    )
    assert planned.parameters == whole


def kept_by_a_step(module, batch):
    """The bytes that a forward pass leaves, the most in the backward pass, and those saved for it."""
    saved, tracker = [], MemoryTracker(lambda tensor: "all")

    def pack(tensor):
        saved.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    with tracker:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scored = module.score(batch)
        kept = {place._cdata: place.nbytes() for place in (found() for found in saved) if place is not None}
        weights = {tensor.untyped_storage()._cdata for tensor in held_by(module.policy)}
        left = tracker.parts["all"]
        with tracker.phase("backward"):
            scored.policy.sum.sum().backward()
    return left, tracker.peaks["backward"]["all"], sum(kept[place] for place in kept.keys() - weights)


def held_by(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_dry_run_keeps_to_the_byte_what_a_real_pass_keeps(tiny_model, policy, layout):
    real = make_module(tiny_model, layout=layout, **policy)
    real.policy = build_policy(real.policy_spec)
    real.scorer.presume(real.policy, torch.device("cpu"))
    left, most, saved = kept_by_a_step(real, LONG)
    # Beside what is saved there are positions, and what the head's pieces start from.
    assert saved <= left <= 1.08 * saved

    sketch = make_module(tiny_model, layout=layout, **policy)
    sketch.policy = sketch_policy(sketch.policy_spec)
    sketch.scorer.presume(sketch.policy, torch.device("cpu"))
    with FakeTensorMode(), untraced():
        with_fake_weights(sketch.policy)
        assert kept_by_a_step(sketch, with_fake_values(LONG)) == (left, most, saved)


def test_what_saves_activations_does(tiny_model):
    whole = plan(make_module(tiny_model, lora=LORA), LONG)
    checkpointed = plan(make_module(tiny_model, lora=LORA, gradient_checkpointing=True), LONG)
    plain = plan(make_module(tiny_model, lora=LORA, layout="plain"), LONG)
    assert checkpointed.phases[STEP]["activations"] < 0.7 * whole.phases[STEP]["activations"]
    assert plain.phases[STEP]["activations"] > 1.2 * whole.phases[STEP]["activations"]
    eager = plan(make_module(tiny_model, lora=LORA, attn_implementation="eager"), LONG)
    masks = "attention masks and scores"
    assert eager.phases[STEP][masks] > 3 * whole.phases[STEP][masks]


def test_trees_have_no_mask_on_a_gpu_where_the_kernel_computes_in_the_runs_dtype(tiny_model):
    """Keys and values are stored once per response, and with masked SDPA once per head of queries."""
    masks = "attention masks and scores"
    steps = {
        (name, precision): DryRun(
            module=make_module(tiny_model, lora=LORA, attn_implementation=name),
            batch=LONG,
            precision=MixedPrecision(precision, "cpu") if precision else Precision(),
        )
        .run()
        .phases[STEP]
        for name, precision in (("auto", "bf16-mixed"), ("sdpa", "bf16-mixed"), ("auto", None))
    }
    auto, sdpa, single = steps.values()
    assert auto.get(masks, 0) == 0
    assert min(sdpa[masks], single[masks]) > 0
    tokens, read, layers, head_size = 511, 4 * 2 * (64 + 32) - 2, 2, 8
    elements = (4 * tokens - 2 * read) * head_size * layers * 2  # of keys and values: 2 heads, repeated to 4
    assert sdpa["activations"] - auto["activations"] == pytest.approx(2 * elements, abs=1024)


def test_precision_changes_activations_and_weights(tiny_model):
    single = plan(make_module(tiny_model), LONG)
    mixed = plan(make_module(tiny_model), LONG, precision=MixedPrecision("bf16-mixed", "cpu"))
    half = plan(make_module(tiny_model), LONG, precision=HalfPrecision("bf16-true"))
    assert mixed.phases[STEP]["weights"] == single.phases[STEP]["weights"]
    assert mixed.phases[STEP]["weights cast for computing"] > 0
    assert mixed.phases[STEP]["activations"] < 0.85 * single.phases[STEP]["activations"]
    assert half.phases[STEP]["weights"] == pytest.approx(single.phases[STEP]["weights"] / 2, rel=0.01)


def test_master_weights_and_their_gradients_are_in_float32(tiny_model):
    module = make_module(tiny_model)
    module.master_weights = True
    planned = plan(module, precision=HalfPrecision("bf16-true"))
    step, trained = planned.phases["optimiser step"], planned.trained
    assert step["weights"] == pytest.approx(2 * trained, rel=0.02)
    assert step["gradients"] == 4 * trained
    # A copy and two moments, and the step's temporaries of one weight at a time.
    assert 12 * trained <= step["optimiser states"] <= 16 * trained


def test_a_fused_step_has_no_temporaries(tiny_model):
    fused = make_module(tiny_model, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-3, fused=True))
    planned = DryRun(module=fused, batch=SHORT).run()
    assert planned.phases["optimiser step"]["optimiser states"] == pytest.approx(
        8 * planned.trained, rel=0.01
    )


def test_references_hold_what_they_say(tiny_model):
    spec = PolicySpec(name=str(tiny_model))
    weights = size(build_policy(spec).parameters())

    def models(**references):
        phases = plan(make_module(tiny_model, lora=LORA), **references).phases
        return {name: parts.get("reference models", 0) for name, parts in phases.items()}

    beside = models(references=[FrozenModel(spec).footprint(spec)])
    assert weights <= beside[STEP] == beside[REFERENCE] <= weights + 1024
    offloaded = models(references=[FrozenModel(spec, offload=True).footprint(spec)])
    assert offloaded[STEP] == 0 < weights <= offloaded[REFERENCE]
    once = models(precomputed=[FrozenModel(spec).footprint(spec)])
    assert once[STEP] == once[REFERENCE] == 0 < weights <= once[BEFORE]
    elsewhere = FrozenModel(spec, device="cuda:1").footprint(spec)
    assert elsewhere == PrecomputedTable("table").footprint(spec) == Footprint(scores=False)
    assert AdapterOff().footprint(spec) == Footprint()


def test_the_initial_policy_costs_a_model_only_where_all_weights_are_trained(tiny_model):
    whole, adapted = PolicySpec(name=str(tiny_model)), PolicySpec(name=str(tiny_model), lora=LORA)
    assert InitialPolicy().footprint(whole) == Footprint(model=whole, split=True)
    assert InitialPolicy().footprint(adapted) == Footprint()
    dora = PolicySpec(name=str(tiny_model), lora={**LORA, "use_dora": True})
    assert InitialPolicy().footprint(dora) == Footprint(start=True)


def test_a_second_adapter_counts_and_is_not_trained(tiny_model, tmp_path):
    build_policy(PolicySpec(name=str(tiny_model), lora=LORA)).save_pretrained(tmp_path / "adapter")
    alone = plan(make_module(tiny_model, lora=LORA))
    footprints = [
        NamedAdapter(str(tmp_path / "adapter")).footprint(PolicySpec(name=str(tiny_model), lora=LORA))
    ]
    beside = plan(make_module(tiny_model, lora=LORA), references=footprints)
    assert beside.phases[STEP]["weights"] - alone.phases[STEP]["weights"] == 4 * alone.trained
    assert beside.trained == alone.trained
    started = plan(make_module(tiny_model, adapter=str(tmp_path / "adapter")))
    assert started.trained == alone.trained


def test_a_start_that_is_kept_is_as_large_as_what_is_trained(tiny_model):
    module = make_module(tiny_model, lora={**LORA, "use_dora": True})
    footprints = [InitialPolicy().footprint(module.policy_spec)]
    trained = [weight for weight in build_policy(module.policy_spec).parameters() if weight.requires_grad]
    assert plan(module, references=footprints).phases[STEP]["reference models"] == size(trained)
    beforehand = plan(module, precomputed=footprints).phases
    assert beforehand[BEFORE]["reference models"] == size(trained)
    assert beforehand[STEP].get("reference models", 0) == 0


def test_devices_share_weights_gradients_and_states(tiny_model):
    alone = plan(make_module(tiny_model))
    ddp = plan(make_module(tiny_model), sharing=Sharing(buckets=True))
    halves = plan(make_module(tiny_model), sharing=Sharing(shards=2))
    step = "optimiser step"
    assert ddp.phases[step]["gradients sent between devices"] == alone.phases[step]["gradients"]
    for part in ("weights", "gradients"):
        assert halves.phases[step][part] == pytest.approx(alone.phases[step][part] / 2, abs=64)
    gathered = halves.phases[STEP]["layers gathered from other devices"]
    assert 0 < gathered < 3 * alone.phases[STEP]["weights"]


def test_devices_share_a_copy_of_the_policy_too_and_no_other_reference(tiny_model):
    copy = InitialPolicy().footprint(PolicySpec(name=str(tiny_model)))
    other = Footprint(model=PolicySpec(name=str(tiny_model)))
    alone = plan(make_module(tiny_model), references=[copy, other]).phases[STEP]
    bare = plan(make_module(tiny_model), sharing=Sharing(shards=2)).phases[STEP]
    halves = plan(make_module(tiny_model), references=[copy, other], sharing=Sharing(shards=2)).phases[STEP]
    assert alone["reference models"] == 2 * alone["weights"]
    assert halves["reference models"] == alone["weights"]
    assert halves["reference models, sharded"] == pytest.approx(alone["weights"] / 2, abs=64)
    gathered = "layers gathered from other devices"
    tables = 2 * 4 * build_policy(copy.model).get_input_embeddings().weight.numel()
    norm = 4 * build_policy(copy.model).config.hidden_size
    assert halves[gathered] - bare[gathered] == tables + norm


def test_optimisers_hold_what_they_keep(tiny_model):
    def states(optimizer):
        return plan(make_module(tiny_model, optimizer=optimizer))

    two = states(adamw).phases[STEP]["optimiser states"]
    assert "optimiser states" not in states(lambda weights: torch.optim.SGD(weights, lr=0.1)).phases[STEP]
    bnb = pytest.importorskip("bitsandbytes")
    paged = states(lambda weights: bnb.optim.PagedAdamW8bit(weights, lr=1e-3))
    assert paged.paged == paged.phases[STEP]["optimiser states"]
    assert paged.paged < 0.8 * two


def test_on_a_gpu_the_optimiser_holds_temporaries_of_all_weights(tiny_model):
    planned = DryRun(module=make_module(tiny_model), batch=SHORT).run()
    # Two moments and a temporary, in float32.
    states = planned.phases["optimiser step"]["optimiser states"]
    assert states == pytest.approx(3 * 4 * planned.trained, rel=0.01)


def test_gradients_that_add_up_stay_in_the_backward_pass(tiny_model):
    once = sum(plan(make_module(tiny_model)).phases[STEP].values())
    added = sum(plan(make_module(tiny_model), accumulate=True).phases[STEP].values())
    embeddings = 4 * build_policy(PolicySpec(name=str(tiny_model))).get_input_embeddings().weight.numel()
    assert added >= once + 0.9 * embeddings


def test_second_views_are_scored_too(tiny_model):
    batch = full_batch(rows=1, responses=1, prompt=4, response=4, views=[])
    batch.trees["mismatched"] = batch.trees["plain"]
    short = plan(make_module(tiny_model, lora=LORA, objective=KTO()), batch)
    batch.trees["mismatched"] = full_batch(rows=1, responses=1, prompt=128, response=64, views=[]).trees[
        "plain"
    ]
    long = plan(make_module(tiny_model, lora=LORA, objective=KTO()), batch)
    assert sum(long.phases[STEP].values()) > sum(short.phases[STEP].values())


def test_hidden_states_of_references_and_heads_count(tiny_model):
    """Divergences hold hidden states and two stored gradients per token; a head holds its weights."""
    tokens = 4 * 2 * 32
    size = build_policy(PolicySpec(name=str(tiny_model))).config.hidden_size
    plain, divergent = (
        plan(make_module(tiny_model, lora=LORA, objective=objective), LONG, references=[Footprint()])
        for objective in (DPO(), defined(plugins.TDPO2, "TDPO2")())
    )
    more = sum(divergent.phases[STEP].values()) - sum(plain.phases[STEP].values())
    assert more >= 4 * 2 * tokens * size
    module = ReferenceFreeModule(
        PolicySpec(name=str(tiny_model), lora=LORA), defined(plugins.BRADLEY_TERRY, "BradleyTerry")()
    )
    without = plan(make_module(tiny_model, lora=LORA))
    assert plan(module).trained == without.trained + size
