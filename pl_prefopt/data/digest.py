"""Hashes of rows and tokens."""

from __future__ import annotations

import dataclasses
import hashlib

from pl_prefopt.rows import PreferenceRow


class Digest:
    """A hash and count of the items added."""

    def __init__(self) -> None:
        self.items = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._parts: list[str] = []

    def add(self, item: object) -> None:
        """Add an item."""
        self.items += 1
        self._hash.update(repr(item).encode() + b"\0")

    def join(self, items: int, content: str) -> None:
        """Add the items of a part, given their hash. The hash of a single part is that of the whole."""
        self.items += items
        self._parts.append(content)

    def hexdigest(self) -> str:
        """Return the hash."""
        if len(self._parts) == 1:
            return self._parts[0]
        for part in self._parts:
            self._hash.update(part.encode())
        self._parts = []
        return self._hash.hexdigest()


def bare(row: PreferenceRow) -> PreferenceRow:
    """Return the row without its origin, so that the hash does not depend on it."""
    return dataclasses.replace(row, origin="", source="")
