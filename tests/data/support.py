"""What the data tests share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch

from pl_prefopt.data import Cache, PreferenceDataset, Renderer
from pl_prefopt.data.sources import Source
from pl_prefopt.data.store import store_rows
from pl_prefopt.rows import Message, PreferenceRow
from tests.support import tiny_tokenizer

BAD_BYTES = b'{"prompt": "Hi", "chosen": "caf\xe9", "rejected": "b"}'


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


def pair(number: int = 0, *, words: int = 3) -> dict[str, Any]:
    return {
        "prompt": f"Question {number}?",
        "chosen": f"Good {number}" + " indeed" * words,
        "rejected": f"Bad {number}",
    }


def row(prompt: str = "Hi", *responses: str) -> PreferenceRow:
    texts = responses or ("Hello", "No")
    return PreferenceRow(
        prompt=(user(prompt),),
        responses=tuple((assistant(text),) for text in texts),
        scores=tuple(float(-i) for i in range(len(texts))),
        origin="rows.jsonl, row 1",
    )


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any] | bytes]) -> str:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def read(source: str | Source, cache: Path, **options: Any) -> list[PreferenceRow]:
    return list(stored(source, cache, **options).rows)


def stored(
    source: str | Source,
    cache: Path,
    *,
    on_bad_row: Any = "error",
    max_rows: int | None = None,
    columns: Mapping[str, str] | None = None,
    aspects: Mapping[str, float] | None = None,
):
    settings = {"on_bad_row": on_bad_row, "max_rows": max_rows, "columns": columns, "aspects": aspects}
    return store_rows(Cache(cache), Source.of(source), **settings)


def dataset(records: Sequence[Mapping[str, Any]], folder: Path, **options: Any) -> PreferenceDataset:
    store = stored(write_jsonl(folder / "rows.jsonl", records), folder / "cache")
    renderer = options.pop("renderer", None) or Renderer(tiny_tokenizer())
    return PreferenceDataset.tokenised(store, renderer, cache=Cache(folder / "cache"), **options)


class Recorder(pl.LightningModule):
    """Trains nothing of interest, and remembers which rows it saw."""

    def __init__(
        self,
        *,
        fail_at: int | None = None,
        views: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at, self.tokenizer = fail_at, tokenizer
        self.needs = SimpleNamespace(views=dict(views or {}), columns=tuple(columns))
        self.seen: list[tuple[int, list[int]]] = []
        self.evaluated: list[int] = []

    def needed_by(self, column: str) -> str:
        return "Recorder"

    def load_tokenizer(self) -> Any:
        return self.tokenizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.fail_at is not None and len(self.seen) == self.fail_at:
            raise InterruptedError
        self.seen.append((self.current_epoch, batch.index.tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.evaluated += batch.index.tolist()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated += batch.index.tolist()

    def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
        return batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        _ = self.trainer.estimated_stepping_batches  # as a schedule does, which sets the loaders up early
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**settings, **options})
