"""Messages of the libraries below about which a user can do nothing."""

from __future__ import annotations

import logging
import warnings

_NOISE = (
    "Experiment logs directory",  # the earlier metrics.csv has been renamed
    "Checkpoint directory .* exists and is not empty",  # that is how a run goes on
    ".*does not have many workers",  # rows are tokenised before training
    ".*treespec, LeafSpec",  # Lightning's use of torch
    "Detected an existing checkpoint",  # the last one, which the new one replaces
    r".*self\.log\('(train|val|test)/.*sync_dist=True",  # what we log has been gathered already
    ".*gradient_checkpointing",  # transformers' rename, whose old name older versions need
)


def hush() -> None:
    """Silence them for this process."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
