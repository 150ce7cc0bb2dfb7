"""The three ways to render a dialogue as text: the tokeniser's chat template, a plain template, and none."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

from pl_prefopt.data.dialogues import REASONING, called
from pl_prefopt.data.turn_texts import TurnTexts, turn_texts
from pl_prefopt.rows import Message

_PROBE = "Certainly"
TURN_MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|start|>", "[INST]")
"""What well-known chat templates write at the start of a turn."""


class TemplateError(Exception):
    """Raised for a dialogue that the template cannot render. The message is the reason.

    Args:
        reason: the reason.
        instead: the template to set instead.
    """

    def __init__(self, reason: str, instead: str = "plain") -> None:
        super().__init__(reason)
        self.instead = instead


class Template(Protocol):
    """Renders dialogues as text.

    Attributes:
        end_token: the token that the template writes after an assistant turn, if any.
        markers: what it, or another template, writes at the start of a turn: text with them is templated
            already.
    """

    markers: frozenset[str]

    @property
    def end_token(self) -> str | None:
        """The token that the template writes after an assistant turn, if any."""
        ...

    def text(self, dialogue: Sequence[Message]) -> str:
        """Render a dialogue that ends with an assistant turn."""
        ...

    def opened(self, dialogue: Sequence[Message]) -> str:
        """Render a dialogue and the header of the assistant turn that follows."""
        ...

    def continued(self, dialogue: Sequence[Message]) -> str:
        """Render a dialogue up to the end of its last turn's text, which a response continues."""
        ...

    def turn_texts(self, dialogue: Sequence[Message], shortest: int) -> TurnTexts | None:
        """Return what each turn adds to the text, for beginnings of a dialogue of ``shortest`` turns or more.

        ``None`` if that can't be shown, or if the template rejects the dialogue.
        """
        ...

    def bound(self, arguments: str) -> Template:
        """Return the template with a row's arguments, a JSON object.

        Raises:
            TemplateError: if it doesn't read them.
        """
        ...


class _Texts:
    """What templates without code have in common: they write texts, and nothing else."""

    def bound(self, arguments: str) -> Self:
        """See ``Template``."""
        if arguments:
            names = ", ".join(json.loads(arguments))
            raise TemplateError(f"only a chat template takes the row's {names}", instead="chat")
        return self

    def _check(self, dialogue: Sequence[Message]) -> None:
        for message in dialogue:
            for name in message.extras.keys() - {"name"}:
                raise TemplateError(
                    f"only a chat template can write the {name} of a {message.role} turn", instead="chat"
                )


class PlainTemplate(_Texts):
    r"""A template for base models: each turn is ``Role: text``, separated by blank lines.

    The prompt ends with ``Assistant:`` and the response starts with a space, since the tokenisers of base
    models split words before a space.

    >>> PlainTemplate().opened([Message("user", "Hi")])
    'User: Hi\n\nAssistant:'
    """

    end_token = None
    _opening = "\n\nAssistant:"

    def __init__(self, tokenizer: Any = None) -> None:
        self.markers = frozenset(_special_tokens(tokenizer).intersection(TURN_MARKERS))

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        self._check(dialogue)
        return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in dialogue)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return f"{self.text(dialogue)}{self._opening}"

    def turn_texts(self, dialogue: Sequence[Message], shortest: int) -> TurnTexts:
        """See the base class."""
        separators = itertools.chain([""], itertools.repeat("\n\n"))
        turns = [space + self.text([turn]) for space, turn in zip(separators, dialogue, strict=False)]
        return TurnTexts(turns, closing="", opening=self._opening)

    def continued(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self.text(dialogue)


class NoTemplate(_Texts):
    """Concatenates texts unchanged, as TRL does with its standard (non-conversational) format."""

    end_token = None
    markers: frozenset[str] = frozenset()

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        self._check(dialogue)
        return "".join(message.content for message in dialogue)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self.text(dialogue)

    def continued(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self.text(dialogue)

    def turn_texts(self, dialogue: Sequence[Message], shortest: int) -> TurnTexts:
        """See the base class."""
        return TurnTexts([self.text([turn]) for turn in dialogue], closing="", opening="")


class ChatTemplate:
    """The tokeniser's own chat template.

    A ``developer`` turn is a ``system`` turn for templates that don't know the role.

    Args:
        tokenizer: the tokeniser.
        arguments: what the template is given for every row; a row's own arguments take precedence.

    Raises:
        TemplateError: if the template doesn't read one of them.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._arguments: Mapping[str, Any] = dict(arguments or {})
        self._check_arguments(self._arguments, "")
        self.end_token, self.markers = self._find_tokens()

    @cached_property
    def _source(self) -> str:
        return json.dumps(self._tokenizer.chat_template)

    def bound(self, arguments: str) -> ChatTemplate:
        """See ``Template``."""
        if not arguments:
            return self
        given = json.loads(arguments)
        self._check_arguments(given, "the row's ")
        other = copy.copy(self)
        other._arguments = {**self._arguments, **given}
        return other

    def _check_arguments(self, arguments: Mapping[str, Any], whose: str) -> None:
        own = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys() - {
            "tools",
            "documents",
        }
        for name in arguments:
            if name in own or name not in self._source:
                raise TemplateError(f"the tokeniser's chat template doesn't read {whose}'{name[:40]}'")

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self._render(dialogue)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self._render(dialogue, add_generation_prompt=True)

    def continued(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self._render(dialogue, continue_final_message=True)

    def turn_texts(self, dialogue: Sequence[Message], shortest: int) -> TurnTexts | None:
        """See the base class."""
        from transformers.utils.chat_template_utils import _compile_jinja_template  # slow to import

        arguments = {
            "tools": None,
            "documents": None,
            **self._tokenizer.special_tokens_map,
            **self._arguments,
        }
        try:
            source = self._tokenizer.get_chat_template(None, arguments["tools"])
            template, turns = _compile_jinja_template(source), [self._as_read(turn) for turn in dialogue]
            found = turn_texts(template, source, turns, shortest, arguments)
            if found is None or not self._confirms(found, dialogue):
                return None
            self._check_written(dialogue[:shortest], "".join(found.turns[:shortest]))
            for turn, text in zip(dialogue[shortest:], found.turns[shortest:], strict=True):
                self._check_turn_written(turn, text)
        except Exception:  # whatever is wrong is found again, and named, turn by turn
            return None
        return found

    def _confirms(self, found: TurnTexts, dialogue: Sequence[Message]) -> bool:
        """Whether the tokeniser writes the whole dialogue, and all but its last turn, as was found."""
        return self.text(dialogue) == "".join(found.turns) + found.closing and (
            self.opened(dialogue[:-1]) == "".join(found.turns[:-1]) + found.opening
        )

    def _render(self, dialogue: Sequence[Message], **ending: bool) -> str:
        messages = [self._as_read(message) for message in dialogue]
        try:
            text = str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, **ending, **self._arguments)
            )
        except Exception as error:  # templates can raise anything
            roles = ", ".join(message.role for message in dialogue[:20])
            raise TemplateError(
                f"the tokeniser's chat template rejects the turns {roles} ({str(error)[:200]})"
            ) from error
        self._check_written(dialogue, text)
        return text

    def _as_read(self, message: Message) -> dict[str, Any]:
        """Return a message as templates read it: each knows one of the names of the reasoning."""
        fields = message.as_dict() if message.more else {"role": message.role, "content": message.content}
        if message.role == "developer" and "developer" not in self._source:
            fields["role"] = "system"
        if REASONING[0] in fields:
            fields |= dict.fromkeys(REASONING, fields[REASONING[0]])
        return fields

    def _check_written(self, dialogue: Sequence[Message], text: str) -> None:
        """Raise a ``TemplateError`` if the template left out something that it often leaves out."""
        for message in dialogue:
            self._check_turn_written(message, text)
        for tool in self._arguments.get("tools", ()):
            if called(tool) not in text:
                raise TemplateError("the tokeniser's chat template leaves out the tools")

    @staticmethod
    def _check_turn_written(turn: Message, text: str) -> None:
        if turn.role in ("system", "developer") and turn.content.strip() not in text:
            raise TemplateError(f"the tokeniser's chat template leaves out the {turn.role} turn")
        for call in turn.extras.get("tool_calls", ()):
            if called(call) not in text:
                raise TemplateError("the tokeniser's chat template leaves out tool calls")

    def _find_tokens(self) -> tuple[str | None, frozenset[str]]:
        """Return the token after an assistant's text, and what begins a turn.

        The first is the first special token after the text, which is not always ``eos``.
        """
        try:
            text = self.text([Message("user", "Hello"), Message("assistant", _PROBE)])
        except TemplateError:
            return None, frozenset()
        tail = text[text.rfind(_PROBE) + len(_PROBE) :]
        special = _special_tokens(self._tokenizer)
        found = [(tail.index(token), -len(token), token) for token in special if token in tail]
        end = min(found)[2] if found else None
        head = text[: text.rfind(_PROBE)]
        # A BOS such as <s> also occurs in ordinary text; some tokenisers have a turn marker as BOS.
        bare = {end, self._tokenizer.bos_token, self._tokenizer.eos_token} - {*TURN_MARKERS}
        return end, frozenset(one for one in {*special, *TURN_MARKERS} - bare if one and one in head)


def _special_tokens(tokenizer: Any) -> set[str]:
    added = {} if tokenizer is None else tokenizer.added_tokens_decoder
    return {token.content for token in added.values() if token.special}
