"""The three ways to write a dialogue down: the tokeniser's chat template, a plain one, and none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pl_prefopt.rows import Message

_PROBE = "Certainly"


class TemplateError(Exception):
    """A dialogue that the template cannot write. The message is the reason."""


class Template(Protocol):
    """Writes dialogues.

    Attributes:
        end_token: the token that the template itself writes after an assistant's turn, if it does.
    """

    @property
    def end_token(self) -> str | None:
        """See above."""
        ...

    def text(self, dialogue: Sequence[Message]) -> str:
        """Write a dialogue that ends with an assistant turn."""
        ...

    def opened(self, dialogue: Sequence[Message]) -> str:
        """Write a dialogue and the header of the assistant turn that comes next."""
        ...


class PlainTemplate:
    r"""For base models: each turn as ``Role: text``, with empty lines between.

    The prompt ends with ``Assistant:`` and the response begins with a space, since that is where the
    tokenisers of base models part words.

    >>> PlainTemplate().opened([Message("user", "Hi")])
    'User: Hi\n\nAssistant:'
    """

    end_token = None

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in dialogue)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return f"{self.text(dialogue)}\n\nAssistant:"


class NoTemplate:
    """Texts joined as they are, as TRL does with its plain (non-conversational) format."""

    end_token = None

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return "".join(message.content for message in dialogue)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self.text(dialogue)


class ChatTemplate:
    """The tokeniser's own chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end_token = self._find_end_token()

    def text(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self._render(dialogue, opened=False)

    def opened(self, dialogue: Sequence[Message]) -> str:
        """See the base class."""
        return self._render(dialogue, opened=True)

    def _render(self, dialogue: Sequence[Message], *, opened: bool) -> str:
        messages = [message._asdict() for message in dialogue]
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
            )
        except Exception as error:  # templates raise whatever their authors chose
            roles = ", ".join(message.role for message in dialogue)
            raise TemplateError(
                f"the tokeniser's chat template refuses the turns {roles} ({error})"
            ) from error

    def _find_end_token(self) -> str | None:
        """Return the first special token after an assistant's text; it is not always ``eos``."""
        try:
            text = self.text([Message("user", "Hello"), Message("assistant", _PROBE)])
        except TemplateError:
            return None
        tail = text[text.rfind(_PROBE) + len(_PROBE) :]
        special = {t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special}
        found = [(tail.index(token), -len(token), token) for token in special if token in tail]
        return min(found)[2] if found else None
