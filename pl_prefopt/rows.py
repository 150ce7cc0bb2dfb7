"""The one internal shape of preference data, as text: a prompt with R >= 1 responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Message(NamedTuple):
    """One turn of a dialogue. ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """One prompt, its responses, and what is known about which is better.

    Pairs are two responses with scores (1, 0); unpaired data is one response with score 1 (desirable)
    or 0; ranked data is any number of responses with any scores, ties allowed.

    Attributes:
        prompt: the dialogue so far; never ends with an assistant turn.
        responses: R >= 1 continuations. Almost always one assistant message each; more where two
            dialogues part ways before their last turn. Every response ends with an assistant turn.
        scores: one finite number a response, higher is better; ``None`` where nothing is known.
        graded: whether the scores are grades whose differences mean something, rather than a bare
            order (1 for chosen, 0 for rejected). Correlations are computed on graded rows only.
        origin: where the row came from, for messages: ``"file.jsonl, row 12"``.
        source: which part of a mixture of data the row belongs to, if the data says; reports group by it.
        keep: text in the prompt that truncation must not take, such as what a view put there.
    """

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    graded: bool = False
    origin: str = ""
    source: str = ""
    keep: str = ""
