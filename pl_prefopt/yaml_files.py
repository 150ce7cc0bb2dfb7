"""Reading untrusted YAML files, with one-sentence errors."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pl_prefopt.errors import ConfigError, suggest

MOST_BYTES = 1 << 20
MOST_LEVELS = 30
MOST_VALUES = 20_000

# libyaml's parser, if PyYAML was built with it, is ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.1 reads a time such as 10:00:00 as a number, but 01:00:00 as text.
_BASE_60 = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_PLAIN_TAGS = (
    "!",
    *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")),
)


def read_yaml(file: Path) -> Any:
    """Return the contents of a YAML file: mappings, lists, text, numbers, ``None``.

    Nothing is constructed before the whole file has been checked, in time and memory linear in its size:
    aliases can expand to a billion values, and nesting can be deeper than Python's stack.

    Raises:
        ConfigError: if the file can't be read, is not valid YAML, or can't be a configuration.
    """
    return load_yaml(_read_text(file), str(file))


def load_yaml(text: str, origin: str) -> Any:
    """Return the contents of YAML text.

    Args:
        text: the YAML.
        origin: the name of the file or other origin, for messages.

    Raises:
        ConfigError: as ``read_yaml``.
    """
    try:
        _Survey(origin).check(yaml.parse(text, Loader=_LOADER))
        return yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise ConfigError(f"{origin}, line {line + 1}: {_problem(error, text, line)}") from error
    except (yaml.YAMLError, ValueError) as error:  # for example, an integer with thousands of digits
        raise ConfigError(f"{origin}: {' '.join(str(error).split())}: this is not valid YAML.") from error


def _problem(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    indent = lines[line][: len(lines[line]) - len(lines[line].lstrip())] if line < len(lines) else ""
    if "\t" in indent:
        return "the line starts with a tab: YAML requires spaces for indentation."
    return f"{error.problem}: this is not valid YAML."


def _read_text(file: Path) -> str:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(_unreadable(file, error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{file} is a folder: expected a YAML file.")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
        raise ConfigError(f"{file} is not a regular file: expected a YAML file.")
    if status.st_size > MOST_BYTES:
        raise ConfigError(
            f"{file} is larger than {MOST_BYTES >> 20} MiB: expected a YAML file with settings."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(_unreadable(file, error)) from error
    return _decoded(content, file)


def _unreadable(file: Path, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"{file} can't be read: {error.strerror}."
    if not file.parent.is_dir():
        return f"there is no file {file}: the folder {file.parent} doesn't exist."
    siblings = [str(file.with_name(other.name)) for other in file.parent.iterdir()]
    return f"there is no file {file}{suggest(str(file), siblings, cutoff=0.8) or '.'}"


def _decoded(content: bytes, file: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{file} is UTF-16: save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ConfigError(
            f"{file}, line {line}: the byte 0x{byte:02x} is not UTF-8: save the file as UTF-8."
        ) from error
    for number, line_text in enumerate(text.split("\n"), start=1):
        strange = next((char for char in line_text if ord(char) < 32 and char not in "\t\r"), None)
        if strange is not None:
            raise ConfigError(
                f"{file}, line {number}: the character 0x{ord(strange):02x} is not valid in YAML: remove it."
            )
    return text


@dataclass
class _Open:
    """An open collection: the number of values in it so far, and the keys of a mapping."""

    anchor: str | None
    keys: dict[str, int] | None = None
    key_is_next: bool = True
    size: int = 1


@dataclass
class _Survey:
    """Checks the events of a YAML parser and rejects what can't be settings, or is too large."""

    origin: str
    documents: int = 0
    stack: list[_Open] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """The number of values of each anchor, with its aliases expanded."""

    def check(self, events: Iterator[yaml.Event]) -> None:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self._refuse(event, "a second document starts here: expected one per file.")
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)

    def _begin(self, event: Any) -> None:
        self._check_tag(event)
        if self.stack and self.stack[-1].keys is not None and self.stack[-1].key_is_next:
            self._refuse(event, "a list or mapping can't be a key: quote text in braces.")
        if len(self.stack) == MOST_LEVELS:
            self._refuse(event, f"lists and mappings are nested more than {MOST_LEVELS} levels deep.")
        keys: dict[str, int] | None = {} if isinstance(event, yaml.MappingStartEvent) else None
        self.stack.append(_Open(event.anchor, keys))

    def _end(self, event: Any) -> None:
        ended = self.stack.pop()
        if ended.anchor is not None:
            self.sizes[ended.anchor] = ended.size
        self._count(event, ended.size)

    def _scalar(self, event: Any) -> None:
        self._check_tag(event)
        if event.implicit[0] and _BASE_60.fullmatch(event.value):
            self._refuse(event, f"YAML reads {event.value} as a base-60 number: quote it.")
        if event.anchor is not None:
            self.sizes[event.anchor] = 1
        within = self.stack[-1] if self.stack else None
        if within is not None and within.keys is not None and within.key_is_next:
            line = event.start_mark.line + 1
            if event.value in within.keys and event.value != "<<":
                where = within.keys[event.value]
                self._refuse(event, f"'{event.value}' occurs twice, also in line {where}: remove one.")
            within.keys[event.value] = line
        self._count(event, 1)

    def _alias(self, event: Any) -> None:
        if any(one.anchor == event.anchor for one in self.stack):
            self._refuse(event, f"the alias *{event.anchor} contains itself.")
        self._count(event, self.sizes.get(event.anchor, 1))

    def _count(self, event: Any, size: int) -> None:
        if not self.stack:
            return
        within = self.stack[-1]
        within.size += size
        within.key_is_next = not within.key_is_next
        if within.size > MOST_VALUES:
            self._refuse(event, f"more than {MOST_VALUES:,} values, with aliases expanded.")

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _PLAIN_TAGS:
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(
                event, f"the tag {name} is not allowed: values are text, numbers, lists and mappings."
            )

    def _refuse(self, event: Any, what: str) -> None:
        raise ConfigError(f"{self.origin}, line {event.start_mark.line + 1}: {what}")
