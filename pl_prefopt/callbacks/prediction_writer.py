"""Predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_prefopt.files import replacing
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.types import Outcome, PreferenceBatch, ScoredBatch


class PredictionWriter(Callback):
    """Writes one JSON line a prompt, in the data's order, to ``predictions.jsonl``.

    Each response comes with its ``log_prob`` (a sum over tokens), ``length`` (in tokens), ``reward``,
    ``rank`` by reward (1 is best), and its ``score`` if the data has one.

    Args:
        folder: where the file goes.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "predictions.jsonl"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin this process's part of the file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's prompts."""
        scored, outcome = outputs
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as file:
            for line in _lines(batch, scored, outcome):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the processes' parts, ordered as the data."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = [self._part(rank) for rank in range(trainer.world_size)]
        lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda line: json.loads(line)["index"])
        with replacing(self.path) as draft:
            draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_suffix(f".{rank}.part")


def _lines(batch: PreferenceBatch, scored: ScoredBatch, outcome: Outcome) -> Iterator[dict[str, Any]]:
    ranks = _ranks(outcome.reward, batch.present)
    for position, row in enumerate(batch.rows):
        if not batch.present[position].any():
            continue  # a row that only fills a rank's last batch
        yield {
            "index": int(batch.index[position]),
            "prompt": _messages(row.prompt),
            "responses": [
                {
                    "response": _text(row, number),
                    "log_prob": float(scored.policy.sum[position, number]),
                    "length": int(scored.policy.length[position, number]),
                    "reward": float(outcome.reward[position, number]),
                    "rank": int(ranks[position, number]),
                    "score": None if row.scores is None else row.scores[number],
                }
                for number in range(len(row.responses))
            ],
        }


def _ranks(reward: Tensor, present: Tensor) -> Tensor:
    """Return each response's rank by reward, int64 [B, R]; equal rewards share the better rank."""
    comparable = reward.masked_fill(~present, -torch.inf)
    return 1 + (comparable[:, None, :] > comparable[:, :, None]).sum(dim=-1)


def _messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def _text(row: PreferenceRow, number: int) -> str | list[dict[str, str]]:
    response = row.responses[number]
    return response[0].content if len(response) == 1 else _messages(response)
