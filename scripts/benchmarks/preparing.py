"""Processor time of preparing pairs: reading and tokenising them with ours and with TRL's own preparation.

python scripts/benchmarks/preparing.py [MODEL] [ROWS ...] [--words PROMPT CHOSEN REJECTED] [--only ours]

Both read the same JSON lines of conversations with the same tokeniser, in one process, and write a table of
tokens. The tokens of the first rows are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from pl_prefopt.data import Cache, PreferenceDataset, Renderer, Source
from pl_prefopt.data.store import store_rows, store_tokens

MODEL = ".cache/models/SmolLM2-135M-Instruct"
TEXT = (
    "the model answers a question about physics and history with many details while its users ask for short "
    "replies in plain English, sometimes with numbers such as 1969 or 3.14 and sometimes with none"
)
COMPARED = 50

Tokens = list[tuple[list[int], ...]]
"""The tokens of the first rows: of each the prompt's and the responses'."""


def write(path: Path, count: int, words: list[int]) -> None:
    """Write pairs whose prompt and responses have these numbers of words."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            texts = [" ".join(generator.choices(TEXT.split(), k=size)) for size in words]
            prompt, chosen, rejected = (
                [{"role": role, "content": text}]
                for role, text in zip(("user", "assistant", "assistant"), texts, strict=True)
            )
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def ours(path: Path, tokenizer: Any, folder: Path) -> Tokens:
    """Prepare the rows, and return the tokens of the first ones."""
    renderer, cache = Renderer(tokenizer), Cache(folder / "ours")
    store = store_rows(cache, Source.of(str(path)), on_bad_row="error", max_rows=None)
    store_tokens(
        cache, store.rows, renderer, key=(store.content, None), on_bad_row="error", distinct=True, processes=1
    )
    dataset = PreferenceDataset.tokenised(store, renderer, cache=cache)  # from the cache
    batch = dataset.batch(range(min(COMPARED, len(dataset))))
    tree = batch.trees["plain"]
    return [
        (
            tree.prompt_ids[row][tree.prompt_mask[row]].tolist(),
            *(tree.response_ids[row, r][tree.response_mask[row, r]].tolist() for r in range(2)),
        )
        for row in range(len(batch))
    ]


def trls(path: Path, tokenizer: Any, folder: Path) -> Tokens:
    """Prepare the rows as ``DPOTrainer`` does, and return the tokens of the first ones."""
    from datasets import Dataset
    from trl import DPOTrainer

    rows = Dataset.from_json(str(path), cache_dir=str(folder / "trl"))
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    prepared = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, arguments, "train")
    first = prepared.select(range(min(COMPARED, len(prepared))))
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in first]


def measured(prepare: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float, float]:
    """Return what a function returned, its processor and wall seconds, and the peak memory so far in MiB."""
    began, cpu = time.perf_counter(), time.process_time()
    found = prepare(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found, time.process_time() - cpu, time.perf_counter() - began, peak


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("rows", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--words", nargs=3, type=int, default=[60, 100, 90])
    parser.add_argument("--only", choices=list(CONTENDERS))
    return parser.parse_args()


def main() -> None:
    """Print a line for each number of rows and contender."""
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write(path, rows, args.words)
            tokens = {}
            for name in [args.only] if args.only else CONTENDERS:
                tokens[name], cpu, wall, peak = measured(CONTENDERS[name], path, tokenizer, Path(folder))
                print(
                    f"{rows:>9,} rows, {name:4}: {1000 * cpu / rows:.3f} ms of CPU per row, "
                    f"{wall:.1f} s, peak {peak:.0f} MiB",
                    flush=True,
                )
            if len(tokens) == len(CONTENDERS):
                print(f"tokens: {compared(tokens['ours'], tokens['TRL'])}")


def compared(ours: Tokens, trls: Tokens) -> str:
    """Say whether the tokens are the same, but for what TRL keeps after the end token of each response."""
    rests = set()
    for own, theirs in zip(ours, trls, strict=True):
        same = all(text == other[: len(text)] for text, other in zip(own, theirs, strict=True))
        if not same or own[0] != theirs[0]:
            return "DIFFERENT"
        rests |= {tuple(other[len(text) :]) for text, other in zip(own[1:], theirs[1:], strict=True)}
    return f"the same, with {sorted(rests)} after the end token of TRL's responses"


CONTENDERS: dict[str, Callable[..., Tokens]] = {"ours": ours, "TRL": trls}


if __name__ == "__main__":
    main()
