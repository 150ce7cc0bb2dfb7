"""Predictions as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_prefopt.files import atomic_write, name_os_errors
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.types import PLAIN, Outcome, PreferenceBatch, ScoredBatch

FILE_NAME = "predictions.jsonl"
_FOLDERS = {"fit": "fit", "validate": "validate", "test": "test", "predict": "."}


class PredictionWriter(Callback):
    """Writes one JSON line per prompt, in the data's order, to ``predictions.jsonl``.

    ``predict`` writes it to the run's folder, ``validate`` and ``test`` to folders of their own inside it.
    In ``fit`` each validation replaces the file of the one before, in the folder ``fit``, so that the last
    one's remains.

    A prompt has its ``origin``, its ``source``, whether its scores are ``graded``, and its row's further
    ``columns``. A response has its ``log_prob`` (summed over tokens; null for reward models that compute
    none), ``length`` (in tokens), ``reward``, ``rank`` by reward (1 is best), its ``score`` if the data has
    one, the ``outputs`` of a reward head with several, and, with the module's ``token_rewards``,
    ``tokens``: each token's text and its share of the reward, null for tokens that don't count.

    Args:
        folder: the run's folder.
        most_evaluated: the maximum number of prompts that ``fit``, ``validate`` and ``test`` write, in the
            data's order; ``predict`` writes all.
    """

    def __init__(self, folder: str, most_evaluated: int = 20_000) -> None:
        self.folder, self.most_evaluated = Path(folder), most_evaluated
        self._path: Path | None = None  # None while nothing is to be written
        self._most: int | None = None
        self._tokenizer: Any = None  # while rewards per token are written

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start this rank's part of the file, unless this is the sanity check."""
        command = "" if trainer.state.fn is None else trainer.state.fn.value
        self._path = None
        if command not in _FOLDERS or trainer.sanity_checking:
            return
        self._path = self.folder / _FOLDERS[command] / FILE_NAME
        self._most = None if command == "predict" else self.most_evaluated
        module: Any = pl_module
        # In training, rewards per token are not computed.
        self._tokenizer = module.load_tokenizer() if module.token_rewards and command != "fit" else None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _part(self._path, trainer.global_rank).write_text("", encoding="utf-8")

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
        if self._path is None:
            return
        scored, outcome = outputs
        part = _part(self._path, trainer.global_rank)
        with name_os_errors(part), part.open("a", encoding="utf-8") as file:
            for line in _lines(batch, scored, outcome, self._tokenizer):
                if self._most is None or line["index"] < self._most:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the ranks' parts, in the data's order."""
        if self._path is None:
            return
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = [_part(self._path, rank) for rank in range(trainer.world_size)]
        # Not `splitlines`, which also splits at separators that JSON leaves as they are.
        lines = [line for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line]
        lines.sort(key=lambda line: json.loads(line)["index"])
        with atomic_write(self._path) as draft:
            draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        for part in parts:
            part.unlink()
        if len(lines) == self._most and trainer.state.fn != "fit":  # which would say it at each validation
            print(f"{self._path} holds the first {self._most} prompts; `prefopt predict` writes all.")

    on_validation_start = on_test_start = on_predict_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end
    on_validation_end = on_test_end = on_predict_end


def _part(path: Path, rank: int) -> Path:
    return path.with_suffix(f".{rank}.part")


def _lines(
    batch: PreferenceBatch, scored: ScoredBatch, outcome: Outcome, tokenizer: Any
) -> Iterator[dict[str, Any]]:
    ranks = _ranks(outcome.reward, batch.present).tolist()
    log_probs, lengths = scored.policy.sum.tolist(), scored.policy.length.tolist()
    rewards, present = outcome.reward.tolist(), batch.present.any(dim=-1).tolist()
    for position, row in enumerate(batch.rows):
        if not present[position]:
            continue  # a row that only fills a rank's last batch
        yield {
            "index": int(batch.index[position]),
            "origin": row.origin,
            "source": row.source,
            "graded": row.graded,
            "columns": dict(row.columns),
            "prompt": _messages(row.prompt),
            "responses": [
                {
                    "response": _text(row, number),
                    "log_prob": _or_null(log_probs[position][number]),
                    "length": lengths[position][number],
                    "reward": rewards[position][number],
                    "rank": ranks[position][number],
                    **_outputs(scored, position, number),
                    "score": None if row.scores is None else row.scores[number],
                    **({} if tokenizer is None else _tokens(batch, outcome, (position, number), tokenizer)),
                }
                for number in range(len(row.responses))
            ],
        }


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _outputs(scored: ScoredBatch, position: int, number: int) -> dict[str, list[float]]:
    """Return a response's outputs of a reward head that has several."""
    outputs = scored.outputs.get(REWARD)
    if outputs is None or outputs.shape[-1] == 1:
        return {}
    return {"outputs": outputs[position, number].tolist()}


def _tokens(
    batch: PreferenceBatch, outcome: Outcome, place: tuple[int, int], tokenizer: Any
) -> dict[str, list[list[Any]]]:
    """Return the texts of a response's tokens with their rewards, null where a token doesn't count."""
    tree = batch.trees[PLAIN]
    assert outcome.token_reward is not None, "the module has checked that the objective has them"
    ids = tree.response_ids[place][tree.response_mask[place]].tolist()
    rewards = outcome.token_reward[place][: len(ids)].tolist()
    counted = tree.counted_mask[place][: len(ids)].tolist()
    return {
        "tokens": [
            [text, float(f"{reward:.6g}") if counts else None]
            for text, reward, counts in zip(_token_texts(ids, tokenizer), rewards, counted, strict=True)
        ]
    }


def _token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return each token's text: what it adds to that of the token before, so that spaces are kept.

    Bytes that don't form a character become �.
    """
    texts = []
    for place, token in enumerate(ids):
        before = tokenizer.decode(ids[place - 1 : place]) if place else ""
        texts.append(tokenizer.decode([*ids[max(place - 1, 0) : place], token])[len(before) :])
    return texts


def _ranks(reward: Tensor, present: Tensor) -> Tensor:
    """Return each response's rank by reward, int64 [B, R]; equal rewards share a rank, NaN is last."""
    comparable = reward.masked_fill(~present | reward.isnan(), -torch.inf)
    return 1 + (comparable[:, None, :] > comparable[:, :, None]).sum(dim=-1)


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _text(row: PreferenceRow, number: int) -> str | list[dict[str, Any]]:
    response = row.responses[number]
    return response[0].content if len(response) == 1 and not response[0].more else _messages(response)
