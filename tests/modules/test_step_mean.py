"""The gradient of every optimiser step is the mean over its prompts; a resumed run takes the same steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch.utils.data import DataLoader, IterableDataset

from pl_prefopt.modules import MPPOModule, ReferenceFreeModule
from pl_prefopt.objectives import PairSingle, SimPO
from pl_prefopt.policies import PolicySpec
from tests.modules.mean_gradients import MeanGradients
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows

TIED = {"prompt": "Say maybe.", "responses": ["Maybe.", "Yes or no?"], "scores": [2, 2]}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def fit(tiny_model, tmp_path, rows, *callbacks, data=None, loader=None, checkpoint=None, **settings):
    """Train SimPO, or MPPO where a checkpoint must keep random draws; return the steps."""
    torch.manual_seed(0)
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO(), optimizer=sgd)
    datamodule = make_datamodule(tmp_path, [TIED, *scored_rows(rows - 1)], **(data or {}))
    if loader is not None:
        datamodule.train_dataloader = lambda: loader(datamodule.datasets["train"])
    watch = MeanGradients()
    trainer = make_trainer(tmp_path, watch, *callbacks, limit_val_batches=0, **settings)
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    assert trainer.global_step == len(watch.worst)
    return watch


class Stream(IterableDataset):
    """Batches of unequal sizes, nobody knows how many."""

    def __init__(self, rows):
        self._rows = rows

    def __iter__(self):
        for numbers in ([0, 1, 2], [3], [4, 5], [6, 7, 8], [9]):
            yield self._rows.batch(numbers)


def plain(rows):
    return DataLoader(rows, batch_size=None, sampler=[[0, 1, 2, 3], [4, 5], [6, 7, 8], [9]])


def stream(rows):
    return DataLoader(Stream(rows), batch_size=None)


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (6, {"accumulate_grad_batches": 4, "data": {"batch_size": 1}}, 2),
        (8, {"accumulate_grad_batches": 3, "data": {"batch_size": 3}}, 1),
        (7, {"accumulate_grad_batches": 3, "max_epochs": 2}, 4),
        (9, {"accumulate_grad_batches": 2, "limit_train_batches": 3}, 2),
        (9, {"accumulate_grad_batches": 2, "max_steps": 4, "max_epochs": -1}, 4),
        (9, {"accumulate_grad_batches": 2, "data": {"batch_size": 4, "max_tokens_per_batch": 150}}, None),
        (10, {"accumulate_grad_batches": 3, "loader": plain}, 2),
        (10, {"accumulate_grad_batches": 2, "loader": stream}, 3),
        (10, {"loader": plain, "gradient_clip_val": 0.1}, 4),
    ],
)
def test_a_step_is_the_mean_over_its_prompts(tiny_model, tmp_path, rows, settings, steps):
    watch = fit(tiny_model, tmp_path, rows, **settings)
    assert max(watch.worst) < 1e-5
    assert steps is None or len(watch.worst) == steps
    assert len({len(prompts) for (prompts,) in watch.prompts}) > 1 or steps == 1


def test_accumulation_may_change_between_epochs(tiny_model, tmp_path):
    schedule = GradientAccumulationScheduler({0: 1, 1: 3})
    watch = fit(tiny_model, tmp_path, 7, schedule, max_epochs=2)
    assert [sum(len(rank) for rank in step) for step in watch.prompts][-2:] in ([6, 1], [5, 2])
    assert len(watch.worst) == 4 + 2
    assert max(watch.worst) < 1e-5


class Norms(Callback):
    """Keeps the gradient's norm as the optimiser gets it."""

    def __init__(self):
        self.seen = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
        if grads:
            self.seen.append(torch.nn.utils.get_total_norm(grads).item())


def test_clipping_sees_the_mean(tiny_model, tmp_path):
    sizes = {}
    for limit in (None, 2.0):
        norms = Norms()
        settings = {"accumulate_grad_batches": 8, "max_epochs": 2, "data": {"batch_size": 1}}
        fit(tiny_model, tmp_path, 3, norms, gradient_clip_val=limit, **settings)
        sizes[limit] = norms.seen[0]  # before the second epoch the first one's gradient is still there
    # Three of eight batches: 3/8 of the mean is below the limit.
    assert 2.0 < sizes[None] < 2.0 * 8 / 3
    assert sizes[2.0] == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    "plugin", [MixedPrecision("bf16-mixed", "cpu"), Precision()], ids=["mixed", "single"]
)
def test_gradients_of_a_fused_optimiser_are_clipped_as_torch_clips(plugin):
    module = ReferenceFreeModule(PolicySpec(name="none"), SimPO())
    module._trainer = SimpleNamespace(
        precision_plugin=plugin, gradient_clip_val=None, gradient_clip_algorithm=None
    )
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 5)]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for algorithm, clip in (
        (None, torch.nn.utils.clip_grad_norm_),
        ("norm", torch.nn.utils.clip_grad_norm_),
        ("value", torch.nn.utils.clip_grad_value_),
    ):
        found = [torch.arange(1.0, len(weight) + 1) for weight in weights]
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient.clone()
        clip(weights, 0.5)
        wanted = [weight.grad for weight in weights]
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient
        module.configure_gradient_clipping(optimizer, 0.5, algorithm)
        assert all(torch.equal(weight.grad, its) for weight, its in zip(weights, wanted, strict=True))
    module.configure_gradient_clipping(optimizer, None, None)
    assert torch.equal(weights[0].grad, wanted[0])


class Rows(Callback):
    """Keeps the rows of each batch by the batch's number; saves after each, and after each validation."""

    def __init__(self, folder=None):
        self.seen, self._folder = {}, folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.seen[done] = batch.index.tolist()
        if self._folder:
            trainer.save_checkpoint(self._folder / f"batch {done}.ckpt")

    def on_validation_end(self, trainer, module):
        if self._folder:
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            trainer.save_checkpoint(self._folder / f"validation {done}.ckpt")


def fit_with_draws(tiny_model, folder, rows, *, checkpoint=None, **settings):
    torch.manual_seed(0)
    module = MPPOModule(lora_spec(tiny_model), PairSingle(), optimizer=sgd)
    settings = {"accumulate_grad_batches": 3, "val_check_interval": 2, "max_epochs": 2, **settings}
    trainer = make_trainer(folder, rows, **settings)
    trainer.fit(module, make_datamodule(folder, scored_rows(7), batch_size=1), ckpt_path=checkpoint)
    weights = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    return weights, rows.seen, (trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, tmp_path_factory):
    """A run of two epochs of seven batches, saved everywhere."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, fit_with_draws(tiny_model, folder, Rows(folder))


@pytest.mark.parametrize(
    ("checkpoint", "begins"),
    [
        ("batch 2", 1),
        ("batch 5", 4),
        ("batch 6", 7),
        ("batch 8", 8),
        ("batch 11", 11),
        ("validation 2", 1),
        ("validation 4", 4),
        ("validation 6", 7),
    ],
)
def test_a_checkpoint_amid_a_step_begins_it_anew(tiny_model, tmp_path, uninterrupted, checkpoint, begins):
    folder, (weights, rows, counts) = uninterrupted
    path = folder / f"{checkpoint}.ckpt"
    resumed, again, counted = fit_with_draws(tiny_model, tmp_path, Rows(), checkpoint=path)
    assert again == {number: batch for number, batch in rows.items() if number >= begins}
    assert counted == counts
    for name, weight in weights.items():
        assert torch.equal(resumed[name], weight), name


def test_a_loader_that_cannot_go_back_is_told(tiny_model, tmp_path):
    datamodule = make_datamodule(tmp_path, scored_rows(10), tokenizer=str(tiny_model))
    datamodule.setup("fit")
    dataset = datamodule.datasets["train"]

    def go(callback, **settings):
        module = ReferenceFreeModule(lora_spec(tiny_model), SimPO(), optimizer=sgd)
        make_trainer(tmp_path, callback, accumulate_grad_batches=3).fit(module, plain(dataset), **settings)

    go(Rows(tmp_path))
    watch = MeanGradients(dataset)
    with pytest.warns(
        UserWarning, match="saved 2 batches after an optimiser step, and their gradients are not"
    ):
        go(watch, ckpt_path=tmp_path / "batch 2.ckpt")
    # A plain loader begins at its first batch again, which completes the window alone.
    assert watch.prompts == [[[0, 1, 2, 3]], [[4, 5]]]
    assert max(watch.worst) < 1e-5
