"""Templates of generative judges: what a judge is asked, and how its answer is read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment

from pl_prefopt.errors import ConfigError, DataError, first_line, listed, suggest
from pl_prefopt.judges.base import Gives
from pl_prefopt.rows import Message

_FOLDER = Path(__file__).with_name("templates")
_NEEDED: Mapping[Gives, tuple[str, ...]] = {
    "scores": ("prompt", "response"),
    "probabilities": ("prompt", "first", "second"),
}
_KEYS = ("gives", "system", "user", "pattern", "labels", "scale")


class Token(NamedTuple):
    """A token of an answer, with the most probable tokens at its place.

    Attributes:
        text: its text.
        top: the log-probs of the most probable tokens, by text.
    """

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class JudgeTemplate:
    r"""What a judge is asked, and how its answer is read.

    Attributes:
        gives: whether it grades one response or compares two.
        user: the question, in Jinja: ``prompt`` and ``response``, or ``prompt``, ``first`` and ``second``;
            also ``context`` and ``columns``, the further columns of the row.
        system: the system prompt, in Jinja; empty for none.
        pattern: a regular expression whose first group is the verdict; its last match counts.
        labels: the value of each verdict: a score, or the probability that the first response is better.
        scale: where the verdict is a number, the lowest and the highest.

    Raises:
        ConfigError: if the template can't work.

    Examples:
        >>> template = JudgeTemplate(
        ...     gives="probabilities", user="{{ prompt }}{{ first }}{{ second }}",
        ...     pattern=r"\[\[([AB])\]\]", labels={"A": 1, "B": 0},
        ... )
        >>> template.value("B is longer, but wrong. [[A]]"), template.value("I cannot judge this.")
        (1.0, None)
        >>> tokens = [Token("[[", {}), Token("A", {"A": math.log(0.6), "B": math.log(0.2)}), Token("]]", {})]
        >>> round(template.expected("[[A]]", tokens), 6)
        0.75
    """

    gives: Gives
    user: str
    pattern: str
    system: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.gives not in _NEEDED:
            raise ConfigError(f"expected `gives` to be scores or probabilities, got '{self.gives}'.")
        if bool(self.labels) == (self.scale is not None):
            raise ConfigError("expected either `labels` or `scale` in the template of a judge.")
        self._check_values()
        self._check_texts()

    def _check_values(self) -> None:
        values = list(self.labels.values()) or list(self.scale or ())
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in values):
            raise ConfigError(f"expected numbers as the values of the verdicts, got {values}.")
        if self.scale is not None and not (len(values) == 2 and values[0] < values[1]):
            raise ConfigError(f"expected `scale` to be the lowest and the highest score, got {values}.")
        if self.gives == "probabilities" and (self.scale or not all(0 <= one <= 1 for one in values)):
            raise ConfigError(
                "expected `labels` of probabilities from 0 to 1 in a template that compares, such as "
                f"{{A: 1, B: 0, C: 0.5}}, got {self.scale or dict(self.labels)}."
            )

    def _check_texts(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
            environment = SandboxedEnvironment(autoescape=False)
            used, also = (
                meta.find_undeclared_variables(environment.parse(one)) - set(environment.globals)
                for one in (self.user, self.system)
            )
            self._compiled  # noqa: B018 - compiles both
        except (re.error, jinja2.TemplateError) as error:
            raise ConfigError(f"the template of a judge can't be read ({first_line(error)}).") from error
        if groups < 1:
            raise ConfigError(f"expected a group for the verdict in `pattern`, got '{self.pattern}'.")
        missing = [name for name in _NEEDED[self.gives] if name not in used]
        if missing:
            raise ConfigError(f"expected {{{{ {missing[0]} }}}} in `user` of the template, got none.")
        known = ("prompt", "context", "columns", *_NEEDED[self.gives])
        unknown = sorted((used | also) - set(known))
        if unknown:
            raise ConfigError(
                f"the template of a judge has no value for {{{{ {unknown[0]} }}}}"
                f"{suggest(unknown[0], known) or '.'} A column is {{{{ columns.{unknown[0]} }}}}."
            )

    @classmethod
    def load(cls, name: str) -> JudgeTemplate:
        """Return a template by the name of one of ours, or from a YAML file.

        Raises:
            ConfigError: if there is none, or it can't work.
        """
        path = Path(name)
        if not path.is_file():
            path = _FOLDER / f"{name}.yaml"
        if not path.is_file():
            ours = sorted(one.stem for one in _FOLDER.glob("*.yaml"))
            raise ConfigError(
                f"expected `template` to be a file or one of {', '.join(ours)}, got '{name}'"
                f"{suggest(name, ours) or '.'}"
            )
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"the template {path} can't be read ({first_line(error)}).") from error
        return cls.of(fields, str(path))

    @classmethod
    def of(cls, fields: Any, where: str) -> JudgeTemplate:
        """Return a template from what its file holds.

        Raises:
            ConfigError: naming the file, if it can't work.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError(f"expected a mapping with {', '.join(_KEYS)} in {where}.")
        unknown = [str(name) for name in fields if name not in _KEYS]
        missing = [name for name in ("gives", "user", "pattern") if not isinstance(fields.get(name), str)]
        if unknown:
            hint = suggest(unknown[0], _KEYS) or "."
            raise ConfigError(f"expected the keys {listed(_KEYS)} in {where}, got '{unknown[0]}'{hint}")
        if missing:
            raise ConfigError(f"expected a text `{missing[0]}` in {where}.")
        labels, scale = fields.get("labels") or {}, fields.get("scale")
        if not isinstance(labels, Mapping) or not isinstance(scale, list | None):
            raise ConfigError(f"expected `labels` to be a mapping and `scale` to be a list in {where}.")
        try:
            return cls(
                gives=fields["gives"],
                system=fields.get("system") or "",
                user=fields["user"],
                pattern=fields["pattern"],
                labels={str(name): value for name, value in labels.items()},
                scale=None if scale is None else tuple(scale),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """A hash of the template."""
        parts = [self.gives, self.system, self.user, self.pattern, sorted(self.labels.items()), self.scale]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, jinja2.Template]:
        # Texts of rows are values, never templates; undefined names are errors.
        made = SandboxedEnvironment(
            autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return made.from_string(self.system), made.from_string(self.user)

    def messages(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the messages of a question.

        Raises:
            DataError: if the template asks for a column that the row doesn't have.
            ConfigError: if the template can't be filled in for another reason.
        """
        try:
            system, user = (one.render(**values).strip() for one in self._compiled)
        except jinja2.UndefinedError as error:
            raise DataError(f"the judge's template needs what the row lacks: {first_line(error)}") from error
        except jinja2.TemplateError as error:
            raise ConfigError(f"the template of a judge can't be filled in ({first_line(error)}).") from error
        asked = [{"role": "user", "content": user}]
        return [{"role": "system", "content": system}, *asked] if system else asked

    def _verdict(self, answer: str) -> re.Match[str] | None:
        return next(reversed(list(re.finditer(self.pattern, answer))), None)

    def value(self, answer: str) -> float | None:
        """Return the value of the verdict in an answer; ``None`` if there is none or it is off the scale."""
        found = self._verdict(answer)
        if found is None or found[1] is None:
            return None
        if self.labels:
            value = self.labels.get(found[1])
            return None if value is None else float(value)
        try:
            number = float(found[1])
        except ValueError:
            return None
        lowest, highest = self.scale or (0.0, 0.0)
        return number if lowest <= number <= highest else None

    @property
    def has_single_tokens(self) -> bool:
        """Whether the verdicts may be single tokens whose probabilities can be compared.

        They can't be if one is the start of another: the token ``1`` may begin the verdict 10.
        """
        names = list(self.labels)
        return bool(names) and not any(a != b and b.startswith(a) for a in names for b in names)

    def is_label(self, token: str) -> bool:
        """Whether a token is one of the verdicts."""
        return self.label_of(token) in self.labels

    def label_of(self, token: str) -> str:
        """Return the text of a token as a verdict: without spaces, brackets and quotes."""
        return _bare(token)

    def verdict_token(self, answer: str, tokens: Sequence[str]) -> int | None:
        """Return the place of the token that says the verdict.

        Args:
            answer: the answer.
            tokens: the texts of its tokens.

        Returns:
            ``None`` if there is no verdict, or no token that consists of it alone.
        """
        found = self._verdict(answer)
        if found is None or not self.has_single_tokens or found[1] not in self.labels:
            return None
        place = _token_at(tokens, answer, found.start(1))
        return place if place is not None and _bare(tokens[place]) == found[1] else None

    def expected(self, answer: str, tokens: Sequence[Token]) -> float | None:
        """Return the mean of the verdicts' values under the probabilities of the token that says the verdict.

        Args:
            answer: the answer.
            tokens: its tokens.

        Returns:
            ``None`` if there is no verdict, or no token that consists of it alone.
        """
        place = self.verdict_token(answer, [token.text for token in tokens])
        if place is None:
            return None
        mass = dict.fromkeys(self.labels, 0.0)
        for text, log_prob in tokens[place].top.items():
            if _bare(text) in mass:
                mass[_bare(text)] += math.exp(log_prob)
        total = sum(mass.values())
        if not total > 0:
            return None
        return sum(self.labels[name] * one for name, one in mass.items()) / total


def _token_at(tokens: Sequence[str], answer: str, place: int) -> int | None:
    """Return the number of the token at a place of the answer, if the tokens spell the answer."""
    start = "".join(tokens).find(answer)  # an end token or spaces may surround it
    if start < 0:
        return None
    place, end = place + start, 0
    for number, token in enumerate(tokens):
        end += len(token)
        if place < end:
            return number
    return None


def _bare(text: str) -> str:
    """Return a token's text without the brackets, quotes and spaces that may be in the same token."""
    return text.strip(" \t\r\n[](){}<>*_\"'`:.,")


def as_text(messages: Sequence[Message]) -> str:
    r"""Return turns as text for a judge: a single user or assistant turn is its text alone.

    Examples:
        >>> as_text([Message("user", "Hi")])
        'Hi'
        >>> as_text([Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Who are you?")])
        'User: Hi\n\nAssistant: Hello.\n\nUser: Who are you?'
    """
    if len(messages) == 1 and messages[0].role in ("user", "assistant") and not messages[0].more:
        return messages[0].content
    return "\n\n".join(_turn(message) for message in messages)


def _turn(message: Message) -> str:
    """Return a turn with its role; calls of tools are written out, reasoning is not shown to judges."""
    calls = message.extras.get("tool_calls")
    text = "\n".join(filter(None, [message.content, json.dumps(calls, ensure_ascii=False) if calls else ""]))
    return f"{message.role.capitalize()}: {text}"
