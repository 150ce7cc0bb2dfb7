"""The text that each turn adds to a dialogue, from a single rendering of a chat template.

Rendering each beginning of a dialogue by itself is quadratic in the number of turns. Many templates write
turns one after the other, without looking ahead; for those the text of every beginning follows from one
rendering. Whether a template is one of them is not inferred from its output: its code is analysed, and its
accesses to the dialogue are recorded while it renders. A template with ``loop.last``, ``messages[-1]``, a
second pass over the turns or anything else that can't be analysed is rendered turn by turn.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Template as JinjaTemplate
from jinja2 import nodes


class TurnTexts(NamedTuple):
    """The text that each turn adds to a dialogue.

    The text of the first n turns is ``"".join(turns[:n]) + closing``. With the header of the assistant's turn
    that follows, it is ``"".join(turns[:n]) + opening``.
    """

    turns: Sequence[str]
    closing: str
    opening: str


def turn_texts(
    template: JinjaTemplate, source: str, turns: Sequence[Any], shortest: int, arguments: Mapping[str, Any]
) -> TurnTexts | None:
    """Return the text that each turn adds; ``None`` if one rendering can't be shown to give it.

    Args:
        template: the compiled chat template.
        source: its source.
        turns: the dialogue, as the template reads it.
        shortest: number of turns of the shortest beginning that is asked for, whose turns are not told apart:
            the text of one may be that of several.
        arguments: what else the template reads.
    """
    if shortest < 1 or not _writes_in_order(template, source):
        return None
    closed = _stream(template, turns, shortest, {**arguments, "add_generation_prompt": False})
    opened = _stream(template, turns, shortest, {**arguments, "add_generation_prompt": True})
    if closed is None or opened is None or closed[:-1] != opened[:-1]:
        return None
    return TurnTexts(closed[:-1], closing=closed[-1], opening=opened[-1])


def _stream(
    template: JinjaTemplate, turns: Sequence[Any], shortest: int, arguments: Mapping[str, Any]
) -> list[str] | None:
    """Return the text that is written for each turn, and what is written after the last one."""
    pieces: list[str] = []
    watch = _Watch(shortest, lambda: len(pieces))
    try:
        for piece in template.generate(messages=_Watched(turns, watch), **arguments):
            pieces.append(piece)
    except Exception:  # templates can raise anything; rendering turn by turn says what and where
        return None
    if watch.looked_ahead or not watch.ended:
        return None
    first = len(turns) + 1 - len(watch.begins)  # those before it are read by their index
    begins = [*itertools.repeat(0, max(first, 1)), *watch.begins[first == 0 :], len(pieces)]
    texts = ["".join(pieces[begin:end]) for begin, end in itertools.pairwise(begins)]
    # Turns without text are also what a loop in a buffer, such as a macro's, looks like.
    return texts if all(texts[shortest:-1]) else None


# -- watching what a template reads


class _LookedAheadError(Exception):
    """Raised if a template reads something that would differ for a beginning of the dialogue."""


class _Watch:
    """Records what a template reads of a dialogue.

    Attributes:
        shortest: number of turns that all beginnings have.
        begins: number of pieces of text that were written when each turn was fetched, then at the end.
        ended: whether all turns have been fetched.
        looked_ahead: whether the template has read anything beyond the current turn.
    """

    def __init__(self, shortest: int, written: Callable[[], int]) -> None:
        self.shortest, self._written = shortest, written
        self.begins: list[int] = []
        self.reached = shortest - 1
        self.ended = self.looked_ahead = self._iterated = False

    def ahead(self) -> _LookedAheadError:
        """Note that the template has looked ahead, which it may catch, and return what to raise."""
        self.looked_ahead = True
        return _LookedAheadError()

    def iterate(self, turns: Sequence[Any], first: int) -> Iterator[Any]:
        """Yield the turns from ``first`` on, once."""
        if self._iterated:
            raise self.ahead()
        self._iterated = True
        for number in range(first, len(turns)):
            self.begins.append(self._written())
            self.reached = max(self.reached, number)
            yield turns[number]
        self.begins.append(self._written())
        self.ended = True


class _Watched(Sequence[Any]):
    """The turns of a dialogue from one of the first on, for a template to read."""

    def __init__(self, turns: Sequence[Any], watch: _Watch, first: int = 0) -> None:
        self._turns, self._watch, self._first = turns, watch, first

    def __len__(self) -> int:
        raise self._watch.ahead()

    def __iter__(self) -> Iterator[Any]:
        return self._watch.iterate(self._turns, self._first)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            first = index.start or 0
            if (
                first < 0
                or self._first + first > self._watch.shortest
                or (index.stop, index.step) != (None, None)
            ):
                raise self._watch.ahead()
            return _Watched(self._turns, self._watch, self._first + first)
        if self._watch.ended or index < 0 or self._first + index > self._watch.reached:
            raise self._watch.ahead()
        return self._turns[self._first + index]


# -- analysing a template

_OF_THE_PAST = {"index", "index0", "first", "previtem", "depth", "depth0"}
_STATEFUL = {"cycler", "joiner"}
_UNKNOWN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.ExprStmt)


@functools.lru_cache(maxsize=16)
def _writes_in_order(template: JinjaTemplate, source: str) -> bool:
    """Whether what a template writes after its loop over the turns doesn't depend on them.

    The loop must be in no macro and no other loop, and must not ask for what is still to come. What follows
    it may use constants and what the template is given, except for the turns.
    """
    tree = template.environment.parse(source)
    names = {node.name for node in tree.find_all(nodes.Name)}
    if names & _STATEFUL or next(tree.find_all(_UNKNOWN), None) is not None:
        return False
    lists, derived = _names_of_turns(tree)
    following = dict(_loops(tree.body, []))
    over_turns = [loop for loop in tree.find_all(nodes.For) if _mentions(loop.iter, derived)]
    changing = _changing(tree)
    return bool(over_turns) and all(
        loop in following
        and _is_list(loop.iter, lists)
        and not loop.recursive
        and _reads_the_past(loop)
        and not any(_mentions(node, derived | changing) for node in following[loop])
        for loop in over_turns
    )


def _names_of_turns(tree: nodes.Template) -> tuple[set[str], set[str]]:
    """Return the names of the turns, and of whatever is computed from them."""
    lists, derived = {"messages"}, {"messages"}
    before = 0
    while before != len(derived):
        before = len(derived)
        for assign in tree.find_all((nodes.Assign, nodes.AssignBlock)):
            value = assign.node if isinstance(assign, nodes.Assign) else assign
            if _mentions(value, derived):
                derived |= _targets(assign)
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_list(assign.node, lists):
            lists.add(assign.target.name)
    for assign in tree.find_all(nodes.Assign):
        if not _is_list(assign.node, lists):
            lists -= _targets(assign)
    return lists, derived


def _is_list(node: nodes.Node, lists: set[str]) -> bool:
    """Whether an expression is the turns, or those from one on."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name in lists


def _changing(tree: nodes.Template) -> set[str]:
    """Return the names that are assigned anything but a constant, or by anything but ``set``."""
    constant = {
        assign.target for assign in tree.find_all(nodes.Assign) if isinstance(assign.node, nodes.Const)
    }
    stored = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load" and node not in constant}
    return (
        stored
        | {node.name for node in tree.find_all(nodes.NSRef)}
        | {macro.name for macro in tree.find_all(nodes.Macro)}
    )


def _targets(assign: nodes.Node) -> set[str]:
    """Return the names that an assignment stores."""
    target: Any = getattr(assign, "target")  # noqa: B009 - of several classes
    found = [target, *target.find_all((nodes.Name, nodes.NSRef))]
    return {node.name for node in found if isinstance(node, nodes.Name | nodes.NSRef)}


def _mentions(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Name):
        return node.name in names
    return any(found.name in names for found in node.find_all(nodes.Name))


def _loops(
    body: Sequence[nodes.Node], after: Sequence[nodes.Node]
) -> Iterator[tuple[nodes.For, list[nodes.Node]]]:
    """Yield the loops that are in no other block than ``if``, each with what can follow it."""
    for place, node in enumerate(body):
        following = [*body[place + 1 :], *after]
        if isinstance(node, nodes.For):
            yield node, following
        elif isinstance(node, nodes.If):
            for branch in (node.body, *(other.body for other in node.elif_), node.else_):
                yield from _loops(branch, following)


def _reads_the_past(loop: nodes.For) -> bool:
    """Whether the body of a loop uses ``loop`` only for what has been."""
    inner = {node for other in loop.find_all(nodes.For) for part in other.body for node in _all(part)}
    used = [node for part in loop.body for node in _all(part) if node not in inner]
    known = {id(node.node) for node in used if isinstance(node, nodes.Getattr) and node.attr in _OF_THE_PAST}
    return all(id(node) in known for node in used if isinstance(node, nodes.Name) and node.name == "loop")


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)
