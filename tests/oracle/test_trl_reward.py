"""A run of ours beside a run of TRL's RewardTrainer: same model, head, tokens and batch order.

Both train all weights, from a head with the same values, on the tokens of our renderer. Ours has one tree per
prompt, theirs one padded row per response.
"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModelForSequenceClassification

from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import RewardModule
from pl_prefopt.objectives import BradleyTerry, ColumnMargin, MarginBradleyTerry
from pl_prefopt.policies import PolicySpec
from tests.oracle.test_trl_trajectory import STEADY
from tests.runs import make_trainer, pair_rows, write_rows

trl = pytest.importorskip("trl", reason="needs the `oracle` extra")
pytestmark = pytest.mark.oracle

STEPS, BATCH, RATE = 5, 2, 0.003
OBJECTIVES = {
    "plain": (BradleyTerry(), {}),
    "margin": (MarginBradleyTerry(margin=ColumnMargin("margin")), {}),
    "margin and centring": (
        MarginBradleyTerry(margin=ColumnMargin("margin"), centring=0.3),
        {"center_rewards_coefficient": 0.3},
    ),
}


def start(size=32):
    """The values of both heads before the first step."""
    return torch.randn(1, size, generator=torch.Generator().manual_seed(1))


def run_trl(tiny_model, folder, dataset, settings, *, margin):
    """Return each step's loss and the last weights of the head."""
    losses = []

    class Trainer(trl.RewardTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.score.weight.data.copy_(start())
    rows = []
    for number in range(len(dataset)):
        tree = dataset.batch([number]).trees["plain"]
        ids = [
            [*tree.prompt_ids[0].tolist(), *one[:size].tolist()]
            for one, size in zip(tree.response_ids[0], tree.response_sizes[0], strict=True)
        ]
        row = {"chosen_ids": ids[0], "rejected_ids": ids[1]}
        rows.append(row | ({"margin": dataset.rows[number].columns["margin"]} if margin else {}))
    arguments = trl.RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=RATE,
        **STEADY,
        **settings,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=PolicySpec(name=str(tiny_model)).load_tokenizer(),
    ).train()
    return losses, model.score.weight


class Start(Callback):
    """Sets the head's first values, and keeps each step's loss."""

    def __init__(self):
        self.losses = []

    def on_fit_start(self, trainer, module):
        module.heads["reward"].score.weight.data.copy_(start())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_five_steps_equal_those_of_trl(tiny_model, tmp_path, name):
    objective, settings = OBJECTIVES[name]
    records = [{**row, "margin": number / 5} for number, row in enumerate(pair_rows(STEPS * BATCH))]
    datamodule = PreferenceDataModule(
        write_rows(tmp_path / "pairs.jsonl", records),
        tokenizer=str(tiny_model),
        cache_dir=str(tmp_path / "cache"),
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    dataset = datamodule.datasets["train"]
    theirs, their_head = run_trl(tiny_model, tmp_path, dataset, settings, margin="margin" in name)
    batches = [dataset.batch(range(first, first + BATCH)) for first in range(0, len(dataset), BATCH)]
    module = RewardModule(
        PolicySpec(name=str(tiny_model)),
        objective,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0),
    )
    begin = Start()
    trainer = make_trainer(tmp_path, begin, gradient_clip_val=1.0, use_distributed_sampler=False)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    assert len(begin.losses) == len(theirs) == STEPS
    assert max(theirs) - min(theirs) > 0.05
    assert begin.losses == pytest.approx(theirs, abs=2e-4)
    torch.testing.assert_close(module.heads["reward"].score.weight, their_head, rtol=0, atol=2e-4)
