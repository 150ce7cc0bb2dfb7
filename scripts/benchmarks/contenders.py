"""One contender of a benchmark in one process: it trains a few steps and prints what they cost as JSON.

python -m scripts.benchmarks.contenders <<< '{"kind": "ours", "objective": "DPO", ...}'

The settings are those of a contender in cases.yaml over its case's and the defaults. They are read after the
imports, so that a process can be started while another one still measures.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from scripts.benchmarks.rows import (
    Settings,
    batches,
    pairs_of,
    prepare,
    total_steps,
    use_random_weights,
    write_outline,
)

HARDWARE = Path(__file__).parents[2] / "configs" / "hardware"


class Clock:
    """Times the steps after the first ones, which pay for what happens once, such as compilation.

    On a GPU each step ends when the GPU has finished it, and the peak of memory is that of the timed steps.
    """

    def __init__(self, settings: Settings) -> None:
        self.warmup = settings["warmup"]
        self.on_gpu = settings["device"] == "cuda"
        self.ends: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self.on_gpu and len(self.ends) == self.warmup:
            torch.cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> list[float]:
        """Each measured step."""
        return [end - start for start, end in itertools.pairwise(self.ends[self.warmup - 1 :])]

    def peak_gib(self) -> float:
        """Return the peak of allocated GPU memory, or of the process on a CPU."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(settings: Settings, clock: Clock, folder: str) -> dict[str, str]:
    """Train with this package, as a file of configs/hardware says and the contender's own settings.

    Returns:
        The attention on prefix trees, which a probe decides.
    """
    from torch.utils.data import DataLoader

    class Ticks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            clock.tick()

    hardware = yaml.safe_load((HARDWARE / f"{settings['hardware']}.yaml").read_text(encoding="utf-8"))
    module = make_module(settings, hardware["model"]["init_args"])
    dataset = prepare(settings, folder, module)
    items = [dataset.batch(list(rows)) for rows in batches(dataset, settings)]
    elsewhere = {"accelerator", "devices", "strategy", "num_nodes", "accumulate_grad_batches"}
    of_file = {key: value for key, value in hardware["trainer"].items() if key not in elsewhere}
    trainer = Trainer(
        accelerator="gpu" if settings["device"] == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[references(settings, dataset), Ticks()],
        **{**of_file, **settings.get("trainer", {})},
    )
    trainer.fit(module, DataLoader(items, batch_size=None, pin_memory=settings["device"] == "cuda"))
    return {"attention": module.scorer.attention or "rows"}


def make_module(settings: Settings, of_hardware: Settings) -> Any:
    """Return the module that a YAML of these settings describes."""
    from jsonargparse import ArgumentParser

    from pl_prefopt import objectives

    objective = getattr(objectives, settings["objective"])
    kind = "PreferenceModule" if objective().needs.reward_outputs is None else "RewardModule"
    policy = {**of_hardware["policy"], "lora": settings["lora"], **settings.get("policy", {})}
    arguments = {
        **of_hardware,
        **settings.get("module", {}),
        "policy": {"name": settings["model"], **policy},
        "objective": {"class_path": f"{objective.__module__}.{objective.__qualname__}"},
    }
    arguments.setdefault("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    described = {"class_path": f"pl_prefopt.modules.{kind}", "init_args": arguments}
    return parser.instantiate(parser.parse_object({"model": described})).model


def references(settings: Settings, dataset: Any) -> Any:
    """Return the references: none, the adapter switched off, or precomputed values."""
    from pl_prefopt.callbacks import ReferenceEnsemble
    from pl_prefopt.references import AdapterOff, Reference

    class Cached(Reference):
        """What a table costs a step: a look-up. The values themselves don't change the time."""

        def fingerprint(self, policy: Any) -> str:
            return "cached"

        def prepare(self, host: Any, datasets: Any) -> None:
            self.table = torch.linspace(-200, -100, len(dataset) * 16).view(len(dataset), 16)

        def log_probs(self, host: Any, batch: Any, view: str) -> torch.Tensor:
            self.table = self.table.to(batch.index.device)
            return self.table[batch.index, : batch.trees[view].response_ids.shape[1]]

        def release(self) -> None:
            pass

    if settings["references"] == "none":
        return ReferenceEnsemble([])
    if settings["references"] == "cached":
        return ReferenceEnsemble([Cached() for _ in range(settings.get("members", 1))])
    return ReferenceEnsemble([AdapterOff()])


def trl(settings: Settings, clock: Clock, folder: str) -> None:
    """Train with TRL's DPOTrainer, or its RewardTrainer, on the same tokens."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOTrainer, RewardTrainer
    from trl.trainer import dpo_trainer

    dataset = prepare(settings, folder)
    rows, per_step = rows_for_trl(settings, dataset)
    rewards = settings.get("rewards", False)
    base: Any = RewardTrainer if rewards else DPOTrainer
    # The name of its cache of reference log-probs, which isn't used: hashing 8B weights takes a minute.
    dpo_trainer.hash_module = lambda module: ""

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    class Measured(base):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the rows are tokens already, the same as ours

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the values are columns already

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    kind = "SEQ_CLS" if rewards else "CAUSAL_LM"
    lora = None if settings["lora"] is None else LoraConfig(task_type=kind, **settings["lora"])
    trainer = Measured(
        model=model_for_trl(settings),
        args=arguments_of_trl(settings, folder, per_step),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        peft_config=lora,
        callbacks=[Ticks()],
    )
    trainer.train()


def rows_for_trl(settings: Settings, dataset: Any) -> tuple[list[dict[str, Any]], int]:
    """Return TRL's rows, the best response against each other one, and how many are in a step."""
    numbers = itertools.chain.from_iterable(batches(dataset, settings))
    rows: list[dict[str, Any]] = [pair for number in numbers for pair in pairs_of(dataset.batch([number]))]
    if settings.get("rewards"):
        sides = ("chosen_ids", "rejected_ids")
        rows = [{side: row["prompt_ids"] + row[side] for side in sides} for row in rows]
    elif settings.get("precompute"):
        rows = [{**row, "ref_chosen_logps": -150.0, "ref_rejected_logps": -160.0} for row in rows]
    per_step, left = divmod(len(rows), total_steps(settings))
    if left:
        raise SystemExit(
            "TRL needs prompts with the same number of responses: a step has a fixed number of pairs."
        )
    return rows, per_step


def model_for_trl(settings: Settings) -> Any:
    """Return the model that TRL trains, with weights in the type that ours has them in."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if settings.get("rewards"):
        return AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=1)
    return AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])


def arguments_of_trl(settings: Settings, folder: str, per_step: int) -> Any:
    """Return the arguments with which TRL is fastest on the device."""
    from trl import DPOConfig, RewardConfig

    on_gpu = settings["device"] == "cuda"
    precompute = {"precompute_ref_log_probs": settings.get("precompute", False)}
    return (RewardConfig if settings.get("rewards") else DPOConfig)(
        output_dir=folder,
        per_device_train_batch_size=per_step,
        max_steps=total_steps(settings),
        learning_rate=1e-5,
        gradient_checkpointing=settings.get("policy", {}).get("gradient_checkpointing", False),
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=not on_gpu,
        use_liger_kernel=on_gpu and settings.get("liger", False),
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step
        max_length=None,
        **({} if settings.get("rewards") else precompute),
    )


def floor(settings: Settings, clock: Clock, folder: str) -> None:
    """Run the bare model forward and backward on the same unique tokens, in one row without padding."""
    from pl_prefopt.policies import PolicySpec, build_policy

    device, dtype = settings["device"], settings["dtype"]
    checkpointing = settings.get("policy", {}).get("gradient_checkpointing", False)
    spec = PolicySpec(
        name=settings["model"],
        lora=settings["lora"],
        dtype=dtype,
        attn_implementation="sdpa",
        gradient_checkpointing=checkpointing,
    )
    policy = build_policy(spec).to(device)
    dataset = prepare(settings, folder)
    lower = dtype != "float32"
    for rows in batches(dataset, settings):
        tree = dataset.batch(list(rows)).trees["plain"]
        prompts, responses = sum(tree.prompt_lengths), sum(tree.response_lengths)
        ids = torch.randint(5, 300, (1, prompts + responses), device=device)
        with torch.autocast(device, torch.bfloat16) if lower else nullcontext():
            logits = policy(input_ids=ids, logits_to_keep=responses, use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
        clock.tick()


CONTENDERS: dict[str, Callable[[Settings, Clock, str], dict[str, str] | None]] = {
    "ours": ours,
    "trl": trl,
    "floor": floor,
}


def measure(settings: Settings) -> dict[str, Any]:
    """Run a contender; return its seconds per step, its peak of memory, and what it was trained on."""
    clock = Clock(settings)
    with tempfile.TemporaryDirectory() as folder:
        if "shape" in settings:
            settings = {**settings, "model": write_outline(settings["shape"], Path(folder) / "model")}
            use_random_weights(settings["device"])
        told = CONTENDERS[settings["kind"]](settings, clock, folder) or {}
        result = {"seconds": clock.seconds, "peak_gib": clock.peak_gib(), **told}
        return {**result, **count(settings, str(Path(folder) / "count"), sum(clock.seconds))}


def count(settings: Settings, folder: str, seconds: float) -> dict[str, float]:
    """Return the prompts and unique tokens of the measured steps, and on a known GPU their MFU.

    Args:
        settings: of the contender.
        folder: for what is prepared.
        seconds: that the measured steps took.
    """
    from pl_prefopt.callbacks.model_flops import peak_flops

    dataset = prepare(settings, folder)
    measured = list(batches(dataset, settings))[settings["warmup"] :]
    counts: dict[str, float] = {
        "prompts": sum(len(rows) for rows in measured),
        "tokens": int(sum(dataset.lengths[n] for rows in measured for n in rows)),
    }
    peak = peak_flops(torch.device(settings["device"]), "bf16")
    if peak is not None:
        trees = [dataset.batch(list(rows)).trees["plain"] for rows in measured]
        counts["mfu"] = flops(settings, trees) / seconds / peak
    return counts


def flops(settings: Settings, trees: Sequence[Any]) -> float:
    """Return the operations that steps need: the same for all contenders that compute their reference.

    Each prompt counts once, so that computing it once per response is no use of the GPU.
    """
    from pl_prefopt.callbacks.model_flops import ModelFlops
    from pl_prefopt.policies import PolicySpec, sketch_policy

    model = ModelFlops.of(sketch_policy(PolicySpec(name=settings["model"], lora=settings["lora"])))
    assert model is not None, "the shapes have no experts"
    total = sum(map(model.training, trees))
    computed = settings.get("references") == "adapter_off" or (
        settings["kind"] == "trl" and not (settings.get("precompute") or settings.get("rewards"))
    )
    return total + (sum(map(replace(model, trained=0).forward, trees)) if computed else 0.0)


def main() -> None:
    """Run the contender that the first line of the standard input describes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in ("transformers", "peft", "datasets", "pl_prefopt.modules", "pl_prefopt.callbacks"):
        importlib.import_module(name)
    settings: Settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    print("RESULT " + json.dumps(measure(settings)))


if __name__ == "__main__":
    main()
