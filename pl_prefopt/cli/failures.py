"""One-sentence messages for failures raised outside this package."""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

from pl_prefopt.errors import ConfigError, PrefOptError, RunError, StoppedError

_WRITING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than allowed",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}
_LOST = re.compile(
    r"Connection (?:reset|closed|refused)[\w ]*|Broken pipe|Timed out[\w ]*|recvValue failed|Socket Timeout|"
    r"remote process exited|NCCL communicator was aborted|Watchdog caught collective operation timeout"
)
_CHECKS = {("pytorch", "loops", "fit_loop.py"), ("pytorch", "callbacks", "early_stopping.py")}
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")


def failure_behind(error: BaseException | None) -> PrefOptError | StoppedError | None:
    """Return the error to show the user for ``error``, found in its chain of causes.

    ``None`` means that it is unknown, hence a bug, and the traceback should be shown.
    """
    while error is not None:
        told = error if isinstance(error, PrefOptError | StoppedError) else _translated(error)
        if told is not None:
            return told
        error = error.__cause__ or error.__context__
    return None


def _translated(error: BaseException) -> PrefOptError | None:
    # By name, as below, since importing Lightning for an error message would take seconds.
    if type(error).__name__ == "MisconfigurationException" or _refuses_settings(error):
        return ConfigError(f"Lightning rejects the trainer's settings: {' '.join(str(error).split())}")
    if _is_out_of_memory(error):
        first = (str(error).strip() or "MemoryError").splitlines()[0]
        return RunError(
            f"out of memory ({first}). While training, lower `data.batch_size` and raise "
            "`trainer.accumulate_grad_batches` by as much, or set `data.max_tokens_per_batch`, "
            "`model.init_args.policy.gradient_checkpointing: true` or a lower `data.max_response_length`; "
            "while validating, lower `data.eval_batch_size`; while scoring references, "
            "`references.batch_size`"
        )
    lost = _LOST.search(str(error)) if _is_from_other_ranks(error) else None
    if lost is not None:
        return RunError(
            f"another rank of this run has exited or can't be reached ({lost[0].strip()}); its output says "
            "why: stop the other ranks and restart all of them with `--ckpt_path last`"
        )
    number = _number(error)
    if number in _WRITING:
        where = os.fsdecode(getattr(error, "filename", None) or "a file of the run")
        return RunError(
            f"{where}: {_WRITING[number]}. What was saved before is intact; free some space, or set "
            "`run_dir`, `data.cache_dir` and `references.cache_dir` to writable folders, and resume with "
            "`--ckpt_path last`"
        )
    return None


def _refuses_settings(error: BaseException) -> bool:
    """Return whether the error comes from a check by Lightning that needs the run's rows or metrics."""
    if not isinstance(error, ValueError | RuntimeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).parts[-3:] in _CHECKS


def _number(error: BaseException) -> int:
    """Return the ``errno`` of an error, 0 if there is none; errors from Rust have it only in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = (
        re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    )
    return int(found[1]) if found else 0


def _is_from_other_ranks(error: BaseException) -> bool:
    """Return whether a collective operation failed; by class names, too."""
    by_name = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return by_name or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; by class names, since importing torch would take seconds."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))
