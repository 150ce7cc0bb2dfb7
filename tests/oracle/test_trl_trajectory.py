"""A run of ours beside a run of TRL's DPOTrainer: same model, data, adapter and batch order.

Where conventions differ, both are set to the same: TRL tokenises prompt and response as joined strings
(our ``template: none``) and ends a response with the end token, as we do. Where tokens would merge across
the boundary, TRL moves it back into the prompt while we never let it depend on the response, so these
responses begin with a space. TRL's IPO averages over tokens
(our ``normalize: mean``), its rDPO calls the flip rate ``label_smoothing``, and it logs rewards as
β times the log-ratio whatever the loss. The adapter that both start from is not zero; TRL compares with a
copy of it, which here is a ``NamedAdapter``.
"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO, IPO, Hinge, RobustDPO
from pl_prefopt.policies import PolicySpec, build_policy
from pl_prefopt.references import NamedAdapter
from tests.runs import LORA, make_trainer, pair_rows, write_rows

trl = pytest.importorskip("trl", reason="needs the `oracle` extra")
pytestmark = pytest.mark.oracle

STEPS, BATCH, RATE = 5, 2, 0.05
STEADY = {
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_length": None,
}
"""What all trainers of TRL are given: steps that are alike, on a CPU, without anything written."""
OBJECTIVES = {
    "sigmoid": (DPO(beta=0.3), {}),
    "ipo": (IPO(beta=0.3, normalize="mean"), {}),
    "hinge": (Hinge(beta=0.3), {}),
    "robust": (RobustDPO(beta=0.3, flip_rate=0.2), {"label_smoothing": 0.2}),
}


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A saved adapter that already changes its base."""
    torch.manual_seed(2)
    policy = build_policy(PolicySpec(name=str(tiny_model), lora=LORA))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    policy.save_pretrained(folder)
    return folder


def spaced_rows():
    """Pairs whose responses begin with a space, where the tokeniser splits anyway."""
    return [
        {"prompt": row["prompt"].strip(), "chosen": " " + row["chosen"], "rejected": " " + row["rejected"]}
        for row in pair_rows(STEPS * BATCH)
    ]


def run_trl(tiny_model, adapter, folder, loss_type, settings):
    """Return each step's loss, and the initial log-probs of all pairs as [2, rows]."""
    from peft import PeftModel

    losses = []

    class Trainer(trl.DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    arguments = trl.DPOConfig(
        output_dir=str(folder / "trl"),
        loss_type=loss_type,
        beta=0.3,
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=RATE,
        **STEADY,
        **settings,
    )
    trainer = Trainer(
        model=PeftModel.from_pretrained(base, adapter, is_trainable=True),
        args=arguments,
        train_dataset=Dataset.from_list(spaced_rows()),
        processing_class=PolicySpec(name=str(tiny_model)).load_tokenizer(),
    )
    with torch.no_grad():
        rows = trainer.data_collator(list(trainer.train_dataset))
        logps = torch.stack(trainer.compute_ref_log_probs(trainer.model, rows))
    trainer.train()
    return losses, logps


class Record(Callback):
    """Keeps each step's loss and references."""

    def __init__(self):
        self.losses, self.references = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.references.append(batch.references["plain"][0])


def run_ours(tiny_model, adapter, folder, objective):
    """Return each step's loss, and the reference's log-probs of all pairs as [2, rows]."""
    rows = write_rows(folder / "pairs.jsonl", spaced_rows())
    datamodule = PreferenceDataModule(
        rows, tokenizer=str(tiny_model), template="none", cache_dir=str(folder / "cache")
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    dataset = datamodule.datasets["train"]
    batches = [dataset.batch(range(start, start + BATCH)) for start in range(0, len(dataset), BATCH)]
    module = DPOModule(
        PolicySpec(name=str(tiny_model), adapter=str(adapter)),
        objective,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0),
    )
    record = Record()
    trainer = make_trainer(
        folder,
        record,
        ReferenceEnsemble([NamedAdapter(str(adapter))]),
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return record.losses, torch.cat(record.references).T


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_five_steps_equal_those_of_trl(tiny_model, adapter, tmp_path, loss_type):
    objective, settings = OBJECTIVES[loss_type]
    theirs, their_logps = run_trl(tiny_model, adapter, tmp_path, loss_type, settings)
    ours, our_logps = run_ours(tiny_model, adapter, tmp_path, objective)
    assert len(ours) == len(theirs) == STEPS
    torch.testing.assert_close(our_logps, their_logps, atol=2e-4, rtol=1e-5)
    # The first loss is the same for every policy that equals its reference; the later ones are not.
    assert max(theirs) - min(theirs) > 0.05
    assert ours == pytest.approx(theirs, abs=2e-4)
