"""Writing files that are whole or absent, whatever interrupts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, owner: str = "") -> Iterator[Path]:
    """Yield a draft to write, which takes the place of ``path`` at once when the block ends.

    A kill, a full disk or an error leaves ``path`` as it was. The draft lies beside it, since a file can be
    renamed at once within one file system only, and reaches the disk before the name does, so that not even
    a power cut leaves an empty file under a good name.

    Args:
        path: the file to write or replace; its folder is made.
        owner: where several processes may write the same file, a name for this one's draft. Without one, the
            draft that a killed process left is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}{owner}.tmp")
    try:
        yield draft
        _flush(draft)
        draft.replace(path)
        _flush(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
