"""One contender of a benchmark in one process: it trains a few steps and prints what they cost as JSON.

python scripts/benchmarks/contenders.py '{"kind": "ours", "objective": "DPO", ...}'
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

Settings = dict[str, Any]


class Clock:
    """Times the steps after the first, which pays for what happens once."""

    def __init__(self, steps: int) -> None:
        self.total = steps + 1
        self.ends: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Each measured step."""
        return [end - start for start, end in itertools.pairwise(self.ends)]


def prepare(settings: Settings, folder: str, module: Any = None) -> Any:
    """Return the rows as a set-up data module, with the views that ``module`` wants."""
    from pl_prefopt.data import PreferenceDataModule

    rows = (settings["steps"] + 1) * settings["batch_size"]
    data = settings["data"]
    if isinstance(data, dict):
        data = write_rows(Path(folder) / "rows.jsonl", count=rows, **data)
    datamodule = PreferenceDataModule(
        data,
        tokenizer=settings["model"],
        batch_size=settings["batch_size"],
        max_rows=rows,
        max_prompt_length=settings["max_prompt_length"],
        max_response_length=settings["max_response_length"],
        on_bad_row="skip",
        cache_dir=folder,
    )
    if module is not None:
        datamodule.trainer = SimpleNamespace(lightning_module=module, state=SimpleNamespace(fn=None))
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def write_rows(path: Path, *, count: int, prompt_words: int, response_words: int, responses: int) -> str:
    """Write rows of one size, to see what the size costs.

    Words are common ones, of one token each; a row's prompt begins with its number, as no other's does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answers = [" ".join([str(n), *["word"] * (response_words - 1)]) for n in range(responses)]
            prompt = " ".join([str(number), *["word"] * (prompt_words - 1)])
            row = {"prompt": prompt, "responses": answers, "scores": list(range(responses))}
            file.write(json.dumps(row) + "\n")
    return str(path)


def batches(dataset: Any, settings: Settings) -> Iterator[range]:
    """Yield the row numbers of each step, in the data's order, for every contender alike."""
    size = settings["batch_size"]
    for start in range(0, (settings["steps"] + 1) * size, size):
        yield range(start, min(start + size, len(dataset)))


def ours(settings: Settings, clock: Clock, folder: str) -> None:
    """Train with this package."""
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    from pl_prefopt import objectives
    from pl_prefopt.modules import PreferenceModule, RewardModule
    from pl_prefopt.policies import PolicySpec

    class Ticks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            clock.tick()

    objective = getattr(objectives, settings["objective"])()
    kind = PreferenceModule if objective.needs.reward_outputs is None else RewardModule
    module = kind(
        PolicySpec(name=settings["model"], lora=settings["lora"]),
        objective,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        layout=settings.get("layout", "auto"),
    )
    dataset = prepare(settings, folder, module).datasets["train"]
    items = [dataset.batch(list(rows)) for rows in batches(dataset, settings)]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[references(settings, module, dataset), Ticks()],
    )
    trainer.fit(module, DataLoader(items, batch_size=None))


def references(settings: Settings, module: Any, dataset: Any) -> Any:
    """Return the Reference-Ensemble: none, the adapter switched off, or numbers that are there already."""
    from pl_prefopt.callbacks import ReferenceEnsemble
    from pl_prefopt.references import AdapterOff, Reference

    class Cached(Reference):
        """What a table costs a step: a look-up. The numbers themselves change no time."""

        def fingerprint(self, policy: Any) -> str:
            return "cached"

        def prepare(self, host: Any, datasets: Any) -> None:
            self.table = torch.linspace(-200, -100, len(dataset) * 16).view(len(dataset), 16)

        def log_probs(self, host: Any, batch: Any, view: str) -> torch.Tensor:
            return self.table[batch.index, : batch.trees[view].response_ids.shape[1]]

        def release(self) -> None:
            pass

    if settings["references"] == "none":
        return ReferenceEnsemble([])
    if settings["references"] == "cached":
        return ReferenceEnsemble([Cached() for _ in range(settings["members"])])
    return ReferenceEnsemble([AdapterOff()])


def trl(settings: Settings, clock: Clock, folder: str) -> None:
    """Train with TRL's DPOTrainer, or its RewardTrainer, on the same tokens."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rewards = settings.get("rewards", False)
    base: Any = RewardTrainer if rewards else DPOTrainer
    dataset = prepare(settings, folder).datasets["train"]
    numbers = itertools.chain.from_iterable(batches(dataset, settings))
    rows = [pair for number in numbers for pair in pairs_of(dataset.batch([number]))]
    if rewards:
        rows = [
            {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows
        ]
    a_step, left = divmod(len(rows), clock.total)
    if left:
        raise SystemExit(
            "TRL needs prompts with the same number of responses: a step has a fixed number of pairs."
        )

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    class Trainer(base):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the rows are tokens already, the same as ours

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    own = {} if rewards else {"precompute_ref_log_probs": settings.get("precompute", False)}
    arguments = (RewardConfig if rewards else DPOConfig)(
        output_dir=folder,
        per_device_train_batch_size=a_step,
        max_steps=clock.total,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_length=None,
        **own,
    )
    if rewards:
        model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(settings["model"])
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        peft_config=LoraConfig(task_type="SEQ_CLS" if rewards else "CAUSAL_LM", **settings["lora"]),
        callbacks=[Ticks()],
    )
    trainer.train()


def pairs_of(batch: Any) -> list[dict[str, list[int]]]:
    """Return a prompt's best response against each other one as TRL's columns."""
    tree = batch.trees["plain"]
    prompt = tree.prompt_ids[0][tree.prompt_mask[0]].tolist()
    answers = [
        ids[mask].tolist() for ids, mask in zip(tree.response_ids[0], tree.response_mask[0], strict=True)
    ]
    best = int(batch.scores[0].nan_to_num(-torch.inf).argmax())
    others = [answer for number, answer in enumerate(answers) if number != best]
    return [{"prompt_ids": prompt, "chosen_ids": answers[best], "rejected_ids": other} for other in others]


def floor(settings: Settings, clock: Clock, folder: str) -> None:
    """Run the bare model forward and backward on the same unique tokens, in one row without padding."""
    from pl_prefopt.policies import PolicySpec, build_policy

    policy = build_policy(PolicySpec(name=settings["model"], lora=settings["lora"]))
    dataset = prepare(settings, folder).datasets["train"]
    for rows in batches(dataset, settings):
        tree = dataset.batch(list(rows)).trees["plain"]
        prompts, responses = sum(tree.prompt_lengths), sum(tree.response_lengths)
        ids = torch.randint(5, 300, (1, prompts + responses))
        logits = policy(input_ids=ids, logits_to_keep=responses, use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
        clock.tick()


def main() -> None:
    """Run the contender that the first argument describes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    settings: Settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    clock = Clock(settings["steps"])
    with tempfile.TemporaryDirectory() as folder:
        {"ours": ours, "trl": trl, "floor": floor}[settings["kind"]](settings, clock, folder)
        counted = count(settings, str(Path(folder) / "count"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({"seconds": clock.seconds, "peak_gib": peak, **counted}))


def count(settings: Settings, folder: str) -> dict[str, float]:
    """Return the prompts and unique tokens of the measured steps."""
    dataset = prepare(settings, folder).datasets["train"]
    measured = list(batches(dataset, settings))[1:]
    return {
        "prompts": sum(len(rows) for rows in measured),
        "tokens": int(sum(dataset.lengths[n] for rows in measured for n in rows)),
    }


if __name__ == "__main__":
    main()
