"""What a layout is, and the layouts that are ours: pairs, lists, UltraFeedback, unpaired labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pl_prefopt.data.dialogues import (
    REASONING,
    REASONING_COLUMNS,
    BadRowError,
    as_json,
    as_messages,
    as_prompt,
    as_reasoning,
    as_response,
    as_turn,
    check_continues,
    check_prompt,
    check_response,
    is_hh_dialogue,
    is_marked_turn,
    shown,
    split_at_common_prefix,
    texts_as_turns,
    unread_keys,
)
from pl_prefopt.data.json_values import parse_json
from pl_prefopt.data.score_lists import is_list, mean_scores, strength_of_pair
from pl_prefopt.errors import closest, printable
from pl_prefopt.rows import Columns, Message, PreferenceRow, Value
from pl_prefopt.views import CONTRAST

_NO_COLUMNS: Mapping[str, Any] = {}
_LARGEST_SCORE = 3.4e38
_KEYS_SHOWN = 20
_SCORES_OF_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_score_list", "rejected_score_list"),
    ("chosen score list", "rejected score list"),
)


class Fields(Mapping[str, Any]):
    """The columns of a raw row that have a value. It records which of them are read.

    A null is an absent column: Parquet and JSON lists give every row the columns of all rows.

    Args:
        fields: the raw row.
        mapped: the columns that the setting ``columns`` has named; they decide where several could be meant.

    Attributes:
        used: the columns that were read.
        peeked: those that were read and are extra columns all the same.
    """

    def __init__(self, fields: Mapping[str, Any], mapped: Iterable[str] = ()) -> None:
        self._held = {name: value for name, value in fields.items() if value is not None}
        self.mapped = frozenset(mapped)
        self.used: set[str] = set()
        self.peeked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self._held[name]
        self.used.add(name)
        return value

    def peek(self, name: str) -> Any:
        """Return the value of a column that stays an extra column, or ``None`` if there is none."""
        if name in self._held:
            self.peeked.add(name)
        return self._held.get(name)

    def look(self, name: str) -> Any:
        """Return the value of a column, or ``None``, without recording that it was read."""
        return self._held.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


Given: TypeAlias = tuple[Sequence[float] | None, bool]
"""The scores of a row's responses, and whether their differences mean something."""

_CHOSEN: Given = ((1.0, 0.0), False)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout of raw rows.

    Attributes:
        name: what the documentation calls it.
        columns: the columns that every row of this layout has.
        optional: further columns that it reads. A layout that reads all columns of another one is meant where
            a row has both.
        claims: columns that show this layout even if others are missing, for messages.
        objects: those of ``columns`` that must be objects for a row to have this layout.
        parts: the keys that it reads of columns with objects; of a group, the first that is there.
        convert: makes a row, or raises ``BadRowError``.
    """

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Fields], PreferenceRow]
    optional: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    parts: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def left_out(self, fields: Fields) -> list[str]:
        """Return the parts of a row's columns that this layout doesn't read, as ``column.key``."""
        found = []
        for column, groups in self.parts.items():
            names = _keys_in(fields.look(column), column)
            read = {next((name for name in group if name in names), "") for group in groups}
            if read != {""}:  # otherwise it was read in another form, such as a list of messages
                found += [f"{column}.{name}" for name in names if name not in read]
        of_messages = ((column, unread_keys(fields.look(column))) for column in sorted(fields.used))
        return [*found, *dict.fromkeys(f"{column}.{name}" for column, names in of_messages for name in names)]

    def fits(self, fields: Fields) -> bool:
        """Whether the row has all columns of this layout."""
        return all(name in fields for name in self.columns) and all(
            isinstance(fields.look(name), Mapping) for name in self.objects
        )

    def contains(self, other: Layout) -> bool:
        """Whether this layout reads all columns of the other, and more."""
        return other is not self and set(other.columns) < {*self.columns, *self.optional}


def _keys_in(value: Any, column: str) -> dict[str, None]:
    """Return the keys with a value in an object, or in a list of objects; none of anything else."""
    try:
        items = [value] if isinstance(value, Mapping) else objects(value, column)
    except BadRowError:  # a text, which the layout has read
        items = []
    return {str(name): None for item in items for name in item if item[name] is not None}


# -- the prompt


def prompt_of(fields: Fields) -> list[Message]:
    """Return the prompt of a row from the columns that may hold it: the one place that knows their meaning.

    The prompt is ``prompt``, or Alpaca's ``instruction`` with ``input``, or ``question``, ``input``,
    ``messages`` or ``conversations``. ``history`` comes before it and ``system`` before both.

    Raises:
        BadRowError: if there is none, or several could be meant.
    """
    return _around(_base_prompt(fields), fields)


def _base_prompt(fields: Fields) -> list[Message]:
    if "prompt" in fields:
        prompt = fields["prompt"]
        for name in () if "prompt" in fields.mapped else ("instruction", "input"):
            if name in fields and fields[name] not in ("", prompt):
                raise BadRowError(
                    f"both 'prompt' and '{name}' could be the prompt; say which with `columns`, as in "
                    "`columns: {prompt: prompt}`"
                )
        return as_prompt(prompt, "prompt")
    if "instruction" in fields:
        prompt = as_prompt(fields["instruction"], "instruction")
        return _with_input(prompt, fields["input"]) if fields.get("input") else prompt
    for name in ("question", "input", "messages", "conversations"):
        if name in fields:
            value = fields[name]
            if isinstance(value, Mapping) and "messages" in value:  # OpenAI
                name, value = f"{name}.messages", value["messages"]
            return _complete(as_prompt(value, name), name)
    raise BadRowError(f"the key 'prompt' is missing{found(fields, 'prompt')}")


def _complete(prompt: list[Message], name: str) -> list[Message]:
    """Return a prompt that is named otherwise, which may be a whole dialogue by mistake."""
    if prompt and prompt[-1].role == "assistant":
        raise BadRowError(
            f"'{name}' ends with an assistant turn, which belongs to the responses; if they continue it, say "
            f"so with `columns: {{prompt: {name}}}`"
        )
    return prompt


def _with_input(prompt: list[Message], text: Any) -> list[Message]:
    """Return Alpaca's instruction with its input on the next line, as LLaMA-Factory writes it."""
    if not isinstance(text, str) or len(prompt) != 1:
        raise BadRowError(f"expected 'instruction' and 'input' to be texts, got {shown(text)}")
    return as_prompt(f"{prompt[0].content}\n{text}", "input")


def _around(prompt: list[Message], fields: Fields) -> list[Message]:
    """Return the prompt with the turns of ``history`` and ``system`` before it."""
    before = _history(fields["history"]) if fields.get("history") else []
    system = fields.get("system")
    if system is None or system == "":
        return [*before, *prompt]
    if not isinstance(system, str):
        raise BadRowError(f"expected 'system' to be text, got {shown(system)}")
    first = as_messages(system, "system", role="system")
    if prompt[:1] and prompt[0].role in ("system", "developer"):
        if prompt[0].content != system:
            raise BadRowError(
                "both 'system' and the prompt's first turn are a system prompt; keep one of them"
            )
        first = []
    return [*first, *before, *prompt]


def _history(turns: Any) -> list[Message]:
    """Return the turns of Alpaca's ``history``: pairs of a question and its answer, or messages."""
    turns = sequence(turns, "history")
    if not all(isinstance(turn, list | tuple) for turn in turns):
        return as_messages(turns, "history")
    if not all(len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns):
        raise BadRowError("expected 'history' to be a list of pairs of a question and an answer")
    return [
        as_turn(role, text, "history")
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


# -- pairs


def _pair(fields: Fields) -> PreferenceRow:
    chosen, rejected = (_pair_member(fields, key) for key in ("chosen", "rejected"))
    texts = _are_texts(chosen) and _are_texts(rejected)
    if texts and _has_prompt(fields):
        return _good_and_bad(fields, chosen, rejected)
    if texts:
        turns = texts_as_turns(chosen, "chosen"), texts_as_turns(rejected, "rejected")
        prompt, responses = split_at_common_prefix(*turns)
        prompt = _around(prompt, fields)
    elif _has_prompt(fields):
        prompt = prompt_of(fields)
        responses = as_response(chosen, "chosen", prompt), as_response(rejected, "rejected", prompt)
    else:
        prompt, responses = _implicit_prompt(chosen, rejected)
        prompt = _around(prompt, fields)
    if responses[0] == responses[1]:
        raise BadRowError("'chosen' and 'rejected' are identical, so there is nothing to prefer")
    given, columns = _pair_scores(fields)
    return row_of(prompt, responses, given, names=("'chosen'", "'rejected'"), columns=columns)


def _pair_member(fields: Fields, key: str) -> Any:
    if key not in fields:
        raise BadRowError(f"a pair needs two responses, but the key '{key}' is missing{found(fields, key)}")
    return fields[key]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


def _good_and_bad(fields: Fields, chosen: Sequence[str], rejected: Sequence[str]) -> PreferenceRow:
    """Return lists of good and bad texts, as in RewardBench 2, as one list with scores 1 and 0."""
    if all(map(is_marked_turn, (*chosen, *rejected))):
        raise BadRowError(
            "the texts in 'chosen' and 'rejected' begin with Human: or Assistant:, so they could be turns or "
            "responses; write turns as messages"
        )
    prompt = prompt_of(fields)
    both = (("chosen", chosen), ("rejected", rejected))
    responses = [[as_turn("assistant", text, key)] for key, texts in both for text in texts]
    return row_of(prompt, responses, ([1.0] * len(chosen) + [0.0] * len(rejected), False))


def _has_prompt(fields: Fields) -> bool:
    if any(name in fields for name in ("prompt", "instruction", "question", "input")):
        return True
    # Some files repeat the chosen dialogue as `messages`: that is no prompt.
    for name in ("messages", "conversations"):
        if name in fields:
            turns = as_messages(fields[name], name, role="user")
            if turns and turns[-1].role != "assistant":
                return True
            fields.used.discard(name)
    return False


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
    first = as_turn("assistant", chosen[end:], "chosen")
    second = as_turn("assistant", rejected[end:], "rejected")
    return as_messages(chosen[:end], "chosen", role="user"), ([first], [second])


def _pair_scores(fields: Fields) -> tuple[Given, Mapping[str, Value]]:
    """Return the scores of a pair; of lists of scores the columns that say how strong the preference is."""
    names = next((names for names in _SCORES_OF_PAIRS if any(name in fields for name in names)), None)
    if names is None:
        return _CHOSEN, {}
    missing = [name for name in names if name not in fields]
    if missing:
        if "rating" in fields:  # distilabel's Orca pairs have the ratings of both in it, in another order
            return _CHOSEN, {}
        present = next(name for name in names if name in fields)
        raise BadRowError(f"'{present}' is present without its counterpart '{missing[0]}'")
    if any(is_list(fields[name]) for name in names):
        # The annotators may contradict the label, which then says no more than which one was chosen.
        return _CHOSEN, strength_of_pair(numbers(fields, names[0]), numbers(fields, names[1]), names)
    chosen, rejected = (number(fields[name], name) for name in names)
    if chosen < rejected:
        raise BadRowError(f"'{names[0]}' ({chosen:g}) is below '{names[1]}' ({rejected:g})")
    return (_CHOSEN if chosen == rejected else ((chosen, rejected), True)), {}


# -- lists and single responses


def _list(fields: Fields) -> PreferenceRow:
    prompt = prompt_of(fields)
    raw = sequence(needed(fields, "responses"), "responses")
    responses = [as_response(value, f"responses[{i}]", prompt) for i, value in enumerate(raw)]
    check_among(fields, prompt, responses)
    if "scores" in fields and "ranks" in fields:
        raise BadRowError("both 'scores' and 'ranks' order the responses; keep one of them")
    if "ranks" in fields:
        return row_of(prompt, responses, ([-rank for rank in numbers(fields, "ranks")], False))
    if "scores" not in fields:
        return row_of(prompt, responses, _votes(fields))
    raw = sequence(fields["scores"], "scores")
    if not any(map(is_list, raw)):
        return row_of(prompt, responses, (numbers(fields, "scores"), True))
    scores, columns = mean_scores([_numbers_in(one, f"scores[{i}]") for i, one in enumerate(raw)], "scores")
    return row_of(prompt, responses, (scores, True), columns=columns)


def _votes(fields: Fields) -> Given:
    """Return the votes for each response as its score, where they are all that orders the responses."""
    if not is_list(votes := fields.peek("votes")):
        fields.peeked.discard("votes")
        return None, False
    votes = _numbers_in(votes, "votes")
    if min(votes, default=0) < 0:
        raise BadRowError(f"expected 'votes' to be at least 0, got {min(votes):g}")
    return votes, True


def check_among(fields: Fields, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> None:
    """Raise a ``BadRowError`` if ``chosen`` or ``rejected`` is not one of a list's responses."""
    for key in ("chosen", "rejected"):
        if key in fields and as_response(fields[key], key, prompt) not in responses:
            raise BadRowError(
                f"'{key}' is not one of the responses of the list in the same row; say which are meant with "
                "`columns`, as in `columns: {chosen: chosen, rejected: rejected}`"
            )


_ULTRAFEEDBACK_SCORES = ("overall_score", "fine-grained_score", "score", "rating")


def _ultrafeedback(fields: Fields) -> PreferenceRow:
    if "instruction" not in fields and "prompt" not in fields:
        raise BadRowError(f"the key 'instruction' or 'prompt' is missing{found(fields, 'instruction')}")
    key = "instruction" if "instruction" in fields and "prompt" not in fields.mapped else "prompt"
    prompt = _around(as_prompt(fields[key], key), fields)
    completions = objects(needed(fields, "completions"), "completions")
    responses = [
        as_response(needed(item, "response"), f"completions[{i}].response", prompt)
        for i, item in enumerate(completions)
    ]
    score = next((k for k in _ULTRAFEEDBACK_SCORES if any(c.get(k) is not None for c in completions)), None)
    scores = score and [number(c.get(score), f"completions[{i}].{score}") for i, c in enumerate(completions)]
    return row_of(prompt, responses, (scores or None, bool(scores)), columns=_aspects(completions))


def _aspects(completions: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return the ratings of UltraFeedback's aspects, one per response, ``None`` for "N/A"."""
    rated = [item.get("annotations") for item in completions]
    names = sorted({str(name) for one in rated if isinstance(one, Mapping) for name in one})
    found = {name: [_rating(one, name) for one in rated] for name in names}
    return {name: ratings for name, ratings in found.items() if any(rating is not None for rating in ratings)}


def _rating(annotations: Any, name: str) -> float | None:
    aspect = annotations.get(name) if isinstance(annotations, Mapping) else None
    value = aspect.get("Rating") if isinstance(aspect, Mapping) else None
    return (
        None
        if value in (None, "", "N/A")
        else number(value, f"completions.annotations.{printable(name)}.Rating")
    )


def _unpaired(fields: Fields) -> PreferenceRow:
    prompt = prompt_of(fields)
    response = as_response(needed(fields, "completion"), "completion", prompt)
    for key in REASONING_COLUMNS:
        said = as_reasoning(fields.look(key), key)
        if key in fields and len(response) == 1 and not response[0].more:
            fields.used.add(key)
            more = as_json({REASONING[0]: said}, key) if said else ""
            response = [response[0]._replace(more=more)]
    return row_of(
        prompt, [response], ([float(truth(needed(fields, "label"), "label"))], False), names=("'completion'",)
    )


def truth(value: Any, key: str) -> bool:
    """Return a truth value, which may be a number or a text, as in CSV."""
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise BadRowError(f"expected '{key}' to be true or false, got {shown(value)}")


def _contrast(fields: Fields) -> PreferenceRow:
    """Read one response to two prompts, of which it fits the first better."""
    prompt = _around(as_prompt(fields["prompt_chosen"], "prompt_chosen"), fields)
    response = as_response(needed(fields, "completion"), "completion", prompt)
    return row_of(prompt, [response], ([1.0], False), names=("'completion'",))


def contrast_prompt(fields: Fields, prompt: Sequence[Message]) -> list[Message]:
    """Return the other prompt of a row, which its chosen response fits less well."""
    other = _around(as_prompt(fields[CONTRAST], CONTRAST), fields)
    check_prompt(other)
    if (other[-1].role == "assistant") != (prompt[-1].role == "assistant"):
        raise BadRowError(
            f"only one of the prompt and '{CONTRAST}' ends with an assistant turn, which a response "
            "continues; end both with an assistant turn, or neither"
        )
    if other == list(prompt):
        raise BadRowError(f"the prompt and '{CONTRAST}' are identical, so there is nothing to prefer")
    return other


PROMPT_COLUMNS = (
    "prompt",
    "instruction",
    "question",
    "input",
    "messages",
    "conversations",
    "history",
    "system",
)
"""The columns that ``prompt_of`` reads."""

_PAIR_SCORES = tuple(name for names in _SCORES_OF_PAIRS for name in names)
OUR_LAYOUTS = (
    Layout(
        name="pairs",
        columns=("chosen", "rejected"),
        optional=(*PROMPT_COLUMNS, *_PAIR_SCORES),
        claims=("chosen", "rejected"),
        convert=_pair,
    ),
    Layout(
        name="ranked",
        columns=("prompt", "responses"),
        optional=(*PROMPT_COLUMNS, "scores", "ranks", "chosen", "rejected"),
        claims=("responses",),
        convert=_list,
    ),
    Layout(
        name="UltraFeedback",
        columns=("instruction", "completions"),
        optional=PROMPT_COLUMNS,
        claims=("completions",),
        parts={"completions": (("response",), ("annotations",), _ULTRAFEEDBACK_SCORES)},
        convert=_ultrafeedback,
    ),
    Layout(
        name="unpaired",
        columns=("completion", "label"),
        optional=(*PROMPT_COLUMNS, *REASONING_COLUMNS),
        claims=("completion", "label"),
        convert=_unpaired,
    ),
    Layout(
        name="prompt contrast",
        columns=("prompt_chosen", CONTRAST, "completion"),
        optional=("history", "system"),
        claims=("prompt_chosen",),
        convert=_contrast,
    ),
)


# -- for all layouts


def row_of(
    prompt: Sequence[Message],
    responses: Sequence[Sequence[Message]],
    given: Given,
    names: Sequence[str] = (),
    columns: Mapping[str, Any] = _NO_COLUMNS,
) -> PreferenceRow:
    """Run the checks common to all layouts and build the row, with the columns that its layout computes."""
    scores, graded = given
    check_prompt(prompt)
    if not responses:
        raise BadRowError("expected at least one response, got none")
    for index, response in enumerate(responses):
        name = names[index] if names else f"response {index + 1}"
        check_response(response, name)
        check_continues(prompt, response, name)
    if scores is not None and len(scores) != len(responses):
        raise BadRowError(
            f"expected one score per response, got {len(scores)} for {len(responses)} responses"
        )
    return PreferenceRow(
        prompt=tuple(prompt),
        responses=tuple(tuple(response) for response in responses),
        scores=None if scores is None else tuple(scores),
        graded=graded,
        columns=Columns(columns),
    )


def needed(fields: Mapping[str, Any], key: str) -> Any:
    """Return a value that must be there."""
    if fields.get(key) is None:
        raise BadRowError(f"the key '{key}' is missing{found(fields, key)}")
    return fields[key]


def found(fields: Mapping[str, Any], key: str) -> str:
    """Return the part of a message that lists the keys present and suggests a misspelt one."""
    present = [name for name in fields if name in fields and not _is_null(fields, name)]
    similar = closest(key, present)
    hint = f"; is '{printable(similar)}' a misspelt '{key}'?" if similar else ""
    return f" (got {quoted(present)}){hint}"


def _is_null(fields: Mapping[str, Any], name: str) -> bool:
    return not isinstance(fields, Fields) and fields[name] is None


def quoted(names: Iterable[str]) -> str:
    """Return the keys of a row for a message: printable, and not too many."""
    present = list(names)
    more = f" and {len(present) - _KEYS_SHOWN} more" if len(present) > _KEYS_SHOWN else ""
    return (", ".join(f"'{printable(name)}'" for name in present[:_KEYS_SHOWN]) + more) or "no keys"


def sequence(value: Any, key: str) -> list[Any]:
    """Return a list, which may be written as JSON."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            value = None
    if not isinstance(value, list | tuple):
        raise BadRowError(f"expected '{key}' to be a list")
    return list(value)


def objects(value: Any, key: str) -> list[Mapping[str, Any]]:
    """Return a list of objects; ``datasets`` may have converted it to an object of lists."""
    if isinstance(value, Mapping):
        columns = {name: sequence(items, f"{key}.{printable(name)}") for name, items in value.items()}
        if len({len(items) for items in columns.values()}) > 1:
            lengths = ", ".join(f"{shown(name)}: {len(items)}" for name, items in columns.items())
            raise BadRowError(f"expected the lists in '{key}' to have one length, got {lengths[:120]}")
        return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
    items = sequence(value, key)
    if not all(isinstance(item, Mapping) for item in items):
        raise BadRowError(f"expected '{key}' to be a list of objects, got {shown(value)}")
    return items


def numbers(fields: Mapping[str, Any], key: str) -> list[float]:
    """Return a list of finite numbers."""
    return _numbers_in(fields[key], key)


def _numbers_in(value: Any, key: str) -> list[float]:
    return [number(item, f"{key}[{i}]") for i, item in enumerate(sequence(value, key))]


def number(value: Any, key: str) -> float:
    """Return a finite number that float32 can represent."""
    if value is None:
        raise BadRowError(f"expected '{key}' to be a number, got null")
    try:
        read = math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        read = math.inf
    except (TypeError, ValueError):
        raise BadRowError(f"expected '{key}' to be a number, got {shown(value)}") from None
    # Batches store scores in float32, where a larger value would overflow to inf.
    if not abs(read) <= _LARGEST_SCORE:
        raise BadRowError(f"expected '{key}' to be a finite number, got {shown(value)}")
    return read
