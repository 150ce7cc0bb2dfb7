"""Converting raw texts, message lists and HH-RLHF dialogues to messages."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pl_prefopt.data.json_values import parse_json
from pl_prefopt.errors import suggest
from pl_prefopt.rows import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_NAMES = {
    "human": "user",
    "Human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "Assistant": "assistant",
    "observation": "tool",
}
"""What ShareGPT, OpenAssistant and other data sets call the roles."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which data sets keep the reasoning before a response; chat templates know one of them."""

REASONING_COLUMNS = REASONING[:2]
"""Those that can be columns too; as a column, ``reasoning`` is often an annotator's."""

_FOR_TEMPLATES = ("tool_calls", "tool_call_id", "name")
_REFUSED = ("function_call", "images", "image", "audio", "video")
"""Keys of a message that change what it means, and that are not supported."""
_TURN = ({"role", "content"}, {"from", "value"})
_READ = frozenset((*_TURN[0], *_TURN[1], *_FOR_TEMPLATES, *REASONING, *_REFUSED))

_HH_START = "\n\nHuman:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


class BadRowError(Exception):
    """Raised for a raw row that cannot be used. The message is the reason, without file and row."""


def is_hh_dialogue(text: str) -> bool:
    """Whether ``text`` has the format of Anthropic's HH-RLHF files."""
    return text.startswith(_HH_START)


def parse_hh_dialogue(text: str) -> list[Message]:
    r"""Split an HH-RLHF dialogue into messages; consecutive turns of the same role are merged.

    >>> turns = parse_hh_dialogue("\n\nHuman: Hi\n\nAssistant: Hello.\n\nAssistant: You?")
    >>> [(turn.role, turn.content) for turn in turns]
    [('user', 'Hi'), ('assistant', 'Hello.\n\nYou?')]
    """
    pieces = _HH_TURN.split(text)
    messages: list[Message] = []
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role = _HH_ROLES[name]
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content.strip()}"
        messages.append(Message(role, content.strip()))
    return messages


def is_marked_turn(text: str) -> bool:
    """Whether a text begins with ``Human:`` or ``Assistant:``."""
    return text.lstrip().startswith(("Human:", "Assistant:"))


def texts_as_turns(texts: Sequence[str], key: str) -> list[Message]:
    """Return a dialogue given as one text per turn, the user's and the assistant's alternating.

    Texts may begin with ``Human:`` and ``Assistant:``, which then give the roles.

    Raises:
        BadRowError: if only some begin so, or the last text is the user's.

    Examples:
        >>> [turn.role for turn in texts_as_turns(["Hi", "Hello.", "Bye", "Bye."], "chosen")]
        ['user', 'assistant', 'user', 'assistant']
    """
    marked = [is_marked_turn(text) for text in texts]
    if all(marked):
        return as_messages("".join(f"\n\n{text.strip()}" for text in texts), key, role="user")
    if any(marked):
        raise BadRowError(f"expected all texts in '{key}' to begin with Human: or Assistant:, or none")
    if len(texts) % 2:
        raise BadRowError(
            f"expected the texts in '{key}' to be turns of the user and the assistant, the last of them the "
            f"assistant's, got {len(texts)} texts; add `prompt` if they are responses"
        )
    return [as_turn(("user", "assistant")[number % 2], text, key) for number, text in enumerate(texts)]


def as_turn(role: str, text: str, key: str) -> Message:
    """Return a text as a turn.

    Raises:
        BadRowError: if it holds an unpaired surrogate.
    """
    _check_text(text, key)
    return Message(role, text)


def as_prompt(value: Any, key: str) -> list[Message]:
    """Return the prompt's messages.

    A plain text is one user turn; the empty assistant turn at the end of an HH prompt is dropped. One that is
    not empty keeps its white space at the end, since the responses continue it.
    """
    messages = as_messages(value, key, role="user")
    if not (isinstance(value, str) and is_hh_dialogue(value) and messages[-1].role == "assistant"):
        return messages
    *before, last = messages
    space = value[len(value.rstrip()) :]
    return [*before, last._replace(content=last.content + space)] if last.content else before


def as_response(value: Any, key: str, prompt: Sequence[Message]) -> list[Message]:
    """Return a response's messages.

    A plain text is one assistant turn; where the response repeats the prompt, the prompt is dropped.
    """
    messages = as_messages(value, key, role="assistant")
    if messages[: len(prompt)] == list(prompt):
        return messages[len(prompt) :]
    return _continuation(messages, prompt) or messages


def _continuation(messages: Sequence[Message], prompt: Sequence[Message]) -> list[Message]:
    """Return what a whole dialogue adds to a prompt that ends inside an assistant turn; empty for others."""
    last = len(prompt) - 1
    if last < 1 or prompt[-1].role != "assistant" or list(messages[:last]) != list(prompt[:last]):
        return []
    for turn in messages[last : last + 1]:
        if turn.role == "assistant" and turn.content.startswith(prompt[-1].content):
            return [turn._replace(content=turn.content[len(prompt[-1].content) :]), *messages[last + 1 :]]
    return []


def as_messages(value: Any, key: str, role: str = "") -> list[Message]:
    """Return ``value`` as messages.

    Args:
        value: a text, an HH-RLHF dialogue, or one or a list of objects with ``role`` and ``content``, or with
            ShareGPT's ``from`` and ``value``.
        key: the column's name, for error messages.
        role: the role of a plain text; without one, a plain text is an error.

    Raises:
        BadRowError: if ``value`` is none of these.
    """
    if isinstance(value, str):
        _check_text(value, key)
        if is_hh_dialogue(value):
            return parse_hh_dialogue(value)
        if role:
            return [Message(role, value)]
    if isinstance(value, Mapping):
        return [_as_message(value, key)]
    if not isinstance(value, list | tuple):
        raise BadRowError(f"expected '{key}' to be text or a list of messages, got {shown(value)}")
    return [_as_message(item, f"{key}[{number}]") for number, item in enumerate(value)]


def _as_message(item: Any, key: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRowError(f"expected '{key}' to be a message with 'role' and 'content', got {shown(item)}")
    if item.get("role") is None and "from" in item and "value" in item:  # ShareGPT
        item = {**item, "role": item["from"], "content": item["value"]}
    more = _more(item, key)
    if "role" not in item or ("content" not in item and "tool_calls" not in more):
        raise BadRowError(f"expected '{key}' to be a message with 'role' and 'content', got {shown(item)}")
    role, content = item["role"], item.get("content")
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRowError(
            f"expected the role of '{key}' to be one of {', '.join(ROLES)}, got {shown(role)}"
            f"{suggest(str(role)[:60], ROLES)}"
        )
    if content is None and "tool_calls" in more:
        content = ""
    if isinstance(content, list):
        content = "".join(_text_part(part, key) for part in content)
    if not isinstance(content, str):
        raise BadRowError(f"expected the content of '{key}' to be text, got {shown(content)}")
    _check_text(content, key)
    return Message(role, content, as_json(more, key) if more else "")


def _more(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what a message holds for chat templates in addition to its text."""
    for name in _REFUSED:
        if item.get(name):
            raise BadRowError(f"the key '{name}' of '{key}' is not supported; remove it if it isn't needed")
    more = {name: item[name] for name in _FOR_TEMPLATES if item.get(name)}
    if "tool_calls" in more:
        more["tool_calls"] = _tool_calls(more["tool_calls"], key)
    said = {as_reasoning(item.get(name), f"{key}.{name}") for name in REASONING} - {""}
    if len(said) > 1:
        raise BadRowError(f"'{key}' has different texts in {', '.join(n for n in REASONING if item.get(n))}")
    return more | ({REASONING[0]: said.pop()} if said else {})


def as_reasoning(value: Any, key: str) -> str:
    """Return the reasoning before a response, empty where there is none.

    Raises:
        BadRowError: if it is no text, such as a flag that switches reasoning on.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRowError(f"expected '{key}' to be text, got {shown(value)}")
    return value


def unread_keys(value: Any) -> Iterator[str]:
    """Yield the keys with a value that a message, or any in a list of messages, has and that aren't read."""
    if isinstance(value, Mapping) and any(both <= value.keys() for both in _TURN):
        yield from (str(name) for name, held in value.items() if held is not None and name not in _READ)
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, Mapping | list | tuple):
                yield from unread_keys(item)


def _tool_calls(calls: Any, key: str) -> list[Any]:
    if isinstance(calls, str):
        try:
            calls = parse_json(calls)
        except ValueError:
            calls = None
    named = isinstance(calls, list) and all(map(called, calls))
    if not named:
        raise BadRowError(f"expected the tool_calls of '{key}' to be a list of calls with a name")
    return [_with_arguments(call) for call in calls]


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call with its arguments as an object, which templates expect; OpenAI writes them as JSON."""
    if "function" in call:
        return {**call, "function": _with_arguments(call["function"])}
    arguments = call.get("arguments")
    while isinstance(arguments, str):  # some data sets have JSON in JSON
        try:
            arguments = parse_json(arguments)
        except ValueError:
            return call
    return {**call, "arguments": arguments} if isinstance(arguments, Mapping) else call


def called(call: Any) -> str:
    """Return the name of the function that a tool call names, or that a tool's definition defines."""
    call = call.get("function") or call if isinstance(call, Mapping) else {}
    name = call.get("name") if isinstance(call, Mapping) else None
    return name if isinstance(name, str) else ""


def as_json(value: Any, key: str) -> str:
    """Return a value as JSON.

    Raises:
        BadRowError: if it has none, or holds an unpaired surrogate.
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRowError(f"expected '{key}' to be JSON, got {shown(value)}") from None
    _check_text(text, key)
    return text


def _text_part(part: Any, key: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadRowError(f"expected the content of '{key}' to be text only, got {shown(part)}")


def _check_text(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"expected '{key}' to be valid Unicode, got an unpaired surrogate") from None


def shown(value: Any, limit: int = 60) -> str:
    """Return the ``repr`` of ``value`` for an error message, truncated to ``limit`` characters."""
    brief = reprlib.Repr()  # never builds a long text
    brief.maxstring = brief.maxother = limit
    text = brief.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def split_at_common_prefix(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], tuple[list[Message], list[Message]]]:
    """Split two whole dialogues into their common prompt and the two responses.

    The prompt is their longest common prefix that leaves each at least one turn and does not end with an
    assistant turn.

    Raises:
        BadRowError: if they are identical or have no such prefix.
    """
    if chosen == rejected:
        raise BadRowError("'chosen' and 'rejected' are identical, so there is nothing to prefer")
    end = 0
    while end < min(len(chosen), len(rejected)) and chosen[end] == rejected[end]:
        end += 1
    end = min(end, len(chosen) - 1, len(rejected) - 1)
    while end > 0 and (chosen[end - 1].role == "assistant" or chosen[end].role != "assistant"):
        end -= 1
    if end <= 0:
        raise BadRowError("there is no 'prompt', and 'chosen' and 'rejected' share no first user turn")
    return chosen[:end], (chosen[end:], rejected[end:])


def check_prompt(prompt: Sequence[Message]) -> None:
    """Check that a prompt ends with a non-empty turn that the assistant can answer, or its own to go on with.

    Raises:
        BadRowError: if it does not.
    """
    # A tool's result may be empty: the call was made all the same.
    if not prompt or (not prompt[-1].content.strip() and prompt[-1].role != "tool"):
        raise BadRowError("the prompt is empty")
    if prompt[-1].role == "assistant" and (len(prompt) == 1 or prompt[-1].more):
        raise BadRowError(
            "the prompt ends with an assistant turn that responses can't continue; put a turn before it, and "
            "leave out its reasoning and tool calls"
        )


def check_continues(prompt: Sequence[Message], response: Sequence[Message], name: str) -> None:
    """Check that a response can continue the assistant turn with which a prompt ends.

    Raises:
        BadRowError: if it can't, or repeats that turn; ``name`` says which response.
    """
    if prompt[-1].role != "assistant":
        return
    if response[0].more:
        raise BadRowError(f"{name} continues the prompt's last turn, so it can't begin with {_MORE}")
    if response[0].content.startswith(prompt[-1].content):
        raise BadRowError(
            f"{name} repeats the assistant turn with which the prompt ends and which it continues; remove "
            "that text from one of them"
        )


_MORE = "reasoning, tool calls or a name"


def check_response(response: Sequence[Message], name: str) -> None:
    """Check that a response consists of non-empty assistant turns, possibly with other turns between them.

    Raises:
        BadRowError: if it does not; ``name`` says which response.
    """
    if not response:
        raise BadRowError(f"{name} is empty")
    for turn, at in (("begins", 0), ("ends", -1)):
        if response[at].role != "assistant":
            raise BadRowError(f"{name} {turn} with a {response[at].role} turn instead of an assistant turn")
    if any(
        m.role == "assistant" and not m.content.strip() and "tool_calls" not in m.extras for m in response
    ):
        raise BadRowError(f"{name} is empty, or has an empty assistant turn")
