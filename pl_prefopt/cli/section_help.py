"""`--help` in sections: our own settings by default, Lightning's on request."""

from __future__ import annotations

import argparse
from typing import Any

# Lightning's settings, by their first component; they make up four fifths of the whole text.
_APART = ("trainer", "best", "last")

_EXAMPLES = """prefopt fit: train a policy on preference data

  prefopt fit -c ready/demo                               # a whole run in a file: no settings needed
  prefopt fit -c methods/dpo -c hardware/cpu --data.train rows.jsonl --policy MODEL
  prefopt fit -c methods/simpo -c hardware/lora_1gpu --data.train rows.jsonl --policy MODEL --lr 1e-5
  prefopt fit -c methods/dpo --model.objective.beta 0.3 --early_stop.patience 3 --data.train rows.jsonl
  prefopt fit -c runs/NAME/config.yaml --ckpt_path last    # resume a run

  --policy NAME               the model to train: its folder or hub name
  --lr X                      the learning rate
  --data.train ROWS           the rows; `prefopt data ROWS --tokenizer MODEL` shows what they are taken for
  --data.batch_size N         prompts per batch and device
  --model.objective.beta X    a setting of the objective
  --model.policy.lora.r N     a setting of the adapter
  --trainer.max_steps N       a setting of Lightning's Trainer
  --run_dir FOLDER            the run folder

`prefopt configs` lists what -c takes by name, `prefopt init` writes a file for your rows. All settings:
"""

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
        if values is None and parser.prog.split()[-1] == "fit":
            print(_EXAMPLES)
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
