"""Writing files that are whole or absent, whatever interrupts."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that knows no locks."""
_PATIENCE = 60.0


def without_dots(path: Path) -> Path:
    """Return a path to write to without ``..``, whose folders before that need not exist then."""
    if ".." not in path.parts:
        return path
    place, here = path.resolve(), Path.cwd()  # a link may lead to another parent than the one named
    return place.relative_to(here) if place.is_relative_to(here) else place


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
        with naming(path, instead_of=draft):
            yield draft
            _flush(draft)
            draft.replace(path)
            _flush(path.parent)
    except BaseException:
        with suppress(OSError):  # where nothing can be written, nothing can be removed, which is not the news
            draft.unlink(missing_ok=True)
        raise


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Let no other process or thread change ``path`` while the block reads it and writes it again.

    Whoever changes it has to do so in such a block. A file system without locks, or another process that
    holds the lock for a minute, is no reason not to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock is a mere file, which a killed process would leave behind.
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_PATIENCE, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release(force=True)


@contextmanager
def naming(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Let what the file system refuses in the block name ``path``: of writing, it doesn't say where."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(instead_of)):
            error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a draft of a folder, which gets its name when the block ends. An error leaves nothing."""
    draft = path.with_name(f".{path.name}.tmp")
    discard(draft)  # what a kill left
    try:
        yield draft
        publish_folder(draft, path)
    except BaseException:
        with suppress(OSError):
            discard(draft)
        raise


def publish_folder(draft: Path, path: Path) -> None:
    """Put a finished folder in the place of ``path``, a folder or a file."""
    for file in draft.iterdir():
        _flush(file)
    _flush(draft)
    with stepping_aside(path):
        draft.rename(path)


@contextmanager
def stepping_aside(path: Path) -> Iterator[None]:
    """Move what is at ``path`` beside it while the block puts a folder there, or a file in a folder's place.

    A folder can't be renamed over another. If the block fails, what was there comes back; if it is killed,
    ``bring_back`` finds it. When the block ends, it is removed.
    """
    aside = _aside(path)
    if path.exists():
        discard(aside)
        path.rename(aside)
    try:
        yield
        _flush(path.parent)
    except BaseException:
        bring_back(path)
        raise
    discard(aside)


def bring_back(path: Path) -> None:
    """If ``path`` is missing because a kill came while something stepped aside for it, put that back."""
    aside = _aside(path)
    if not path.exists() and aside.exists():
        with suppress(FileNotFoundError):  # another process was faster
            aside.rename(path)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.earlier")


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
