"""Reading JSON from data, where whatever it holds is a value or a ``ValueError``."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: if it is invalid, nested too deeply, or an object has a key twice: readers disagree on
            which of the two values counts.

    Examples:
        >>> parse_json('{"a": [1, null]}')
        {'a': [1, None]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' occurs twice
    """
    repeated: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, repeated))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if repeated:
        raise ValueError(f"the key {repeated[0][:40]!r} occurs twice")
    return value


def _unique(pairs: list[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        seen: set[str] = set()
        repeated += [name for name, _ in pairs if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    return held
