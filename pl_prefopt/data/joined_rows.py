"""Lists from files with one response per row: neighbouring rows that belong together become one row.

Examples are the single ratings of HelpSteer and HelpSteer2, and the messages of OpenAssistant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pl_prefopt.data.dialogues import BadRowError, shown
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.formats import FORMATS, WEIGHT
from pl_prefopt.data.layouts import PROMPT_COLUMNS, Fields, truth

MOST_ROWS = 10_000
"""The maximum number of neighbouring rows that are joined, since they are in memory together."""

_SHARED = (*PROMPT_COLUMNS, "context", "source", "tools", "chat_template_kwargs")
_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity", "scores")
_OF_MESSAGES = ("message_id", "text", "role", "message_tree_id")
_OF_CONVERSATIONS = ("system", "history", "tools", "chat_template_kwargs")
_OF_REPLIES = ("context", "source", WEIGHT)
_JOINED_NAMES = ("prompt", "responses", "ranks")


@dataclass
class Joins:
    """Counts of joined rows.

    Attributes:
        rows: the rows that were joined, by the name of their layout.
        lists: the lists that they became.
        unused: those of the rows that are in none of these lists.
    """

    rows: dict[str, int] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, rows: int, lists: int, unused: int) -> None:
        """Count neighbouring rows."""
        for counts, more in ((self.rows, rows), (self.lists, lists), (self.unused, unused)):
            counts[name] = counts.get(name, 0) + more

    def lines(self, label: str) -> list[str]:
        """Return the lines that are printed when the source, called ``label``, has been read."""
        return [
            f"{label}: {count} rows of {name} became {_count(self.lists[name])}{_NOTES[name]}"
            + (f"; {self.unused[name]} of the rows are in none" if self.unused[name] else "")
            for name, count in self.rows.items()
        ]


def _count(lists: int) -> str:
    return f"{lists} list" if lists == 1 else f"{lists} lists"


@dataclass(frozen=True)
class JoinedLayout:
    """A layout whose rows are parts of lists.

    Attributes:
        name: what the documentation calls it.
        key: what all rows of a list, or of several, have in common, from a raw row; ``None`` for other rows.
        join: makes rows of other layouts, and returns them with the number of rows that are in none of them.
        note: how the lists are scored, for the report.
    """

    name: str
    key: Callable[[Mapping[str, Any]], Any]
    join: Callable[[Sequence[Record]], tuple[list[Record], int]]
    note: str = ""


def join_records(
    records: Iterable[Record], mapped: frozenset[str] = frozenset(), joins: Joins | None = None
) -> Iterator[Record]:
    """Yield records, with lists in place of those that are parts of lists.

    Args:
        records: the raw rows.
        mapped: the columns that the setting ``columns`` has named.
        joins: counts what was joined.
    """
    joins = Joins() if joins is None else joins
    layout: JoinedLayout | None = None
    key, members = None, list[Record]()
    for record in records:
        its_layout, its_key = _part_of(record, mapped)
        if layout is not None and (its_layout is not layout or its_key != key):
            yield from _joined(layout, members, joins)
            members = []
        layout, key = its_layout, its_key
        if layout is None:
            yield record
        elif len(members) < MOST_ROWS:
            members.append(record)
        else:
            yield Record(record.origin, {}, f"more than {MOST_ROWS} neighbouring rows belong together")
    if layout is not None:
        yield from _joined(layout, members, joins)


def _part_of(record: Record, mapped: frozenset[str]) -> tuple[JoinedLayout | None, Any]:
    """Return the layout of a row that is a part of a list, and its key."""
    if record.problem or not any(name in record.fields for name in ("response", "message_id")):
        return None, None
    fields = Fields(record.fields, mapped)
    for layout in JOINED_LAYOUTS:
        key = layout.key(record.fields)
        if key is not None and not any(one.fits(fields) for one in FORMATS):
            return layout, key
    return None, None


def _joined(layout: JoinedLayout, members: Sequence[Record], joins: Joins) -> Iterator[Record]:
    lists, unused = layout.join(members)
    joins.add(layout.name, len(members), sum(not one.problem for one in lists), unused)
    yield from lists


def _origin(members: Sequence[Record]) -> str:
    first, last = members[0].origin, members[-1].origin
    name, row, number = first.rpartition(", row ")
    return first if first == last or not row else f"{name}, rows {number} to {last.rpartition(', row ')[2]}"


def _given(members: Sequence[Record], name: str) -> bool:
    return any(member.fields.get(name) is not None for member in members)


def _each(members: Sequence[Record], without: Iterable[str]) -> dict[str, list[Any] | None]:
    """Return the columns of rows as lists with one value per row; ``None`` for those without any value."""
    names = dict.fromkeys(name for member in members for name in member.fields)
    return {
        name: [member.fields.get(name) for member in members] if _given(members, name) else None
        for name in names
        if name not in {*without}
    }


# -- ratings of single responses


def _same_prompt(fields: Mapping[str, Any]) -> Any:
    # A rating may be null: the row is still one of its prompt's.
    if any(fields.get(name) is None for name in ("prompt", "response")) or fields.keys().isdisjoint(_RATINGS):
        return None
    return [fields.get(name) for name in _SHARED]


def _rated(members: Sequence[Record]) -> tuple[list[Record], int]:
    """Return rows with the same prompt as one list, scored by ``scores``, by helpfulness, or not at all.

    Rows that lack the score that others have are bad rows, and left out of the list.
    """
    by = next((name for name in ("scores", "helpfulness") if _given(members, name)), None)
    without = [member for member in members if by is not None and member.fields.get(by) is None]
    bad = [
        Record(member.origin, {}, f"'{by}' is null, but other responses to its prompt have it")
        for member in without
    ]
    members = [member for member in members if by is None or member.fields.get(by) is not None]
    shared = {name: members[0].fields.get(name) for name in _SHARED}
    weights = [member.fields.get(WEIGHT) for member in members]
    if all(weight == weights[0] for weight in weights):  # different ones are refused as a list
        shared[WEIGHT] = weights[0]
    each = _each(members, shared)
    fields = {name: value for name, value in shared.items() if value is not None}
    fields |= {"responses": each.pop("response"), "scores": None if by is None else each[by]}
    fields |= {name: each[name] for name in each if name not in fields}
    return [Record(_origin(members), fields), *bad], len(bad)


# -- messages of trees


def _same_tree(fields: Mapping[str, Any]) -> Any:
    if not all(isinstance(fields.get(name), str | int) for name in _OF_MESSAGES):
        return None
    parent = fields.get("parent_id")
    return fields["message_tree_id"] if parent is None or isinstance(parent, str | int) else None


def _conversations(members: Sequence[Record]) -> tuple[list[Record], int]:
    """Return the ranked replies to each message as a list, with the conversation before them as prompt."""
    messages = {member.fields["message_id"]: member for member in members}
    if len(messages) < len(members):
        problem = "two messages of a tree have the same message_id"
        return [Record(_origin(members), {}, problem)], len(members)
    replies: dict[Any, list[Record]] = {}
    lists, used = list[Record](), set()
    for member in members:
        try:
            if _is_ranked(member.fields):
                replies.setdefault(member.fields["parent_id"], []).append(member)
        except BadRowError as error:
            lists.append(Record(member.origin, {}, str(error)))
    for several in (found for found in replies.values() if len(found) > 1):
        before = _before(several[0], messages)
        lists.append(_ranked(several, before))
        if before is not None and not lists[-1].problem:
            used |= {member.fields["message_id"] for member in (*before, *several)}
    return lists, len(members) - len(used)


def _is_ranked(fields: Mapping[str, Any]) -> bool:
    replies = fields["role"] == "assistant" and fields.get("parent_id") is not None
    deleted = fields.get("deleted")
    return replies and fields.get("rank") is not None and (deleted is None or not truth(deleted, "deleted"))


def _before(reply: Record, messages: Mapping[Any, Record]) -> list[Record] | None:
    """Return the messages that lead to a reply; ``None`` if one of them is missing."""
    found: list[Record] = []
    at = reply.fields["parent_id"]
    while at is not None:
        if at not in messages or len(found) == len(messages):  # or there is a cycle
            return None
        found.insert(0, messages[at])
        at = messages[at].fields.get("parent_id")
    return found


def _ranked(replies: Sequence[Record], before: Sequence[Record] | None) -> Record:
    origin = _origin(replies)
    if before is None:
        return Record(
            origin, {}, "an earlier message isn't among its neighbours; sort the rows by message_tree_id"
        )
    if problem := _why_not_joined(replies, before):
        return Record(origin, {}, problem)
    names = (*_OF_CONVERSATIONS, *_OF_REPLIES)
    read = ("text", "role", "rank", "parent_id", "message_tree_id")
    each = _each(replies, (*read, *_JOINED_NAMES, *names))
    shared = {name: replies[0].fields[name] for name in names if _given(replies, name)}
    prompt = [{"role": member.fields["role"], "content": member.fields["text"]} for member in before]
    responses = [member.fields["text"] for member in replies]
    ranks = [member.fields["rank"] for member in replies]
    return Record(origin, {"prompt": prompt, "responses": responses, "ranks": ranks, **shared, **each})


def _why_not_joined(replies: Sequence[Record], before: Sequence[Record]) -> str:
    """Return why replies have columns that can't be those of one list; empty if they can."""
    for name in _JOINED_NAMES:
        if _given(replies, name):
            return (
                f"'{name}' is made of the messages, but they have a column '{name}' too; name it otherwise "
                f"with `columns`, as in `columns: {{notes: {name}}}`"
            )
    for name in (*_OF_CONVERSATIONS, *_OF_REPLIES):
        value, *others = [member.fields.get(name) for member in replies]
        if name in _OF_CONVERSATIONS:  # an earlier message may lack what the replies say of the conversation
            others += [member.fields[name] for member in before if member.fields.get(name) is not None]
        different = next((other for other in others if other != value), value)
        if different != value:
            return (
                f"expected the messages of a list to have the same '{name}', got {shown(value)} and "
                f"{shown(different)}"
            )
    return ""


JOINED_LAYOUTS = (
    JoinedLayout(
        "HelpSteer2 ratings",
        _same_prompt,
        _rated,
        note=", one per prompt, scored by 'helpfulness' unless `columns` or `aspects` says otherwise",
    ),
    JoinedLayout(
        "OpenAssistant messages",
        _same_tree,
        _conversations,
        note=", one per message with several ranked replies",
    ),
)
_NOTES = {layout.name: layout.note for layout in JOINED_LAYOUTS}
