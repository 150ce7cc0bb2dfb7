"""Filters for library messages that users can't act on.

Each is matched by its text, and log records also by their logger, so that all other messages are still shown.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TextIO

_WARNINGS = (
    "Experiment logs directory",  # the earlier metrics.csv has been renamed
    "Checkpoint directory .* exists and is not empty",  # expected when resuming a run
    ".*does not have many workers",  # rows are tokenised before training
    ".*treespec, LeafSpec",  # caused by Lightning
    "Detected an existing checkpoint",  # last.ckpt, which is replaced on purpose
    r".*self\.log\('(train|val|test)/.*sync_dist=True",  # already reduced across ranks
    ".*gradient_checkpointing",  # renamed in transformers; older versions need the old name
)

_RECORDS = {
    "lightning.pytorch.utilities.rank_zero": (
        "Tip:",  # an advertisement
        "[TH]PU available: False",
        "Loading `train_dataloader` to estimate",
        "Trainer already configured with model summary",
        "distributed_backend=",  # "Initializing distributed" has named every rank
    ),
    "lightning.fabric.utilities.seed": ("Seed set to",),  # config.yaml has it
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),  # not used here
}


def install_log_filters() -> None:
    """Install the filters in this process and show other warnings on one line."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, patterns in _RECORDS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutMessages) for one in logger.filters):
            logger.addFilter(_WithoutMessages(patterns))
    # showwarning, since Lightning overrides formatwarning when it is imported later.
    warnings.showwarning = _show_on_one_line
    if not sys.stderr.isatty():
        # A log file would record every redraw of the progress bars for loading and saving a model.
        os.environ.setdefault("TQDM_DISABLE", "1")


class _WithoutMessages(logging.Filter):
    """Drops the log records that match a pattern."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__()
        self.pattern = re.compile("|".join(patterns))

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        return not self.pattern.search(record.getMessage())


def _show_on_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Replace ``warnings.showwarning``, which also prints the line of code that warned."""
    text = " ".join(str(message).split())
    stream = file or sys.stderr
    if stream is not None:
        print(f"Warning: {text} ({Path(filename).name}:{lineno})", file=stream)
