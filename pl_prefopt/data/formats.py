"""The layouts of preference data, each recognised by its columns and converted to rows.

To add a layout, add a class to ``FORMATS``; no other code refers to layouts by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pl_prefopt.data.dialogues import (
    BadRowError,
    as_messages,
    as_prompt,
    as_response,
    check_prompt,
    check_response,
    is_hh_dialogue,
    shown,
    split_at_common_prefix,
)
from pl_prefopt.errors import closest
from pl_prefopt.rows import Columns, Message, PreferenceRow

Fields = Mapping[str, Any]

_UNSUPPORTED = ("tools", "images", "image")
_LARGEST_SCORE = 3.4e38


class Format(Protocol):
    """One layout of raw rows.

    Attributes:
        columns: the keys that a row of this layout has.
        optional: further keys that it reads if present.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys that a row of this layout has."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Further keys that it reads if present."""
        ...

    def claims(self, fields: Fields) -> bool:
        """Whether the columns identify this layout, even if some of them are missing."""
        ...

    def convert(self, fields: Fields) -> PreferenceRow:
        """Convert raw fields to a row.

        Raises:
            BadRowError: if they can't be converted.
        """
        ...


class Pairs:
    """``chosen`` and ``rejected``, with an explicit ``prompt`` or with their common prefix as the prompt.

    Covers TRL's preference format, standard and conversational, and raw HH-RLHF dialogues. TRL's
    ``score_chosen`` and ``score_rejected`` become graded scores; if they are equal, only the order is kept.
    """

    columns = ("prompt", "chosen", "rejected")
    optional = ("score_chosen", "score_rejected")

    def claims(self, fields: Fields) -> bool:
        """Whether ``chosen`` or ``rejected`` is present."""
        return "chosen" in fields or "rejected" in fields

    def convert(self, fields: Fields) -> PreferenceRow:
        """See the base class."""
        chosen, rejected = (_pair_member(fields, key) for key in ("chosen", "rejected"))
        if fields.get("prompt") is not None:
            prompt = as_prompt(fields["prompt"], "prompt")
            responses = (as_response(chosen, "chosen", prompt), as_response(rejected, "rejected", prompt))
        else:
            prompt, responses = _implicit_prompt(chosen, rejected)
        if responses[0] == responses[1]:
            raise BadRowError("'chosen' and 'rejected' are identical, so there is nothing to prefer")
        scores, graded = _pair_scores(fields)
        return _row(prompt, responses, scores, graded, names=("'chosen'", "'rejected'"))


def _pair_member(fields: Fields, key: str) -> Any:
    if fields.get(key) is None:
        raise BadRowError(f"a pair needs two responses, but the key '{key}' is missing{_found(fields, key)}")
    return fields[key]


def _implicit_prompt(chosen: Any, rejected: Any) -> tuple[list[Message], tuple[list[Message], list[Message]]]:
    """Split two whole dialogues, or two whole texts, after their common prefix."""
    if isinstance(chosen, str) and isinstance(rejected, str) and not is_hh_dialogue(chosen):
        return _common_text(chosen, rejected)
    dialogues = as_messages(chosen, "chosen"), as_messages(rejected, "rejected")
    return split_at_common_prefix(*dialogues)


def _common_text(chosen: str, rejected: str) -> tuple[list[Message], tuple[list[Message], list[Message]]]:
    """Split two texts as TRL's ``extract_prompt`` does: a trailing space goes to the responses."""
    if chosen == rejected:
        raise BadRowError("'chosen' and 'rejected' are identical, so there is nothing to prefer")
    shorter = min(len(chosen), len(rejected))
    end = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    if end and chosen[end - 1] == " ":
        end -= 1
    if not chosen[:end].strip():
        raise BadRowError("there is no 'prompt', and 'chosen' and 'rejected' have no common prefix")
    responses = [Message("assistant", chosen[end:])], [Message("assistant", rejected[end:])]
    return [Message("user", chosen[:end])], responses


def _pair_scores(fields: Fields) -> tuple[tuple[float, float], bool]:
    present = [key for key in ("score_chosen", "score_rejected") if fields.get(key) is not None]
    if not present:
        return (1.0, 0.0), False
    if len(present) == 1:
        raise BadRowError(f"'{present[0]}' is present without its counterpart")
    chosen, rejected = (_number(fields[key], key) for key in present)
    if chosen < rejected:
        raise BadRowError(f"'score_chosen' ({chosen:g}) is below 'score_rejected' ({rejected:g})")
    return ((1.0, 0.0), False) if chosen == rejected else ((chosen, rejected), True)


class ScoredResponses:
    """``prompt`` with any number of ``responses`` and, optionally, one entry of ``scores`` per response."""

    columns = ("prompt", "responses", "scores")
    optional = ()

    def claims(self, fields: Fields) -> bool:
        """Whether ``responses`` is present."""
        return "responses" in fields

    def convert(self, fields: Fields) -> PreferenceRow:
        """See the base class."""
        prompt = as_prompt(_needed(fields, "prompt"), "prompt")
        raw = _sequence(_needed(fields, "responses"), "responses")
        responses = [as_response(value, f"responses[{i}]", prompt) for i, value in enumerate(raw)]
        scores = None
        if fields.get("scores") is not None:
            scores = [_number(v, f"scores[{i}]") for i, v in enumerate(_sequence(fields["scores"], "scores"))]
        return _row(prompt, responses, scores, graded=scores is not None)


class UltraFeedback:
    """``instruction`` with ``completions``, a list of objects with ``response`` and a score."""

    columns = ("instruction", "completions")
    optional = ("prompt",)
    score_keys = ("overall_score", "fine-grained_score", "score", "rating")

    def claims(self, fields: Fields) -> bool:
        """Whether ``completions`` is present."""
        return "completions" in fields

    def convert(self, fields: Fields) -> PreferenceRow:
        """See the base class."""
        prompt_key = "instruction" if fields.get("instruction") is not None else "prompt"
        prompt = as_prompt(_needed(fields, prompt_key, also="instruction"), prompt_key)
        completions = _objects(_needed(fields, "completions"), "completions")
        responses = [
            as_response(_needed(item, "response"), f"completions[{i}].response", prompt)
            for i, item in enumerate(completions)
        ]
        key = next((k for k in self.score_keys if any(c.get(k) is not None for c in completions)), None)
        scores = key and [_number(c.get(key), f"completions[{i}].{key}") for i, c in enumerate(completions)]
        return _row(prompt, responses, scores or None, graded=bool(scores))


class Unpaired:
    """``prompt``, one ``completion`` and a ``label``: true for desirable."""

    columns = ("prompt", "completion", "label")
    optional = ()

    def claims(self, fields: Fields) -> bool:
        """Whether ``completion`` or ``label`` is present."""
        return "completion" in fields or "label" in fields

    def convert(self, fields: Fields) -> PreferenceRow:
        """See the base class."""
        prompt = as_prompt(_needed(fields, "prompt"), "prompt")
        response = as_response(_needed(fields, "completion"), "completion", prompt)
        score = _label(_needed(fields, "label"))
        return _row(prompt, [response], [score], graded=False, names=("'completion'",))


FORMATS: tuple[Format, ...] = (Pairs(), ScoredResponses(), UltraFeedback(), Unpaired())
_READ = {layout: frozenset((*layout.columns, *layout.optional, *_UNSUPPORTED)) for layout in FORMATS}
LAYOUT_NAMES = frozenset().union(*_READ.values())
"""The names of columns that some layout reads; extra columns can't have these names."""


def to_row(fields: Fields) -> PreferenceRow:
    """Convert one raw row of any known layout to a ``PreferenceRow``.

    Raises:
        BadRowError: with the reason, if no layout fits or a value cannot be used.
    """
    for key in _UNSUPPORTED:
        if fields.get(key):
            raise BadRowError(f"the key '{key}' is not supported; remove it if the text does not need it")
    layout = _layout(fields)
    if layout is not None:
        row = layout.convert(fields)
        source = fields.get("source")
        columns = {
            name: value
            for name, value in further_fields(fields, layout)
            if value is None or not why_not_carried(name, value, len(row.responses))
        }
        return dataclasses.replace(
            row,
            source="" if source is None else str(source),
            columns=Columns(columns) if columns else row.columns,
        )
    layouts = "; ".join(", ".join(layout.columns) for layout in FORMATS)
    raise BadRowError(
        f"expected the keys of one of the layouts ({layouts}), got {_listed(fields)}; "
        "set `columns` to map columns with other names"
    )


def _layout(fields: Fields) -> Format | None:
    return next((layout for layout in FORMATS if layout.claims(fields)), None)


def further_fields(fields: Fields, layout: Format | None = None) -> list[tuple[str, Any]]:
    """Return the names and values of a raw row that its layout doesn't read.

    Args:
        fields: the raw row, of some known layout.
        layout: that layout; found from ``fields`` by default.
    """
    layout = layout or _layout(fields)
    read = LAYOUT_NAMES if layout is None else _READ[layout]
    if fields.keys() <= read:  # the common case; checked per row, so it must be fast
        return []
    return [item for item in fields.items() if item[0] not in read]


def why_not_carried(name: str, value: Any, responses: int) -> str:
    """Return why a value can't be kept as an extra column of its row, or an empty string if it can.

    Args:
        name: the key.
        value: the value; not ``None``.
        responses: the number of responses of the row.
    """
    if name in LAYOUT_NAMES:
        return "its name belongs to a layout other than the row's"
    if not _is_unicode(name):
        return "a name that is not valid Unicode"
    if not isinstance(value, list | tuple):
        return _why_no_scalar(value)
    reason = next(filter(None, map(_why_no_scalar, value)), "")
    if not reason and len(value) != responses:
        reason = f"a list of {len(value)} values for {responses} responses"
    return reason


def _why_no_scalar(value: Any) -> str:
    if value is None or isinstance(value, bool | float):
        return ""
    if isinstance(value, str):
        return "" if _is_unicode(value) else "a text that is not valid Unicode"
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else "an integer of more than 64 bits"
    if isinstance(value, list | tuple | Mapping):
        return "nested values"
    return f"a value of type {type(value).__name__}"


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: unpaired surrogates, which JSON allows, can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_fields(row: PreferenceRow) -> dict[str, Any]:
    """Return raw fields that ``to_row`` converts back to ``row``, except for its origin."""
    prompt = [message._asdict() for message in row.prompt]
    responses = [[message._asdict() for message in response] for response in row.responses]
    columns = {
        name: list(value) if isinstance(value, tuple) else value for name, value in row.columns.items()
    }
    if row.graded or row.scores is None:
        scores = {} if row.scores is None else {"scores": list(row.scores)}
        return {"prompt": prompt, "responses": responses, **scores, **columns}
    if len(responses) == 1:
        return {"prompt": prompt, "completion": responses[0], "label": row.scores[0] == 1, **columns}
    return {"prompt": prompt, "chosen": responses[0], "rejected": responses[1], **columns}


def _row(
    prompt: Sequence[Message],
    responses: Sequence[Sequence[Message]],
    scores: Sequence[float] | None,
    graded: bool,
    names: Sequence[str] = (),
) -> PreferenceRow:
    """Run the checks common to all layouts and build the row."""
    check_prompt(prompt)
    if not responses:
        raise BadRowError("expected at least one response, got none")
    for number, response in enumerate(responses):
        check_response(response, names[number] if names else f"response {number + 1}")
    if scores is not None and len(scores) != len(responses):
        raise BadRowError(
            f"expected one score per response, got {len(scores)} for {len(responses)} responses"
        )
    return PreferenceRow(
        prompt=tuple(prompt),
        responses=tuple(tuple(response) for response in responses),
        scores=None if scores is None else tuple(scores),
        graded=graded,
    )


def _needed(fields: Fields, key: str, also: str = "") -> Any:
    if fields.get(key) is None:
        names = f"'{also}' or '{key}'" if also and also != key else f"'{key}'"
        raise BadRowError(f"the key {names} is missing{_found(fields, key)}")
    return fields[key]


def _found(fields: Fields, key: str) -> str:
    """Return the part of a message that lists the keys present and suggests a misspelt one."""
    present = [name for name, value in fields.items() if value is not None]
    similar = closest(key, present)
    hint = f"; is '{similar}' a misspelt '{key}'?" if similar else ""
    return f" (got {_listed(present)}){hint}"


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no keys"


def _sequence(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list | tuple):
        raise BadRowError(f"expected '{key}' to be a list")
    return list(value)


def _objects(value: Any, key: str) -> list[dict[str, Any]]:
    """Return a list of objects; ``datasets`` may have converted it to an object of lists."""
    if isinstance(value, Mapping):
        columns = {name: _sequence(items, f"{key}.{name}") for name, items in value.items()}
        return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
    items = _sequence(value, key)
    if not all(isinstance(item, Mapping) for item in items):
        raise BadRowError(f"expected '{key}' to be a list of objects with the key 'response'")
    return items


def _number(value: Any, key: str) -> float:
    if value is None:
        raise BadRowError(f"expected '{key}' to be a number, got null")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise BadRowError(f"expected '{key}' to be a number, got {shown(value)}") from None
    # Batches store scores in float32, where a larger value would overflow to inf.
    if not abs(number) <= _LARGEST_SCORE:
        raise BadRowError(f"expected '{key}' to be a finite number, got {shown(value)}")
    return number


def _label(value: Any) -> float:
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return 1.0
    if text in ("false", "0", "0.0"):
        return 0.0
    raise BadRowError(f"expected 'label' to be true or false, got {value!r}")
