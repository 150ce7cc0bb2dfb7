"""The documentation's pages and the fenced blocks in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
ADDING = ROOT / "docs" / "adding-a-method.md"

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` says why it cannot be run."""

    line: int
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each shell command."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def name_of(page: Path) -> str:
    """Return the page's path from the repository's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of the page."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(text[: match.start()].count("\n") + 1, match["language"], match["text"], match["reason"])
        for match in _BLOCK.finditer(text)
    ]
    assert text.count("\n```") == 2 * len(found), f"{name_of(page)} has a block that this can't read"
    return found


def reads_a_column(language: str) -> str:
    """Return the block in the language that shows how an objective reads a column of the rows."""
    return next(
        block.text for block in blocks(ADDING) if block.language == language and "trust" in block.text
    )


def first(page: Path, language: str) -> str:
    """Return the page's first block in the language."""
    return next(block.text for block in blocks(page) if block.language == language)
