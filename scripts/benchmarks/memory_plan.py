"""How near `prefopt plan` comes: the peak memory of real training steps beside what was planned for them.

    python scripts/benchmarks/memory_plan.py [--case lora] [--out runs/benchmarks/memory_plan.md]

Each case trains two steps on the CPU in a process of its own, by Lightning, on rows as long as the limits
allow. Measured is how far the process's resident memory rises in the second step above what it was with all
libraries loaded and no model. Large blocks go back to the system at once (mmap), so that memory that is
free does not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import traceback
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = ".cache/models/SmolLM2-135M-Instruct"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
LIMITS = {"batch_size": 1, "max_prompt_length": 192, "max_response_length": 64}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"about": "LoRA, float32, DPO, adapter off", "policy": {"lora": LORA}},
    "lora_checkpointing": {
        "about": "LoRA, float32, DPO, gradient checkpointing",
        "policy": {"lora": LORA, "gradient_checkpointing": True},
    },
    "lora_bf16": {
        "about": "LoRA on a bfloat16 base, bf16-mixed, DPO",
        "policy": {"lora": LORA, "dtype": "bfloat16"},
        "precision": "bf16-mixed",
    },
    "lora_plain": {
        "about": "LoRA, float32, DPO, one row per response",
        "policy": {"lora": LORA},
        "layout": "plain",
    },
    "full": {"about": "all weights, float32, SimPO", "policy": {}, "objective": "SimPO"},
    "full_bf16": {
        "about": "all weights, bfloat16 throughout, SimPO",
        "policy": {"dtype": "bfloat16"},
        "objective": "SimPO",
        "precision": "bf16-true",
    },
    "full_frozen": {
        "about": "all weights, float32, DPO, gradient checkpointing, a bfloat16 reference",
        "policy": {"gradient_checkpointing": True},
        "frozen": "bfloat16",
    },
}
MMAP_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    """Run the cases, or one of them in this process, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/memory_plan.md"))
    given = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MMAP_AT_ONCE.items()):
        # The C library reads them when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MMAP_AT_ONCE})
    load_libraries()
    lines = [f"{where()}; {LIMITS}.", "", "| case | measured MiB | planned MiB | planned / measured |"]
    lines.append("|---|---|---|---|")
    for name in given.case or CASES:
        result = run(name)
        measured, planned = result["measured"] / 2**20, result["planned"] / 2**20
        ratio = planned / measured
        lines.append(f"| {CASES[name]['about']} | {measured:.0f} | {planned:.0f} | {ratio:.2f} |")
        print(name, json.dumps(result), file=sys.stderr, flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def run(name: str) -> dict[str, Any]:
    """Run one case in a process of its own, in which all libraries are loaded already."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(into, "w") as pipe:
                json.dump(measure_and_plan(CASES[name]), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    if not written:
        raise SystemExit(f"{name} failed; its error is above.")
    result: dict[str, Any] = json.loads(written)
    return result


def measure_and_plan(case: dict[str, Any]) -> dict[str, Any]:
    """Train two steps, then plan them."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_tiny_model(Path(folder) / "tiny")
        train(case, tiny, folder)  # loads what is loaded late, and what torch keeps for itself
        gc.collect()
        before = memory("VmRSS")
        return {"measured": train(case, MODEL, folder) - before, **plan(case, folder)}


def train(case: dict[str, Any], model: str, folder: str) -> int:
    """Train two steps and return the process's peak in the second one."""
    from lightning.pytorch import Callback

    from pl_prefopt.callbacks import ReferenceEnsemble

    class SecondStep(Callback):
        peak = 0

        def on_train_batch_start(self, *args: Any) -> None:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

        def on_train_batch_end(self, *args: Any) -> None:
            self.peak = memory("VmHWM")

    # References are asked in a hook of their own, so this callback begins before it.
    callbacks = [second := SecondStep(), ReferenceEnsemble(members(case, model))]
    trainer(case, callbacks).fit(module(case, model), datamodule=data(folder))
    return second.peak


def plan(case: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return what is planned for the case."""
    from pl_prefopt.planning import DryRun

    planned_for = module(case, MODEL)
    footprints = [member.footprint(planned_for.policy_spec) for member in members(case, MODEL)]
    planned = DryRun(
        module=planned_for,
        batch=data(folder).full_batch(2),
        references=[one for one in footprints if one is not None],
        precision=trainer(case, []).precision_plugin,
        on_cpu=True,
    ).run()
    return {"planned": planned.peak, "phases": planned.phases}


def trainer(case: dict[str, Any], callbacks: list[Any]) -> Any:
    """Return a silent trainer of two steps."""
    from lightning.pytorch import Trainer

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        precision=case.get("precision", "32-true"),
        callbacks=callbacks,
        **dict.fromkeys(quiet, False),
    )


def save_tiny_model(folder: Path) -> str:
    """Write a small random model with the tokeniser of the real one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(MODEL)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 72, 144
    config.head_dim = 8
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return str(folder)


def module(case: dict[str, Any], model: str) -> Any:
    """Return a fresh module."""
    import torch

    from pl_prefopt import objectives
    from pl_prefopt.modules import PreferenceModule
    from pl_prefopt.policies import PolicySpec

    return PreferenceModule(
        PolicySpec(name=model, **case["policy"]),
        getattr(objectives, case.get("objective", "DPO"))(),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6),
        layout=case.get("layout", "auto"),
    )


def members(case: dict[str, Any], model: str) -> list[Any]:
    """Return the case's references."""
    from pl_prefopt.policies import PolicySpec
    from pl_prefopt.references import AdapterOff, FrozenModel

    if "frozen" in case:
        return [FrozenModel(PolicySpec(name=model, dtype=case["frozen"]))]
    return [] if case.get("objective") == "SimPO" else [AdapterOff()]


def data(folder: str) -> Any:
    """Return rows that are longer than the limits, so that every batch is as large as can be."""
    from pl_prefopt.data import PreferenceDataModule

    rows = [
        {
            "prompt": f"{number} " + "Tell me of foxes and of dogs. " * 60,
            "chosen": "A quick one. " * 60,
            "rejected": "I cannot. " * 60,
        }
        for number in range(2 * LIMITS["batch_size"])
    ]
    path = Path(folder) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PreferenceDataModule(str(path), tokenizer=MODEL, cache_dir=folder, **LIMITS)


def load_libraries() -> None:
    """Import what a run imports. No gradient is computed: torch could not be forked after that."""
    from pl_prefopt.policies import PolicySpec, sketch_policy

    sketch_policy(PolicySpec(name=MODEL, lora=LORA))


def memory(field: str) -> int:
    """Return a figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}: this needs Linux.")


def where() -> str:
    """Say on what this was measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "peft"))
    return f"{date.today():%Y-%m-%d}, CPU, {platform.machine()}, {versions}"


if __name__ == "__main__":
    main()
