"""Filters for the messages of libraries about which a user can do nothing.

Each is named by its text, and logged ones by their logger too, so that nothing else is lost: neither our own
messages nor a library's warning that is not listed here.
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
    "Checkpoint directory .* exists and is not empty",  # that is how a run is resumed
    ".*does not have many workers",  # rows are tokenised before training
    ".*treespec, LeafSpec",  # Lightning's use of torch
    "Detected an existing checkpoint",  # the last one, which the new one replaces
    r".*self\.log\('(train|val|test)/.*sync_dist=True",  # what we log has been gathered already
    ".*gradient_checkpointing",  # transformers' rename, whose old name older versions need
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
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),  # which we don't use
}


def install_log_filters() -> None:
    """Filter them in this process and show other warnings on one line."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, patterns in _RECORDS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutMessages) for one in logger.filters):
            logger.addFilter(_WithoutMessages(patterns))
    # Lightning sets formatwarning when it is imported, which is later.
    warnings.showwarning = _show_on_one_line
    if not sys.stderr.isatty():
        # Of bars that are drawn over, a file would hold every state: those of loading and of saving a model.
        os.environ.setdefault("TQDM_DISABLE", "1")


class _WithoutMessages(logging.Filter):
    """Drop the records that match a pattern."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__()
        self.pattern = re.compile("|".join(patterns))

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        return not self.pattern.search(record.getMessage())


def _show_on_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stand in for ``warnings.showwarning``, which adds the line of code that warned."""
    text = " ".join(str(message).split())
    stream = file or sys.stderr
    if stream is not None:
        print(f"Warning: {text} ({Path(filename).name}:{lineno})", file=stream)
