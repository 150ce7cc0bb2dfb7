"""Reading what ``torch.save`` wrote without running code from it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import torch

from pl_prefopt.errors import ConfigError


def load_plain(
    path: Path, file: IO[bytes] | None = None, *, map_location: Any = "cpu", mmap: bool = False
) -> Any:
    """Return the tensors and plain values of a file.

    Args:
        path: the file.
        file: what to read in its place, such as a part of it.
        map_location: where tensors go.
        mmap: leave tensors in the file until they are looked at.

    Raises:
        ConfigError: if it is damaged, or holds anything else.
    """
    try:
        return torch.load(file or path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"The checkpoint {path} is damaged, or holds code instead of plain weights, and was not loaded: "
            "name one that `prefopt fit` wrote."
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, AttributeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> ConfigError:
    """Return the error for a checkpoint, or a file of one, that can't be read."""
    return ConfigError(
        f"The checkpoint {path} can't be read ({reason(error)}): name another one, such as best.ckpt."
    )


def reason(error: BaseException) -> str:
    """Return in a line why a file can't be read or written: torch wraps what the file system says."""
    cause = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    text = (cause.strerror or "") if isinstance(cause, OSError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
