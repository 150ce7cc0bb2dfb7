"""`--help` in sections: our own settings by default, Lightning's on request."""

from __future__ import annotations

import argparse
from typing import Any

# Lightning's settings, by their first component; they make up four fifths of the whole text.
_APART = ("trainer", "best", "last")

_MORE = """More: `--help trainer` lists Lightning's Trainer, `--help best` and `--help last` the two
checkpoints, `--help all` everything. `--model.help pl_prefopt.modules.DPOModule` lists the settings
of a class, and `--print_config` shows the resolved configuration."""


class SectionHelp(argparse._HelpAction):
    """``--help [SECTION]``."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        text = "Show this help, or the help of a section, and exit."
        super().__init__(option_strings, dest=dest, default=argparse.SUPPRESS, help=text)
        self.nargs, self.metavar = "?", "SECTION"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print the section and exit."""
        everything = parser._action_groups
        try:
            parser._action_groups = [group for group in everything if _is_shown(group, values)]
            parser.usage = f"prefopt {parser.prog.split()[-1]} [-c FILE.yaml ...] [--key.sub value ...]"
            parser.epilog = None if values else _MORE
            parser.print_help()
        finally:
            parser._action_groups = everything
        parser.exit()


def _is_shown(group: Any, section: str | None) -> bool:
    first_words = {action.dest.split(".")[0] for action in group._group_actions}
    if section is None:
        return not first_words & set(_APART)
    return section == "all" or section in first_words
