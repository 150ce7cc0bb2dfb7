"""Runs on a GPU: every file of configs/hardware, resuming, the plan of memory, waiting, sharded weights."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.data.worst_case_batches import full_batch
from pl_prefopt.modules import DPOModule, FSDP2Strategy
from pl_prefopt.objectives import DPO
from pl_prefopt.planning import DryRun
from pl_prefopt.policies import FourBit, PolicySpec
from pl_prefopt.references import AdapterOff, InitialPolicy
from scripts.benchmarks.rows import RandomRows
from tests.method_files import CONFIGS
from tests.runs import LORA, NO_TEXTS, make_datamodule, make_trainer, metrics_of, pair_rows, write_rows

HARDWARE = sorted(path for path in (CONFIGS / "hardware").glob("*.yaml") if not path.stem.endswith("cpu"))


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.stem)
def test_hardware_file_trains_on_one_device(path, prefopt, tmp_path, gpu_model, device, accelerator):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(8))
    axes = [part for name in ("base", "methods/dpo", f"hardware/{path.stem}") for part in ("-c", name)]
    given = [
        *("--data.train", data, "--data.held_out", "2", "--data.batch_size", "2", "--run_dir", "run"),
        *("--model.init_args.policy.name", str(gpu_model), "--trainer.devices", "1"),
        *("--trainer.accelerator", accelerator, "--trainer.max_steps", "3"),
        *("--trainer.accumulate_grad_batches", "1", *NO_TEXTS),
    ]
    if isinstance(settings["trainer"].get("strategy"), dict):
        given += ["--trainer.num_nodes", "1", "--trainer.strategy.init_args.data_parallel_size", "1"]
    if settings["model"]["init_args"]["policy"].get("four_bit"):
        pytest.importorskip("bitsandbytes")
        if device.type == "cpu":
            given += ["--model.init_args.optimizer", "torch.optim.AdamW"]  # the paged one needs a GPU
    prefopt("fit", *axes, *given)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert metrics_of(tmp_path / "run")["val/loss"] > 0


class Losses(Callback):
    """Keeps each step's loss."""

    def __init__(self):
        self.kept = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.kept.append(outputs["loss"].detach().clone())

    @property
    def values(self):
        return torch.stack([loss.float().cpu() for loss in self.kept])


def adamw(weights):
    return torch.optim.AdamW(weights, lr=1e-3)


def make_module(model, **settings):
    spec = {"lora": dict(LORA), **settings}
    return DPOModule(PolicySpec(name=str(model), **spec), DPO(), optimizer=adamw)


def fit(folder, model, accelerator, *callbacks, checkpoint=None, module=None, rows=12, **settings):
    torch.manual_seed(0)  # the adapter is initialised at random
    module = module or make_module(model)
    callbacks = [ReferenceEnsemble([AdapterOff()]), *callbacks]
    trainer = make_trainer(
        folder,
        *callbacks,
        **{"accelerator": accelerator, "use_distributed_sampler": False, "limit_val_batches": 0, **settings},
    )
    data = make_datamodule(folder, pair_rows(rows))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return trainer, module


def weights_of(module):
    return torch.cat([w.detach().float().cpu().flatten() for w in module.parameters() if w.requires_grad])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, gpu_model, accelerator):
    settings = {"precision": "bf16-mixed"}
    whole, again = Losses(), Losses()
    _, expected = fit(tmp_path, gpu_model, accelerator, whole, max_epochs=2, **settings)
    trainer, _ = fit(tmp_path, gpu_model, accelerator, again, max_epochs=1, **settings)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    _, found = fit(
        tmp_path, gpu_model, accelerator, again, max_epochs=2, checkpoint=tmp_path / "one.ckpt", **settings
    )
    assert len(again.kept) == len(whole.kept) == 12
    torch.testing.assert_close(again.values, whole.values, rtol=2e-2, atol=2e-3)
    # Kernels add up in any order: AdamW makes a step of the rate's size out of any noise about 0.
    moved = weights_of(expected) - weights_of(untrained(gpu_model))
    assert (weights_of(found) - weights_of(expected)).norm() <= 0.05 * moved.norm()


def untrained(model):
    torch.manual_seed(0)
    module = make_module(model)
    module.configure_model()
    return module


class Quiet(Callback):
    """Lets nothing wait for the GPU from the end of the second step to that of the last but one."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps += 1
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error" if 2 <= self.steps < 5 else "default")


def test_a_step_does_not_wait_for_the_gpu(tmp_path, gpu_model, accelerator):
    quiet = Quiet()
    try:
        fit(
            tmp_path,
            gpu_model,
            accelerator,
            quiet,
            module=make_module(gpu_model, dtype="bfloat16"),
            precision="bf16-mixed",
            gradient_clip_val=1.0,
            log_every_n_steps=100,
        )
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    assert quiet.steps == 6


def test_a_copy_of_all_weights_is_a_reference(tmp_path, gpu_model, accelerator):
    """The policy and its copy, in turn, by whatever attention the probe finds: at first they are equal."""
    losses = Losses()
    module = make_module(gpu_model, lora=None, dtype="bfloat16")
    torch.manual_seed(0)
    trainer = make_trainer(
        tmp_path,
        ReferenceEnsemble([InitialPolicy()]),
        losses,
        accelerator=accelerator,
        precision="bf16-mixed",
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=make_datamodule(tmp_path, pair_rows(12)))
    assert losses.values[0].item() == pytest.approx(math.log(2), abs=0.01)
    assert losses.values[-1] < losses.values[0]


def test_compiled_layers_over_four_bits_train_as_uncompiled_ones(tmp_path, gpu_model, accelerator, device):
    pytest.importorskip("bitsandbytes")
    found = []
    for compiled in (None, None if device.type == "cpu" else "layers"):
        losses = Losses()
        torch.manual_seed(0)
        module = make_module(gpu_model, dtype="bfloat16", four_bit=FourBit(), compile=compiled)
        fit(tmp_path, gpu_model, accelerator, losses, module=module, precision="bf16-mixed")
        found.append(losses.values)
    torch.testing.assert_close(*found, rtol=5e-2, atol=1e-2)


PLANNED = {
    "lora, bfloat16": {"dtype": "bfloat16", "lora": LORA},
    "checkpointing": {"dtype": "bfloat16", "lora": LORA, "gradient_checkpointing": True},
    "all weights": {"lora": None},
    "liger": {"dtype": "bfloat16", "lora": LORA, "kernels": "liger"},
}


@pytest.mark.parametrize("settings", PLANNED.values(), ids=PLANNED)
def test_the_plan_is_within_15_percent(large_model, device, settings):
    if "kernels" in settings:
        pytest.importorskip("liger_kernel")
        if device.type == "cpu":
            pytest.skip("Liger's kernels need a GPU")
    rows = RandomRows([(256, [128, 128])] * 4, 300).batch(range(4))
    shape = full_batch(rows=4, responses=2, prompt=256, response=128, views=[])
    precision = MixedPrecision("bf16-mixed", device.type)
    planned = DryRun(
        module=make_module(large_model, **settings),
        batch=shape,
        precision=precision,
        compute=torch.bfloat16,
        on_cpu=device.type == "cpu",
    ).run()
    measured = step_memory(make_module(large_model, **settings), rows, precision, device)
    assert planned.peak > 0
    if device.type == "cuda":
        assert planned.peak == pytest.approx(measured, rel=0.15)


def step_memory(module, batch, precision, device):
    """Return the peak of allocated memory in the second of two steps: the plan is of one in mid-training."""
    from pl_prefopt.policies import with_fast_layers
    from pl_prefopt.references import ReferenceAnswers

    module.configure_model()
    with_fast_layers(module.policy, module.policy_spec)
    module.to(device)
    optimizer = module.make_optimizer([w for w in module.parameters() if w.requires_grad])
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with precision.forward_context():
            scored = module.score_with(batch.to(device), ReferenceAnswers(log_probs={}))
        optimizer.zero_grad()
        scored.policy.sum.sum().backward()
        optimizer.step()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


@pytest.mark.parametrize("settings", [{}, {"compile": "layers"}], ids=str)
def test_weights_sharded_over_one_device_train_as_whole_ones(
    tmp_path, gpu_model, accelerator, device, settings
):
    if settings and device.type == "cpu":
        pytest.skip("compiling takes a minute on a CPU")
    whole, sharded = Losses(), Losses()
    fit(tmp_path, gpu_model, accelerator, whole, precision="bf16-mixed")
    strategy = FSDP2Strategy(data_parallel_size=1, tensor_parallel_size=1)
    trainer, _ = fit(
        tmp_path,
        gpu_model,
        accelerator,
        sharded,
        module=make_module(gpu_model, **settings),
        precision="bf16-mixed",
        strategy=strategy,
    )
    torch.testing.assert_close(sharded.values, whole.values, rtol=5e-2, atol=1e-2)
    trainer.save_checkpoint(tmp_path / "sharded.ckpt")
    assert (tmp_path / "sharded.ckpt").exists()
