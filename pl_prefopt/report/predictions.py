"""Reading ``predictions.jsonl``: what a policy gave each response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pl_prefopt.errors import DataError
from pl_prefopt.rows import Message


@dataclass(frozen=True, slots=True)
class Response:
    """One response.

    Attributes:
        messages: its turns.
        log_prob: the sum over its tokens under the policy, in nats; ``None`` of reward models.
        length: in tokens.
        reward: the objective's implicit reward.
        score: the data's, if it has one.
        tokens: each token's text and its share of the reward, ``None`` where it doesn't count; empty without
            rewards per token.
    """

    messages: tuple[Message, ...]
    log_prob: float | None
    length: int
    reward: float
    score: float | None
    tokens: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prompt with its responses.

    Attributes:
        prompt: the dialogue so far.
        responses: in the data's order.
        graded: whether differences of the scores mean something.
        source: which part of a mixture of data it belongs to, or nothing.
        origin: file and row.
        columns: the data's further columns.
    """

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    graded: bool
    source: str
    origin: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_single(self) -> bool:
        """Whether this is one response with a verdict, as KTO trains on, and so never part of a pair."""
        return len(self.responses) == 1 and self.responses[0].score is not None


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file that the ``PredictionWriter`` wrote.

    Raises:
        DataError: naming the row that is no prediction, or comes from a version that noted less.
    """
    predictions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                predictions.append(_prediction(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
                raise DataError(
                    f"expected a prediction in {path}, row {number}, got: {what}; write the file anew with "
                    "`prefopt test`, `validate` or `predict`"
                ) from error
    return predictions


def _prediction(fields: Mapping[str, Any]) -> Prediction:
    return Prediction(
        prompt=tuple(Message.of(message) for message in fields["prompt"]),
        responses=tuple(_response(response) for response in fields["responses"]),
        graded=bool(fields["graded"]),
        source=str(fields["source"]),
        origin=str(fields["origin"]),
        columns=fields.get("columns", {}),
    )


def _response(fields: Mapping[str, Any]) -> Response:
    said = fields["response"]
    messages = [Message("assistant", said)] if isinstance(said, str) else [Message.of(turn) for turn in said]
    return Response(
        messages=tuple(messages),
        log_prob=_number(fields["log_prob"]),
        length=int(fields["length"]),
        reward=float(fields["reward"]),
        score=None if fields["score"] is None else float(fields["score"]),
        tokens=tuple((str(text), _number(reward)) for text, reward in fields.get("tokens", ())),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
