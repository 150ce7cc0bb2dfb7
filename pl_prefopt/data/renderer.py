"""Rendering rows as text and tokens, with one prompt boundary and one end token per response."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pl_prefopt.data.dialogues import REASONING
from pl_prefopt.data.templates import (
    TURN_MARKERS,
    ChatTemplate,
    NoTemplate,
    PlainTemplate,
    Template,
    TemplateError,
)
from pl_prefopt.data.turn_texts import TurnTexts
from pl_prefopt.errors import ConfigError, DataError, first_line, printable, suggest
from pl_prefopt.rows import Message, PreferenceRow, whole_dialogue

TemplateName = Literal["auto", "chat", "plain", "none"]
TEMPLATE_NAMES: tuple[str, ...] = get_args(TemplateName)
Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int32]
Mask: TypeAlias = Sequence[bool] | npt.NDArray[np.bool_]

_STAND_IN = "Certainly"
_FEW_TURNS = 8  # rendering as few of them one by one takes no longer than analysing a single rendering
_CHARACTERS_A_CALL = 1 << 20  # a tokeniser takes some 200 bytes per character until it returns
_STRADDLING = 8  # maximum number of tokens by which the end of a text may be extended to a token boundary


class Segment(NamedTuple):
    """A piece of a response.

    Attributes:
        text: the text, without an end token.
        counted: whether its tokens count towards the log-prob: true for assistant text.
        ended: whether the end token follows.
    """

    text: str
    counted: bool
    ended: bool


class _Turn(NamedTuple):
    """An assistant turn of a response.

    Attributes:
        message: the turn.
        between: the text before it, since the last assistant turn and with its header; ``None`` if the
            response begins with it.
        said: the text of the turn after its header.
        last: whether it ends the response.
    """

    message: Message
    between: str | None
    said: str
    last: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text.

    Attributes:
        prompt: the text of the prompt, including the header of the assistant's turn.
        responses: the segments of each response; the first and the last are counted.
        keep: text in the prompt that truncation must keep.
    """

    prompt: str
    responses: tuple[tuple[Segment, ...], ...]
    keep: str = ""


@dataclass(slots=True, kw_only=True)
class EncodedRow:
    """A row as tokens of one tokeniser, after truncation.

    Attributes:
        prompt_ids: P >= 1 token ids.
        response_ids: R lists of T >= 1 token ids.
        counted: R lists of T flags, false for tokens outside assistant turns.
        prompt_cut: number of tokens truncated from the prompt.
        response_cuts: number of tokens truncated from each of the R responses.
    """

    prompt_ids: Ids
    response_ids: Sequence[Ids]
    counted: Sequence[Mask]
    prompt_cut: int = 0
    response_cuts: Sequence[int] = ()

    @property
    def length(self) -> int:
        """Number of tokens of the prompt, counted once, and of all responses."""
        return len(self.prompt_ids) + sum(len(ids) for ids in self.response_ids)


class Renderer:
    """Renders rows as text and tokenises them.

    The prompt is tokenised by itself, so its tokens never depend on a response. The prompt and a response are
    then tokenised together, and if the result starts with the prompt's tokens, the rest are the response's
    tokens; if a token straddles the boundary, the response is tokenised by itself. A response of several
    turns is tokenised turn by turn.

    Each response ends with exactly one end token: the one that the chat template writes (anything after it is
    dropped), or else the tokeniser's ``eos``. The text of an end token inside a response is tokenised as
    plain characters.

    Truncation keeps the right end of a prompt, with its BOS if it has one, and the left end of a response,
    which then has no end token, since it does not end there. Text that a row must keep is never truncated:
    what precedes it is truncated first, then what follows it.

    Args:
        tokenizer: a ``transformers`` tokeniser.
        template: ``chat`` uses the tokeniser's chat template, ``plain`` writes ``User: ...`` and
            ``Assistant: ...`` for base models, ``none`` concatenates the texts, ``auto`` is ``chat`` if the
            tokeniser has a chat template and ``plain`` otherwise. Anything else is a file with a chat
            template in Jinja, which takes the place of the tokeniser's.
        arguments: arguments of the chat template for every row, such as ``{"enable_thinking": False}``.
        max_prompt_length: maximum number of prompt tokens; ``None`` for no limit.
        max_response_length: maximum number of response tokens; ``None`` for no limit.
        setting: the name of the ``template`` setting in error messages.

    Raises:
        ConfigError: if a limit is below 1, or the tokeniser lacks what the template needs.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: TemplateName | str = "auto",
        arguments: Mapping[str, Any] | None = None,
        max_prompt_length: int | None = None,
        max_response_length: int | None = None,
        setting: str = "data.template",
    ) -> None:
        for name, limit in (
            ("max_prompt_length", max_prompt_length),
            ("max_response_length", max_response_length),
        ):
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"expected `data.{name}` to be at least 1, got {limit}; set null for no limit"
                )
        if template not in TEMPLATE_NAMES:
            tokenizer = with_template(tokenizer, read_template(template, setting))
        self.tokenizer = tokenizer
        self.adjusted = bool(arguments) or template not in TEMPLATE_NAMES
        self.max_prompt_length = max_prompt_length
        self.max_response_length = max_response_length
        self._setting = setting
        self._template = _make_template(tokenizer, template, setting, arguments or {})
        self._arguments = json.dumps(arguments, sort_keys=True) if arguments else ""
        self._end = self._template.end_token or tokenizer.eos_token
        if self._end is None:
            raise ConfigError(
                "expected a tokeniser with an `eos_token` to end responses with, got one without; set it in "
                "the tokeniser's configuration"
            )
        self._end_id = int(tokenizer.convert_tokens_to_ids(self._end))
        self._bos = [] if isinstance(self._template, ChatTemplate) else _leading_special_ids(tokenizer)

    @property
    def end_token_id(self) -> int:
        """The id of the token that ends each response."""
        return self._end_id

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the tokens depend on: tokeniser, template and length limits."""
        parts = [
            self._content,
            type(self._template).__name__,
            json.dumps(self.tokenizer.chat_template, sort_keys=True),
            repr((self._end, self._bos, self.max_prompt_length, self.max_response_length)),
            *([self._arguments] if self._arguments else []),
        ]
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @cached_property
    def _content(self) -> str:
        # Takes seconds for a vocabulary of 260,000, and is needed many times.
        return hashlib.blake2b(
            _tokenizer_content(self.tokenizer).encode("utf-8", "surrogatepass")
        ).hexdigest()

    def same_tokenizer(self, other: Renderer) -> bool:
        """Whether both have the same tokeniser, whatever their templates are."""
        return self._content == other._content

    def limited_as(self, other: Renderer) -> Renderer:
        """Return a renderer with this one's tokeniser and template and ``other``'s length limits."""
        limited = copy.copy(self)
        limited._content = self._content  # computed once for both
        limited.max_prompt_length = other.max_prompt_length
        limited.max_response_length = other.max_response_length
        return limited

    def unlimited(self) -> Renderer:
        """Return a renderer with the same tokeniser and template that truncates nothing."""
        unlimited = copy.copy(self)
        unlimited.max_prompt_length = unlimited.max_response_length = None
        return unlimited

    def render(self, row: PreferenceRow) -> Rendered:
        """Render a row as text.

        Raises:
            DataError: naming the row, if the chat template rejects it.
        """
        try:
            self._check_untemplated(row)
            template = self._template.bound(row.template_args)
            prompt, turns, answers = _begun(template, row)
            responses = tuple(tuple(self._segments(template, turns, prompt, r)) for r in answers)
            self._check_one_turn(prompt, responses)
            return Rendered(prompt, responses, row.keep)
        except TemplateError as error:
            raise self._refused(row, error) from error

    def render_follow_ups(self, row: PreferenceRow, follow_ups: Sequence[str]) -> list[Rendered]:
        """Render, for each response of a row, the dialogue that ends with it and what a user may say next.

        Args:
            row: the row.
            follow_ups: the user's possible next turns.

        Returns:
            One row per response: its prompt is the dialogue with the header of a user's turn, its responses
            are the follow-ups, without an end token.

        Raises:
            DataError: naming the row, if the chat template rejects it.
        """
        try:
            self._check_untemplated(row)
            template = self._template.bound(row.template_args)
            dialogues = [whole_dialogue(row.prompt, response) for response in row.responses]
            return [_followed(template, dialogue, follow_ups) for dialogue in dialogues]
        except TemplateError as error:
            raise self._refused(row, error) from error

    def _refused(self, row: PreferenceRow, error: TemplateError) -> DataError:
        reason = printable(str(error), limit=300)
        return DataError(
            f"{row.origin or 'a row'}: {reason}; set `{self._setting}: {error.instead}`, or change the row"
        )

    def encode(self, row: PreferenceRow) -> EncodedRow:
        """Tokenise and truncate one row.

        Raises:
            DataError: naming the row, if the chat template rejects it.
        """
        return self.tokenise([self.render(row)])[0]

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """Tokenise and truncate a prompt, including the header of the assistant's turn.

        Raises:
            DataError: if the chat template rejects it.
        """
        row = PreferenceRow(prompt=tuple(prompt), responses=(), origin="a prompt")
        return list(self.encode(row).prompt_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def tokenise(self, rendered: Sequence[Rendered]) -> list[EncodedRow]:
        """Tokenise and truncate rendered rows, with few calls of the tokeniser."""
        ids = self._tokenise(text for row in rendered for text in _texts(row))
        return [self._assemble(row, ids) for row in rendered]

    # -- text

    def _check_untemplated(self, row: PreferenceRow) -> None:
        """Raise a ``TemplateError`` for text with a template's markers, which must not be templated again."""
        for message in itertools.chain(row.prompt, *row.responses):
            for marker in self._template.markers:
                if marker in message.content:
                    raise TemplateError(
                        f"the text of a {message.role} turn has the marker {marker} of a chat template, "
                        "which would be applied twice",
                        instead="none",
                    )

    def _check_one_turn(self, prompt: str, responses: Sequence[Sequence[Segment]]) -> None:
        """Raise a ``TemplateError`` for a templated response of several turns: all tokens would count."""
        if not isinstance(self._template, NoTemplate) or not any(one in prompt for one in TURN_MARKERS):
            return
        for segment in itertools.chain(*responses):
            if self._end in segment.text:
                raise TemplateError(
                    f"a response has text after its end token {self._end}; write its turns as messages",
                    instead="chat",
                )

    def _segments(
        self, template: Template, prompt: Sequence[Message], before: str, response: Sequence[Message]
    ) -> Iterator[Segment]:
        """Split a response's text into assistant turns and the text between them.

        ``before`` is the text of the prompt with the header of the assistant's turn.
        """
        glue = ""
        for turn in self._turns(template, prompt, before, response):
            if turn.between is not None:
                yield Segment(glue + turn.between, counted=False, ended=False)
            body, glue, ended = self._split_at_end(turn.said)
            if str(turn.message.extras.get(REASONING[0], "")).strip() not in body:
                raise TemplateError("the tokeniser's chat template leaves out the reasoning of a response")
            yield Segment(body, counted=True, ended=ended or turn.last)

    def _turns(
        self, template: Template, prompt: Sequence[Message], before: str, response: Sequence[Message]
    ) -> Iterable[_Turn]:
        if len(response) > _FEW_TURNS and response[0].role == "assistant":
            texts = template.turn_texts([*prompt, *response], len(prompt))
            turns = None if texts is None else _turns_at_once(texts, len(prompt), before, response)
            if turns is not None:
                return turns
        return self._turns_one_by_one(template, prompt, before, response)

    def _turns_one_by_one(
        self, template: Template, prompt: Sequence[Message], before: str, response: Sequence[Message]
    ) -> Iterator[_Turn]:
        """Render the dialogue up to each assistant turn, which any template allows, in quadratic time."""
        for number, message in enumerate(response):
            if message.role != "assistant":
                continue
            until = [*prompt, *response[: number + 1]]
            opened = template.opened(until[:-1]) if number else before
            between = _after(before, opened) if number else None
            before = template.text(until)
            said = self._assistant_text(template, before, opened, until)
            yield _Turn(message, between, said, last=number == len(response) - 1)

    def _assistant_text(self, template: Template, text: str, opened: str, dialogue: Sequence[Message]) -> str:
        """Return what the last turn adds to a dialogue.

        Some templates open a turn differently from how they write one down (such as with ``<think>``); there
        the turn begins where its content does, which rendering a placeholder in place of the content shows.
        """
        if text.startswith(opened):
            return text[len(opened) :]
        stand_in = template.text([*dialogue[:-1], dialogue[-1]._replace(content=_STAND_IN)])
        at = stand_in.rfind(_STAND_IN)
        if at < 0 or text[:at] != stand_in[:at] or not text[at:].startswith(dialogue[-1].content.strip()):
            raise TemplateError("the tokeniser's chat template does not write the assistant's text as it is")
        return text[at:]

    def _split_at_end(self, text: str) -> tuple[str, str, bool]:
        """Split an assistant's text into body and what follows the template's end token."""
        end = self._template.end_token
        at = text.rfind(end) if end else -1
        body, rest, ended = (
            (text, "", False) if at < 0 or end is None else (text[:at], text[at + len(end) :], True)
        )
        while body.rstrip().endswith(self._end):  # templated text often has a line break after it
            body = body.rstrip().removesuffix(self._end)
        return body, rest, ended

    # -- tokens

    def _tokenise(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the tokens of each text; not all texts are in memory together if they are long."""
        for block in _blocks(texts):
            yield from self.tokenizer(
                block, add_special_tokens=False, verbose=False, return_attention_mask=False
            )["input_ids"]

    def _literal(self, text: str) -> list[int]:
        """Tokenise text in which an end token's characters mean nothing special."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _assemble(self, row: Rendered, ids: Iterator[list[int]]) -> EncodedRow:
        """Build an encoded row from the tokens of ``_texts(row)``, which ``ids`` yields in that order."""
        prompt_ids = next(ids)
        responses, masks = [], []
        for segments in row.responses:
            tokens: list[int] = []
            mask: list[bool] = []
            for number, segment in enumerate(segments):
                piece = self._piece(segment, next(ids), prompt_ids if number == 0 else [])
                tokens += piece
                mask += [segment.counted] * len(piece)
            responses.append(tokens)
            masks.append(mask)
        prompt = self._with_bos(prompt_ids)
        kept = self._kept(prompt, row)
        most = self.max_response_length
        return EncodedRow(
            prompt_ids=kept,
            response_ids=[tokens[:most] for tokens in responses],
            counted=[mask[:most] for mask in masks],
            prompt_cut=len(prompt) - len(kept),
            response_cuts=[max(0, len(tokens) - (most or len(tokens))) for tokens in responses],
        )

    def _piece(self, segment: Segment, ids: list[int], prompt_ids: list[int]) -> list[int]:
        """Return a segment's tokens, given those of the prompt's and the segment's text together."""
        if segment.counted and self._end in segment.text:
            ids = self._literal(segment.text)
        elif ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:
            ids = next(self._tokenise([segment.text]))
        return [*ids, self._end_id] if segment.ended else ids

    def _with_bos(self, prompt_ids: list[int]) -> list[int]:
        if prompt_ids[: len(self._bos)] != self._bos:
            prompt_ids = [*self._bos, *prompt_ids]
        # A prompt without tokens gets one, so that the first response token has a context.
        return prompt_ids or [self._end_id]

    def _kept(self, prompt: list[int], row: Rendered) -> list[int]:
        """Truncate a prompt to the limit.

        Its right end is kept, with the BOS in front, since models trained with a BOS degrade without it.
        """
        limit = self.max_prompt_length
        if limit is None or len(prompt) <= limit:
            return prompt
        bos = self.tokenizer.bos_token_id
        front = [bos] if bos is not None and prompt[0] == bos and limit > 1 else []
        rest = len(prompt) - limit + len(front)
        if row.keep:
            begin, end = self._place(row, prompt)
            if begin < rest:
                front += prompt[begin:end]
                rest = max(end, len(prompt) - limit + len(front))
            if rest >= len(prompt):
                raise ConfigError(
                    f"expected `data.max_prompt_length` to leave room for a prompt after the {end - begin} "
                    f"tokens of the text that a view adds ('{row.keep[:40]}...'), got {limit}; set a higher "
                    "limit, or shorten the text"
                )
        return [*front, *prompt[rest:]]

    def _place(self, row: Rendered, prompt: list[int]) -> tuple[int, int]:
        """Return the start and end of the text to keep, as positions in the prompt's tokens."""
        at = row.prompt.rfind(row.keep)
        begin, end = (
            _common(prompt, self._with_bos(next(self._tokenise([row.prompt[:stop]]))))
            for stop in (max(at, 0), max(at, 0) + len(row.keep))
        )
        for straddling in range(_STRADDLING if at >= 0 else 0):
            ids = prompt[begin : end + straddling]
            if row.keep in self.tokenizer.decode(ids, clean_up_tokenization_spaces=False):
                return begin, end + straddling
        raise DataError(
            f"the text that a view adds ('{row.keep[:40]}...') isn't found in the rendered prompt, which is "
            "too long; set a higher `data.max_prompt_length`, or change the text"
        )


def _begun(
    template: Template, row: PreferenceRow
) -> tuple[str, Sequence[Message], Sequence[Sequence[Message]]]:
    """Return the text before the responses, the turns before theirs, and the responses.

    Where they continue an assistant turn, its beginning is in the text and in the first turn of each.
    """
    if not row.prompt or row.prompt[-1].role != "assistant":
        return template.opened(row.prompt), row.prompt, row.responses
    text, before = template.continued(row.prompt), row.prompt[:-1]
    whole = [whole_dialogue(row.prompt, response)[len(before) :] for response in row.responses]
    for response in whole:
        if not template.text([*before, response[0]]).startswith(text):
            raise TemplateError("the tokeniser's chat template can't continue the prompt's assistant turn")
    return text, before, whole


def _turns_at_once(
    texts: TurnTexts, first: int, before: str, response: Sequence[Message]
) -> list[_Turn] | None:
    """Return the assistant's turns; ``None`` if they have to be rendered one by one.

    Args:
        texts: what each turn of the dialogue adds to the text.
        first: number of turns of the prompt.
        before: the text of the prompt with the header of the assistant's turn.
        response: the turns after the prompt, of which the first is the assistant's.
    """
    if "".join(texts.turns[:first]) + texts.opening != before:
        return None
    turns: list[_Turn] = []
    between = [texts.closing]  # nothing has been closed before the first turn
    for number, (message, text) in enumerate(zip(response, texts.turns[first:], strict=True)):
        if message.role != "assistant":
            between.append(text)
            continue
        gap, said = "".join([*between, texts.opening]), text + texts.closing
        if not (gap.startswith(texts.closing) and said.startswith(texts.opening)):
            return None
        gap, said = gap[len(texts.closing) :], said[len(texts.opening) :]
        turns.append(_Turn(message, gap if turns else None, said, last=number == len(response) - 1))
        between = []
    return turns


def _followed(template: Template, dialogue: Sequence[Message], follow_ups: Sequence[str]) -> Rendered:
    heads: dict[str, None] = {}
    segments = []
    for follow_up in follow_ups:
        text = template.text([*dialogue, Message("user", follow_up)])
        at = text.rfind(follow_up)
        if at < 0:
            raise TemplateError("the tokeniser's chat template does not write the user's text as it is")
        # Tokenisers split words before a space, which therefore belongs to the follow-up.
        space = " " if text[:at].endswith(" ") else ""
        heads[text[:at].removesuffix(" ")] = None
        segments.append((Segment(space + follow_up, counted=True, ended=False),))
    if len(heads) > 1:
        raise TemplateError("the tokeniser's chat template writes a turn differently before other turns")
    return Rendered(next(iter(heads)), tuple(segments))


def _texts(row: Rendered) -> Iterator[str]:
    """Yield all texts of a row to tokenise: a response's first segment together with the prompt."""
    yield row.prompt
    for segments in row.responses:
        for number, segment in enumerate(segments):
            yield row.prompt + segment.text if number == 0 else segment.text


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in blocks of a bounded number of characters, or of a single text that has more."""
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > _CHARACTERS_A_CALL:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


def _after(text: str, longer: str) -> str:
    if not longer.startswith(text):
        raise TemplateError("the tokeniser's chat template rewrites earlier turns")
    return longer[len(text) :]


def _make_template(
    tokenizer: Any, name: TemplateName | str, setting: str, arguments: Mapping[str, Any]
) -> Template:
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name in ("plain", "none"):
        if arguments:
            raise ConfigError(
                f"`data.template_arguments` are those of a chat template, but `{setting}` is {name}; remove "
                f"them, or set `{setting}: chat`"
            )
        return PlainTemplate(tokenizer) if name == "plain" else NoTemplate()
    if not tokenizer.chat_template:
        raise ConfigError(
            f"`{setting}: chat` expects a tokeniser with a chat template, got one without; "
            f"set `{setting}: plain`"
        )
    try:
        return ChatTemplate(tokenizer, arguments)
    except TemplateError as error:
        raise ConfigError(f"{error}; correct `data.template_arguments`") from error


def read_template(path: str, setting: str = "data.template") -> str:
    """Return the chat template in a file.

    Raises:
        ConfigError: if there is no such file.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"expected `{setting}` to be {', '.join(TEMPLATE_NAMES)} or a file with a chat template, got "
            f"'{printable(path)}' ({first_line(error)}); choose one{suggest(path, TEMPLATE_NAMES)}"
        ) from error


def with_template(tokenizer: Any, text: str) -> Any:
    """Return a copy of a tokeniser with another chat template."""
    other = copy.copy(tokenizer)
    other.chat_template = text
    return other


def _leading_special_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokeniser adds before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = (n for n in range(len(full)) if full[n : n + len(bare)] == bare)
    return list(full[: next(starts, 0)])


def _tokenizer_content(tokenizer: Any) -> str:
    """Serialise what the tokens depend on, without state that calls change, such as padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        content = json.loads(backend.to_str())
        content.pop("padding", None)
        content.pop("truncation", None)
    return json.dumps([content, tokenizer.special_tokens_map], sort_keys=True, default=str)
