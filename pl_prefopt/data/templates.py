"""The three ways to render a dialogue as text: the tokeniser's chat template, a plain template, and none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pl_prefopt.rows import Message

_PROBE = "Certainly"


class TemplateError(Exception):
    """Raised for a dialogue that the template cannot render. The message is the reason."""


class Template(Protocol):
    """Renders dialogues as text.

    Attributes:
        end_token: the token that the template writes after an assistant turn, if any.
    """

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


class PlainTemplate:
    r"""A template for base models: each turn is ``Role: text``, separated by blank lines.

    The prompt ends with ``Assistant:`` and the response starts with a space, since the tokenisers of base
    models split words before a space.

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
    """Concatenates texts unchanged, as TRL does with its standard (non-conversational) format."""

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
        except Exception as error:  # templates can raise anything
            roles = ", ".join(message.role for message in dialogue)
            raise TemplateError(
                f"the tokeniser's chat template rejects the turns {roles} ({error})"
            ) from error

    def _find_end_token(self) -> str | None:
        """Return the first special token after an assistant's text, which is not always ``eos``."""
        try:
            text = self.text([Message("user", "Hello"), Message("assistant", _PROBE)])
        except TemplateError:
            return None
        tail = text[text.rfind(_PROBE) + len(_PROBE) :]
        special = {t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special}
        found = [(tail.index(token), -len(token), token) for token in special if token in tail]
        return min(found)[2] if found else None
