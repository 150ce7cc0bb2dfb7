"""The one internal shape of preference data, as text: a prompt with R >= 1 responses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = Scalar | tuple[Scalar, ...]
"""What a row's column holds: one value, or as a tuple one value per response."""


class Message(NamedTuple):
    """One turn of a dialogue.

    Attributes:
        role: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
        content: its text.
        more: a JSON object of what else the chat template reads, such as ``reasoning_content`` or
            ``tool_calls``; empty where there is nothing else.
    """

    role: str
    content: str
    more: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the message as data files have it.

        Examples:
            >>> Message("assistant", "4.", '{"reasoning_content": "2 + 2"}').as_dict()
            {'role': 'assistant', 'content': '4.', 'reasoning_content': '2 + 2'}
        """
        return {"role": self.role, "content": self.content, **self.extras}

    @property
    def extras(self) -> dict[str, Any]:
        """The content of ``more``."""
        return dict(json.loads(self.more)) if self.more else {}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Message:
        """Return the message that ``as_dict`` wrote."""
        more = {name: value for name, value in fields.items() if name not in ("role", "content")}
        return cls(fields["role"], fields["content"], json.dumps(more) if more else "")


def whole_dialogue(prompt: Sequence[Message], response: Sequence[Message]) -> list[Message]:
    """Return the turns of a prompt and a response, which continues an assistant turn at the prompt's end.

    Examples:
        >>> begun = [Message("user", "Hi"), Message("assistant", "Hello")]
        >>> whole_dialogue(begun, [Message("assistant", ", you!")])[-1].content
        'Hello, you!'
    """
    if not (prompt and response and prompt[-1].role == "assistant"):
        return [*prompt, *response]
    continued = response[0]._replace(content=prompt[-1].content + response[0].content)
    return [*prompt[:-1], continued, *response[1:]]


class Columns(Mapping[str, Value]):
    """A row's further columns by name: a mapping that cannot be changed, and so can be hashed.

    >>> columns = Columns({"annotator": 3, "confidence": [0.5, None]})
    >>> columns["confidence"], columns == {"annotator": 3, "confidence": (0.5, None)}
    ((0.5, None), True)
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Value | list[Scalar]]) -> None:
        self._values: dict[str, Value] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Columns({self._values})"


_NO_COLUMNS = Columns({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """One prompt, its responses, and what is known about which is better.

    Pairs are two responses with scores (1, 0); unpaired data is one response with score 1 (desirable)
    or 0; ranked data is any number of responses with any scores, ties allowed.

    Attributes:
        prompt: the dialogue so far. If it ends with an assistant turn, the responses continue that turn.
        responses: R >= 1 continuations. Almost always one assistant message each; more where two
            dialogues part ways before their last turn. Every response ends with an assistant turn.
        scores: one finite number per response, higher is better; ``None`` where nothing is known.
        graded: whether the scores are grades whose differences mean something, rather than a bare
            order (1 for chosen, 0 for rejected). Correlations are computed on graded rows only.
        origin: where the row came from, for messages: ``"file.jsonl, row 12"``.
        source: which part of a mixture of data the row belongs to, if the data says; reports group by it.
        keep: text in the prompt that truncation must not take, such as what a view put there.
        template_args: a JSON object of arguments for the chat template, such as ``tools``; empty for none.
        columns: the data's further columns by name. A tuple has one value per response.
    """

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    graded: bool = False
    origin: str = ""
    source: str = ""
    keep: str = ""
    template_args: str = ""
    columns: Mapping[str, Value] = field(default=_NO_COLUMNS, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Columns):
            object.__setattr__(self, "columns", Columns(self.columns))

    def with_responses_of(self, donor: PreferenceRow) -> Self:
        """Return this row's prompt with another row's responses, without scores.

        Columns with one value per response come along with the responses; the others stay.
        """
        columns = dict(self.columns)
        for name, value in columns.items():
            theirs = donor.columns.get(name)
            if isinstance(value, tuple) or isinstance(theirs, tuple):
                columns[name] = theirs
        return dataclasses.replace(
            self, responses=donor.responses, scores=None, graded=False, columns=Columns(columns)
        )
