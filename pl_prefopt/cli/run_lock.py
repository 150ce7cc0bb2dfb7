"""The lock that lets only one process at a time train in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pl_prefopt.cli.run_folder import is_first_process
from pl_prefopt.errors import RunError
from pl_prefopt.files import NO_LOCKS

PATIENCE = 10.0
"""Seconds to wait for another process: workers of a killed run survive for a few seconds."""


@contextmanager
def alone_in(folder: Path, *, busy: str = "") -> Iterator[None]:
    """Lock ``folder`` while the block runs; the operating system releases the lock with the process.

    Rank 0 holds the lock. If the file system doesn't support locks, a line says so.

    Args:
        folder: the folder, which is created.
        busy: the message where another process holds the lock; by default that of a training run.

    Raises:
        RunError: if another run holds the lock.
    """
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A soft lock is only a file, which a killed run would leave behind.
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise RunError(
            busy
            or f"Another process is training in the folder {folder}: wait until it ends, or stop it, and "
            "then resume with `--ckpt_path last`; a second run needs another folder, `--run_dir`."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    if not lock.is_locked:
        print(f"The file system of {folder} doesn't support locks: don't start a second run in that folder.")
    try:
        yield
    finally:
        lock.release(force=True)
