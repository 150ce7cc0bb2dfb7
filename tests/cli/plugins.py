"""Methods outside the repository: those of the page on adding one, which import public names only."""

from __future__ import annotations

from typing import Any

from tests.docs.pages import ADDING, blocks


def _shown(name: str) -> tuple[str, str]:
    """The block that begins with this file name, and the YAML block after it."""
    found = blocks(ADDING)
    place = next(i for i, block in enumerate(found) if block.text.startswith(f"# {name}"))
    settings = next(block for block in found[place:] if block.language == "yaml")
    return found[place].text, settings.text


RANKING, RANKING_YAML = _shown("my_ranking.py")
TDPO2, TDPO2_YAML = _shown("my_tdpo.py")
BRADLEY_TERRY, BRADLEY_TERRY_YAML = _shown("my_reward.py")


def defined(code: str, name: str) -> Any:
    """The class of this name that a file with this text defines."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]
