"""From the columns of a raw row to a preference row: which layout it has, and what else it holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pl_prefopt.data.dialogues import (
    REASONING_COLUMNS,
    BadRowError,
    as_json,
    as_prompt,
    called,
    check_prompt,
    shown,
)
from pl_prefopt.data.json_values import parse_json
from pl_prefopt.data.layouts import (
    OUR_LAYOUTS,
    Fields,
    Layout,
    contrast_prompt,
    number,
    prompt_of,
    quoted,
    sequence,
)
from pl_prefopt.data.public_layouts import PUBLIC_LAYOUTS
from pl_prefopt.data.score_lists import DEVIATION, STRENGTH, is_list
from pl_prefopt.errors import ConfigError, printable
from pl_prefopt.rows import Columns, Message, PreferenceRow
from pl_prefopt.views import CONTRAST

FORMATS: tuple[Layout, ...] = (*OUR_LAYOUTS, *PUBLIC_LAYOUTS)

WEIGHT = "weight"
"""The column that multiplies a row's loss."""

_IMAGES = ("images", "image")
_TEMPLATE_ARGS = ("tools", "chat_template_kwargs")
LAYOUT_NAMES = frozenset().union(
    *({*layout.columns, *layout.optional} for layout in OUR_LAYOUTS),
    _TEMPLATE_ARGS,
    _IMAGES,
    REASONING_COLUMNS,
) - {"question", "messages", "conversations", CONTRAST}
"""The names of columns of our layouts; extra columns can't have these names."""


class Converted(NamedTuple):
    """A raw row as a preference row.

    Attributes:
        row: the row, with the extra columns that can be kept.
        further: names and values of all columns that were not read, and why a value can't be kept.
        layout: the name of the layout that the row was read as.
        read: those of the further columns that were also read.
        left_out: the parts of columns that the layout doesn't read.
    """

    row: PreferenceRow
    further: list[tuple[str, Any, str]]
    layout: str
    read: frozenset[str] = frozenset()
    left_out: Sequence[str] = ()


def to_row(fields: Mapping[str, Any]) -> PreferenceRow:
    """Convert one raw row of any known layout to a ``PreferenceRow``.

    Raises:
        BadRowError: with the reason, if no layout fits or a value cannot be used.
    """
    return convert(fields).row


def convert(fields: Mapping[str, Any], mapped: Iterable[str] = ()) -> Converted:
    """Convert one raw row, and return what it holds in addition.

    Args:
        fields: the raw row.
        mapped: the columns that the setting ``columns`` has named.

    Raises:
        BadRowError: with the reason, if no layout or several fit, or a value cannot be used.
    """
    held = Fields(fields, mapped)
    return _converted(fields, held, _layout(held))


def _converted(fields: Mapping[str, Any], held: Fields, layout: Layout) -> Converted:
    for key in _IMAGES:
        if held.get(key):
            raise BadRowError(f"the key '{key}' is not supported; remove it if the text does not need it")
    row = layout.convert(held)
    row = dataclasses.replace(
        row,
        prompt=_with_context(row.prompt, held),
        columns=Columns({**row.columns, **_contrast(row.prompt, held)}),
        source=_source(held),
        template_args=_template_args(held),
    )
    _refuse_reasoning(held)
    _refuse_computed(row, held)
    further = [
        (name, value, "" if value is None else why_not_carried(name, value, len(row.responses)))
        for name, value in map(_with_lists_as_text, (*_unread(fields, held), *row.columns.items()))
        if value is not None or name not in LAYOUT_NAMES  # a null of another layout is no column
    ]
    row = dataclasses.replace(
        row, columns=Columns({name: value for name, value, reason in further if not reason})
    )
    return Converted(row, further, layout.name, frozenset(held.peeked), layout.left_out(held))


def to_prompt(fields: Mapping[str, Any]) -> PreferenceRow:
    """Convert a raw row of any known layout, or one with a prompt alone; the latter has no responses.

    Raises:
        BadRowError: with the reason, if there is no prompt or a value cannot be used.
    """
    return convert_prompt(fields).row


def convert_prompt(fields: Mapping[str, Any], mapped: Iterable[str] = ()) -> Converted:
    """Do as ``to_prompt``, and return what the row holds in addition.

    Args:
        fields: the raw row.
        mapped: the columns that the setting ``columns`` has named.

    Raises:
        BadRowError: with the reason, if there is no prompt or a value cannot be used.
    """
    held = Fields(fields, mapped)
    if any(layout.fits(held) or any(name in held for name in layout.claims) for layout in FORMATS):
        return convert(fields, mapped)
    return _converted(fields, held, _PROMPTS)


def _prompt_alone(fields: Fields) -> PreferenceRow:
    prompt = prompt_of(fields)
    check_prompt(prompt)
    return PreferenceRow(prompt=tuple(prompt), responses=())


_PROMPTS = Layout(name="prompts", columns=(), convert=_prompt_alone)


def _layout(fields: Fields) -> Layout:
    fitting = [layout for layout in FORMATS if layout.fits(fields)]
    fitting = [one for one in fitting if not any(other.contains(one) for other in fitting)]
    if len(fitting) > 1:
        fitting = [one for one in fitting if fields.mapped & set(one.columns)] or fitting
    if len(fitting) > 1:
        names = "' or '".join(layout.name for layout in fitting)
        one = fitting[0].columns[0]
        raise BadRowError(
            f"its columns could be the layout '{names}'; say which is meant with `columns`, as in "
            f"`columns: {{{one}: {one}}}`"
        )
    if fitting:
        return fitting[0]
    for layout in FORMATS:
        if any(name in fields for name in layout.claims):
            return layout
    layouts = "; ".join(", ".join(layout.columns) for layout in OUR_LAYOUTS)
    raise BadRowError(
        f"expected the keys of one of the layouts ({layouts}) or of a public data set, got {quoted(fields)}; "
        "set `columns` to map columns with other names"
    )


# -- what rows of all layouts may have


def _source(fields: Fields) -> str:
    """Return the name of the part of a mixture that a row belongs to; lists and objects are none."""
    source = fields.peek("source")
    if not isinstance(source, str | int | float):
        fields.peeked.discard("source")
        return ""
    text = str(source)
    if not _is_unicode(text):
        raise BadRowError("expected 'source' to be valid Unicode, got an unpaired surrogate")
    return text


def _with_context(prompt: tuple[Message, ...], fields: Fields) -> tuple[Message, ...]:
    """Return the prompt with the row's criteria at the end of its last user turn, after a blank line.

    There truncation reaches them last.
    """
    if "context" in fields.used:  # the layout's prompt
        return prompt
    context = fields.peek("context") or ""
    if not isinstance(context, str) or not _is_unicode(context):
        raise BadRowError(
            f"expected 'context' to be text, got {shown(context)}; name it otherwise with `columns`, as in "
            "`columns: {notes: context}`"
        )
    if not context.strip():
        return prompt
    at = _judged_turn(prompt)
    turn = prompt[at]._replace(content=f"{prompt[at].content}\n\n{context}")
    return (*prompt[:at], turn, *prompt[at + 1 :])


def _without_context(prompt: tuple[Message, ...], context: str) -> tuple[Message, ...]:
    """Undo ``_with_context``."""
    if not context.strip():
        return prompt
    at = _judged_turn(prompt)
    turn = prompt[at]._replace(content=prompt[at].content.removesuffix(f"\n\n{context}"))
    return (*prompt[:at], turn, *prompt[at + 1 :])


def _judged_turn(prompt: tuple[Message, ...]) -> int:
    """Return the place of the last user turn, or else of the last turn."""
    return max((place for place, turn in enumerate(prompt) if turn.role == "user"), default=len(prompt) - 1)


def _contrast(prompt: tuple[Message, ...], fields: Fields) -> dict[str, str]:
    """Return the row's other prompt, with the context too, as JSON for a view."""
    if CONTRAST not in fields:
        return {}
    value = fields[CONTRAST]
    if isinstance(value, str) and value.startswith("["):  # as in CSV, or as this function wrote it
        with contextlib.suppress(ValueError):
            fields = Fields({**fields, CONTRAST: parse_json(value)})
    return {CONTRAST: as_turns(_with_context(tuple(contrast_prompt(fields, prompt)), fields))}


def as_turns(prompt: Iterable[Message]) -> str:
    """Return a prompt as the JSON that ``views.ContrastPrompt`` reads."""
    return as_json([message.as_dict() for message in prompt], CONTRAST)


def _refuse_computed(row: PreferenceRow, fields: Fields) -> None:
    """Refuse columns that others with the same name, made from the row's ratings, would overwrite."""
    for name in row.columns:
        if name in fields and name != CONTRAST:
            shown_name = printable(name)
            raise BadRowError(
                f"both the column '{shown_name}' and the ratings in the row say '{shown_name}'; keep one of "
                "them, or name the column otherwise with `columns`, as in "
                f"`columns: {{given_{shown_name}: {shown_name}}}`"
            )


def _template_args(fields: Fields) -> str:
    """Return the arguments for the chat template, as JSON."""
    given: dict[str, Any] = _template_arg(fields, "chat_template_kwargs", dict)
    if not given.get("tools", True):
        del given["tools"]
    tools = _template_arg(fields, "tools", list)
    if tools and "tools" in given:
        raise BadRowError("both 'tools' and 'chat_template_kwargs' have tools; keep one of them")
    given |= {"tools": tools} if tools else {}
    if "tools" in given and not (isinstance(given["tools"], list) and all(map(called, given["tools"]))):
        raise BadRowError("expected each of the 'tools' to be a function with a name")
    return as_json(given, "tools") if given else ""


def _template_arg(fields: Fields, key: str, kind: type) -> Any:
    """Return a column for the chat template, which may be written as JSON; empty where it is absent."""
    value = fields.get(key)
    if key == "tools" and value is None and isinstance(fields.get("input"), Mapping):
        value = fields["input"].get("tools")  # OpenAI's preference format
    if isinstance(value, str) and value:
        try:
            value = parse_json(value)
        except ValueError:
            raise BadRowError(f"expected '{key}' to be JSON, got {shown(value)}") from None
    if not value:
        return kind()
    if not isinstance(value, kind):
        raise BadRowError(f"expected '{key}' to be {_A[kind]}, got {shown(value)}")
    return _without_nulls(value)  # Parquet gives every row the keys of all rows


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(held) for name, held in value.items() if held is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_A: dict[type, str] = {dict: "an object", list: "a list"}


def _refuse_reasoning(fields: Fields) -> None:
    for key in REASONING_COLUMNS:
        if key in fields and key not in fields.used:
            raise BadRowError(
                f"'{key}' belongs to a response; put it into that response's message, or name it "
                f"otherwise with `columns`, as in `columns: {{notes: {key}}}`"
            )


def _unread(fields: Mapping[str, Any], held: Fields) -> list[tuple[str, Any]]:
    """Return the columns of a row that were not read, with its weight as a number."""
    unread = [(name, value) for name, value in fields.items() if name not in held.used]
    if WEIGHT not in held:
        return unread
    weight = number(fields[WEIGHT], WEIGHT)
    if weight < 0:
        raise BadRowError(f"expected '{WEIGHT}' to be at least 0, got {weight:g}")
    return [(name, weight if name == WEIGHT else value) for name, value in unread]


# -- scores from ratings


def check_weights(aspects: Mapping[str, float]) -> None:
    """Raise a ``ConfigError`` for weights of ratings that give no weighted mean."""
    for name, weight in aspects.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(
                f"expected a number as the weight of '{name}' in `data.aspects`, got {weight!r}"
            )
    if aspects and not any(aspects.values()):
        raise ConfigError("expected a weight other than 0 in `data.aspects`, got none; set one")


def scored_by(converted: Converted, aspects: Mapping[str, float]) -> Converted:
    """Return a row whose scores are the weighted means of ratings, Σ w r / Σ |w|.

    Args:
        converted: the row; each aspect is a column with one rating per response.
        aspects: the weights by the names of the columns; without any, the row stays as it is.

    Raises:
        BadRowError: if a rating is missing.

    Examples:
        >>> rated = {"prompt": "Hi", "responses": ["a", "b"], "clear": [4, 1], "true": [1, 3]}
        >>> scored_by(convert(rated), {"clear": 1, "true": 3}).row.scores
        (1.75, 2.5)
    """
    if not aspects:
        return converted
    total = math.fsum(map(abs, aspects.values()))
    ratings = {name: _ratings(converted.row, name) for name in aspects}
    scores = tuple(
        math.fsum(weight * ratings[name][place] for name, weight in aspects.items()) / total
        for place in range(len(converted.row.responses))
    )
    row = dataclasses.replace(converted.row, scores=scores, graded=True)
    return converted._replace(row=row, read=converted.read.union(aspects))


def _ratings(row: PreferenceRow, name: str) -> list[float]:
    ratings = row.columns.get(name)
    if not isinstance(ratings, tuple):
        raise BadRowError(
            f"expected the column '{printable(name)}', which `data.aspects` names, to have a rating per "
            f"response, got {'none' if ratings is None else shown(ratings)}"
        )
    if None in ratings:
        raise BadRowError(
            f"response {ratings.index(None) + 1} has no rating in the column '{printable(name)}', which "
            "`data.aspects` names"
        )
    return [number(rating, f"{name}[{place}]") for place, rating in enumerate(ratings)]


# -- extra columns


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


def _with_lists_as_text(column: tuple[str, Any]) -> tuple[str, Any]:
    """Return a column that has a list of numbers per response with each list as JSON text."""
    name, value = column
    if not isinstance(value, list | tuple) or not all(item is None or _is_numbers(item) for item in value):
        return column
    return name, [None if item is None else json.dumps(list(item)) for item in value]


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(item, int | float) and not isinstance(item, bool) for item in value
    )


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


# -- back to columns


def as_fields(row: PreferenceRow) -> dict[str, Any]:
    """Return raw fields that ``to_row`` converts back to ``row``, except for its origin."""
    context = str(row.columns.get("context") or "")
    prompt = [message.as_dict() for message in _without_context(row.prompt, context)]
    responses = [[message.as_dict() for message in response] for response in row.responses]
    others: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in row.columns.items()
    }
    if others.get(CONTRAST) is not None:
        other = tuple(map(Message.of, json.loads(others[CONTRAST])))
        others[CONTRAST] = [message.as_dict() for message in _without_context(other, context)]
    if row.template_args:
        given = json.loads(row.template_args)
        tools = given.pop("tools", None)
        others |= {"tools": tools} if tools else {}
        others |= {"chat_template_kwargs": given} if given else {}
    if row.source and str(others.get("source")) != row.source:  # no column, or one of another type
        others["source"] = row.source
    # A response that begins as its prompt does would be taken for a whole dialogue.
    responses = [
        [*prompt, *response] if prompt and response[: len(prompt)] == prompt else response
        for response in responses
    ]
    written = {"prompt": prompt, **_as_labels(row, responses)}
    both = Fields(written | others)
    several = [layout for layout in PUBLIC_LAYOUTS if layout.fits(both)]
    meant = {name for layout in several for name in layout.columns}  # they would be a second layout
    others = {f"original_{name}" if name in meant else name: value for name, value in others.items()}
    return written | others


def _as_labels(row: PreferenceRow, responses: list[Any]) -> dict[str, Any]:
    scores = row.scores
    if scores is None:
        return {"responses": responses}
    if row.graded:
        return {"responses": responses, "scores": list(scores)}
    if len(responses) == 1 and scores[0] in (0, 1):
        return {"completion": responses[0], "label": scores[0] == 1}
    if scores == (1, 0):
        return {"chosen": responses[0], "rejected": responses[1]}
    return {"responses": responses, "ranks": [-score for score in scores]}


def unlabelled(row: PreferenceRow) -> dict[str, Any]:
    """Return raw fields of a row as a list without labels and without the columns that only describe it."""
    columns = {name: row.columns[name] for name in _OF_ROW if row.columns.get(name) is not None}
    return as_fields(dataclasses.replace(row, scores=None, graded=False, columns=Columns(columns)))


def with_further(fields: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw fields of a list with further columns, none of which gives it a second meaning.

    Those whose names are taken, those that may say what a row's prompt, responses or labels are, and those of
    an earlier verdict get names that begin with ``original_``. Nulls among them are left out.

    Examples:
        >>> with_further({"prompt": "Hi", "responses": ["Yes", "No"]}, {"id": 3, "answers": "Yes"})
        {'prompt': 'Hi', 'responses': ['Yes', 'No'], 'id': 3, 'original_answers': 'Yes'}
    """
    written, meant = dict(fields), MEANT_NAMES | _OF_LABELS
    if "scores" not in fields and is_list(further.get("votes")):
        meant |= {"votes"}  # without scores they would order the responses
    for name, value in further.items():
        kept = name
        while kept in written or kept in meant:
            kept = f"original_{kept}"
        if value is not None or kept == name:
            written[kept] = value
    return written


def relabelled(fields: Mapping[str, Any], converted: Converted, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw row with new labels, which loads as a list of the same responses with these labels.

    Every column of the raw row is kept, under a name that begins with ``original_`` where ``with_further``
    says so. The scores that the layout gives become ``original_scores``.

    Args:
        fields: the raw row.
        converted: what it was converted to.
        labels: the new columns, such as ``scores``; without ``scores`` the row loads as one without any.

    Examples:
        >>> fields = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?", "rater": 3}
        >>> new = relabelled(fields, convert(fields), {"scores": [2.0, 1.0]})
        >>> list(new)
        ['prompt', 'responses', 'scores', 'original_scores', 'original_chosen', 'original_rejected', 'rater']
        >>> convert(new).row.scores, convert(new).row.columns["rater"]
        ((2.0, 1.0), 3)
    """
    written = unlabelled(converted.row)
    rewritten = _rewritten(fields, converted, written)
    written |= labels
    if converted.row.scores is not None:
        written["original_scores"] = _given_scores(fields, converted)
    return with_further(written, {name: fields[name] for name in fields if name not in rewritten})


def _given_scores(fields: Mapping[str, Any], converted: Converted) -> Any:
    """Return the scores of a row as it has them where they are lists, one of each annotator."""
    assert converted.row.scores is not None
    given = fields.get("scores") if converted.layout == "ranked" else None
    if given is not None and any(map(is_list, sequence(given, "scores"))):
        return given
    return list(converted.row.scores)


def _rewritten(fields: Mapping[str, Any], converted: Converted, written: Mapping[str, Any]) -> set[str]:
    """Return the columns whose content a row as messages has under the same name."""
    same = (*_TEMPLATE_ARGS, "context", "source")
    names = {name for name in same if name in written and written[name] == fields.get(name)}
    names |= {name for name in ("prompt", CONTRAST) if _holds(fields.get(name), name, written.get(name))}
    return names | ({"responses", "scores"} if converted.layout == "ranked" else set())


def _holds(value: Any, key: str, turns: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether the content of a column is a prompt's turns."""
    if not isinstance(value, str | list):
        return False
    try:
        return turns == [message.as_dict() for message in as_prompt(value, key)]
    except BadRowError:  # a column that the layout doesn't read
        return False


MEANT_NAMES = (
    LAYOUT_NAMES.union(*({*layout.columns, *layout.optional} for layout in FORMATS)) | {"question"}
) - {CONTRAST}
"""The names of columns that may say what a row's prompt, responses and labels are."""

_OF_ROW = ("context", "source", CONTRAST)
"""The extra columns that are a part of the row, whatever its labels are."""

_OF_LABELS = {
    *("judge", "judge_scores", "judge_problems", "rationales"),
    *("preference", "pair_probabilities", "pair_probabilities_by_order", STRENGTH, DEVIATION),
}
"""The extra columns that say where a row's labels come from or how sure they are."""


def check_new_column(name: str, setting: str, *others: str) -> None:
    """Raise a ``ConfigError`` if a column that is added to rows would be a part of the row itself.

    Args:
        name: the column.
        setting: what names it, such as ``"`into` of SoftLabels"``.
        others: further names that it can't have.
    """
    if name in MEANT_NAMES or name in ("source", *others):
        raise ConfigError(
            f"expected {setting} to be the name of an extra column, got '{printable(name)}', which is a part "
            "of the row itself: choose another name."
        )
