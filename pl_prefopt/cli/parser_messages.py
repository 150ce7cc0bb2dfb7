"""One-sentence versions of jsonargparse's error messages.

For a setting with several types, jsonargparse lists why each type was rejected, with dumps of the values.
"""

from __future__ import annotations

import re

_KEY = re.compile(r'Parser key "([\w.]+)":')
_NO_NEWS = re.compile(
    r"Does not validate against|Errors:$|Subtypes:|Given value|Expected a path but|.*NoneType"
    r"|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with"
    r"|Problem with given class_path"
)
_VALUE = re.compile(r"\.? Got value: .*$")
_TYPE = re.compile(r"(?:Expected a|an?) <class '([\w.]+)'>")
_CALLABLE = re.compile(r"^(?:Type .* expects a function or a callable class|Not of type \w+): ")
_CHOICE = re.compile(r"^Expected a typing\.Literal\[(.*)\]")
_WORDS = {
    "collections.abc.Sequence": "a list",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


def one_sentence(message: str) -> tuple[str, tuple[str, ...]]:
    r"""Return the sentence, and the key of the setting that it refers to, if any.

    Examples:
        >>> one_sentence('Parser key "best.mode":\n  Errors:\n  - Expected a <class \'str\'>. Got value: 3')
        ('best.mode: expected text.', ('best', 'mode'))
    """
    keys = _KEY.findall(message)
    lines = [line.strip().removeprefix("- ") for line in _KEY.sub("", message).splitlines()]
    news = [_translated(line) for line in lines if line not in ("", "-") and not _NO_NEWS.match(line)]
    told = "; ".join(dict.fromkeys(news)) or "this value can't be used"
    key = ".init_args.".join(dict.fromkeys(keys))  # a nested key belongs to a class's constructor
    return (f"{key}: {told}.", tuple(key.split("."))) if key else (f"{told}.", ())


def _translated(line: str) -> str:
    """Return a line without the value, and with readable names of types."""
    line = _CALLABLE.sub("", _VALUE.sub("", line)).rstrip(".")
    typed = _TYPE.match(line)
    if typed:
        return f"expected {_WORDS.get(typed[1], typed[1])}"
    choice = _CHOICE.match(line)
    if choice:
        return f"expected one of {choice[1]}"
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)
    return line[:1].lower() + line[1:]
