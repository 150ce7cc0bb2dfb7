"""Plan the memory of every recipe from its model's architecture, without the hub, and compare its comment.

    python scripts/benchmarks/plan_recipes.py [--recipe zephyr_7b_dpo] [--write]

`prefopt plan` reads nothing of a model but its config.json. The configurations below have the published
architectures' sizes; a wrong size would show in the number of parameters, which has to be the published one.
Each recipe is planned for rows as long as its limits allow. ``--write`` puts the results into the recipes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"


class Model(NamedTuple):
    """An architecture.

    Attributes:
        kind: the name of transformers' configuration class.
        sizes: its arguments; the rest are the class's defaults.
        parameters: the published number of parameters.
    """

    kind: str
    sizes: dict[str, Any]
    parameters: int


_EIGHT_KV = {"num_attention_heads": 32, "num_key_value_heads": 8}
_LLAMA3 = Model(
    "LlamaConfig",
    {
        **_EIGHT_KV,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "max_position_embeddings": 8192,
    },
    8_030_261_248,
)
MODELS = {
    "alignment-handbook/zephyr-7b-sft-full": Model(
        "MistralConfig",
        {
            **_EIGHT_KV,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
        },
        7_241_732_096,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3,
    "Qwen/Qwen3-8B": Model(
        "Qwen3Config",
        {
            **_EIGHT_KV,
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "head_dim": 128,
            "max_position_embeddings": 40960,
        },
        8_190_735_360,
    ),
    "HuggingFaceTB/SmolLM3-3B-checkpoints": Model(
        "SmolLM3Config",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 65536,
            "tie_word_embeddings": True,
        },
        3_075_098_624,
    ),
    "google/gemma-3-1b-it": Model(
        "Gemma3TextConfig",
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
        },
        999_885_952,
    ),
}
GPUS = {"gemma3_1b_dpo": "24GiB"}
"""The memory of a recipe's GPU, where it is not 80 GiB."""
RESPONSES = {"llama3_8b_mppo": 4}
"""Responses per prompt in a recipe's data, where they are not pairs."""


def write_model(name: str, folder: Path) -> int:
    """Write a model's ``config.json``; return its published number of parameters."""
    import transformers

    model = MODELS[name]
    getattr(transformers, model.kind)(**model.sizes).save_pretrained(folder)
    return model.parameters


def planned(recipe: Path) -> str:
    """Return what ``prefopt plan`` prints for a recipe.

    Raises:
        RuntimeError: if the plan fails, or the model has not the published number of parameters.
    """
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    name = given["model"]["init_args"]["policy"]["name"]
    with tempfile.TemporaryDirectory() as folder:
        expected = write_model(name, Path(folder))
        words = [
            "plan",
            "-c",
            f"recipes/{recipe.stem}",
            "--policy",
            folder,
            "--model.policy.revision",
            "null",
        ]
        words += ["--data.train", "null", "--memory", GPUS.get(recipe.stem, "80GiB")]
        words += ["--responses", str(RESPONSES.get(recipe.stem, 2))]
        done = subprocess.run(
            [sys.executable, "-m", "pl_prefopt", *words], capture_output=True, text=True, check=False
        )
    counts = re.search(r"Parameters +([\d,]+), of which ([\d,]+)", done.stdout)
    if counts is None:
        raise RuntimeError(f"{recipe.stem}: {done.stderr[-2000:]}")
    total, trained = (int(count.replace(",", "")) for count in counts.groups())
    if expected not in (total, total - trained):
        raise RuntimeError(f"{recipe.stem}: expected {expected:,} parameters, but the plan has {total:,}")
    return done.stdout


def main() -> None:
    """Plan the recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", action="append", help="A recipe's name; all by default.")
    parser.add_argument("--write", action="store_true", help="Write the results into the recipes' comments.")
    asked = parser.parse_args()
    for recipe in sorted(RECIPES.glob("*.yaml")):
        if asked.recipe and recipe.stem not in asked.recipe:
            continue
        text = planned(recipe)
        (peak,) = re.findall(r"^together +([\d.]+) GiB", text, re.MULTILINE)
        line = f"Planned: {float(peak):.0f} GiB per GPU of {GPUS.get(recipe.stem, '80GiB')[:-3]} GiB"
        print(f"{recipe.stem}\n{text}\n{line}\n", flush=True)
        if asked.write:
            old = recipe.read_text(encoding="utf-8")
            new = re.sub(
                r"^# (?:Not planned with `prefopt plan`|Planned: [^,;]*)", f"# {line}", old, flags=re.M
            )
            recipe.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
