"""The demo: train a real model on the shipped preferences and show what changed.

Every step is a `prefopt` command that is printed before it runs, so that it can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pl_prefopt.cli.log_filters import install_log_filters
from pl_prefopt.evaluations import main_metrics, read_evaluations

CONFIG = "ready/demo"
SHOWN = {
    "accuracy": "preference accuracy",
    "margin": "reward margin",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
}
PROMPTS_SHOWN = 2


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--run-dir", default=f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    settings = parser.parse_args()
    install_log_filters()
    started, run = time.monotonic(), Path(settings.run_dir)
    checkpoint = run / "checkpoints" / "last.ckpt"
    model = ["--model.init_args.policy.name", settings.model]

    prefopt("validate", "-c", CONFIG, *model, "--run_dir", str(run / "before"))
    prefopt("fit", "-c", CONFIG, *model, "--run_dir", str(run), "--trainer.limit_val_batches", "0")
    prefopt(
        "validate",
        "-c",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(checkpoint),
        "--trainer.limit_val_batches",
        "1.0",
    )
    prefopt("export", str(checkpoint), "--out", str(run / "adapter"))

    console = Console()
    console.print(comparison(run / "before" / "metrics.json", run / "metrics.json"))
    console.print(answers(settings.model, run / "adapter"))
    console.print(f"Everything is in [bold]{run}[/bold] ({time.monotonic() - started:.0f} s).")


def prefopt(*arguments: str) -> None:
    """Run a `prefopt` command and stop the demo if it fails."""
    print(f"\n$ prefopt {shlex.join(arguments)}", flush=True)
    finished = subprocess.run([sys.executable, "-m", "pl_prefopt", *arguments], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def comparison(before: Path, after: Path) -> Table:
    """Return the table of held-out metrics before and after."""
    old, new = (main_metrics(read_evaluations(path)) for path in (before, after))
    table = Table(title="Held-out prompts", caption="– : an untrained policy has no margins to correlate")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, shown in SHOWN.items():
        table.add_row(shown, _number(old.get(f"val/{name}")), _number(new.get(f"val/{name}")))
    return table


def answers(model: str, adapter: Path) -> Table:
    """Return greedy answers to held-out prompts, from plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    table = Table(title="Answers", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, ratio=1)
    for prompt in held_out_prompts():
        with policy.disable_adapter():
            before = _answer(policy, tokenizer, prompt)
        table.add_row(prompt, before, _answer(policy, tokenizer, prompt))
    return table


def held_out_prompts() -> list[str]:
    """Return the first held-out prompts."""
    with (Path(__file__).parent / "preferences_heldout.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line, _ in zip(lines, range(PROMPTS_SHOWN), strict=False)]


def _answer(policy, tokenizer, prompt: str) -> str:
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = policy.generate(**inputs, max_new_tokens=48, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
