"""One process at a time trains in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pl_prefopt.cli.run_folder import is_first_process
from pl_prefopt.errors import RunError
from pl_prefopt.files import NO_LOCKS

PATIENCE = 10.0
"""Seconds to wait for another process: the workers of a killed run live on for a few."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other run write to ``folder`` while the block runs; the system ends the lock with the process.

    Of the processes of a run the first one holds it. Where the file system knows no locks, a line says so.

    Raises:
        RunError: if another run holds it.
    """
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A soft lock is a mere file, which a killed run would leave behind.
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise RunError(
            f"Another process is training in the folder {folder}: wait until it has ended, or end it, and "
            "then go on with `--ckpt_path last`; a second run needs a folder of its own, `--run_dir`."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    if not lock.is_locked:
        print(f"The file system of {folder} knows no locks: start no second run in that folder meanwhile.")
    try:
        yield
    finally:
        lock.release(force=True)
