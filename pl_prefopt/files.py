"""Atomic writes of files and directories, which survive kills and full disks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of file systems that don't support locks."""
_PATIENCE = 60.0


def without_dots(path: Path) -> Path:
    """Return an equivalent of ``path`` without ``..``, so that the folders before it need not exist."""
    if ".." not in path.parts:
        return path
    place, here = path.resolve(), Path.cwd()  # a link may lead to another parent than the one named
    return place.relative_to(here) if place.is_relative_to(here) else place


@contextmanager
def atomic_write(path: Path, *, owner: str = "") -> Iterator[Path]:
    """Yield a temporary path to write to, which atomically replaces ``path`` when the block ends.

    A kill, a full disk or an error leaves ``path`` unchanged. The temporary file is in the same folder, since
    renaming is atomic only within a file system, and is flushed to disk before it is renamed, so that even a
    power cut leaves no empty file under the final name.

    Args:
        path: the file to write or replace; its folder is created.
        owner: a suffix for the temporary file, distinct per process where several may write the same file.
            Without one, the temporary file of a killed process is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}{owner}.tmp")
    try:
        with name_os_errors(path, instead_of=draft):
            yield draft
            _flush(draft)
            draft.replace(path)
            _flush(path.parent)
    except BaseException:
        with suppress(OSError):  # a failed removal must not hide the error itself
            draft.unlink(missing_ok=True)
        raise


def whole_rows(table: bytes) -> bytes:
    r"""Return a CSV table without a last row that a kill or a full disk has cut, within quotes or not.

    >>> whole_rows(b'step,text\r\n1,"two\nlines"\r\n2,"cut\n')
    b'step,text\r\n1,"two\nlines"\r\n'
    """
    end = place = quotes = 0
    for line in table.splitlines(keepends=True):
        place, quotes = place + len(line), quotes + line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            end = place
    return table[:end]


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Lock ``path`` against other processes and threads while the block reads and rewrites it.

    The lock is advisory: every writer has to use this context. Where the file system doesn't support locks,
    or the lock isn't free within a minute, the block runs without it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock is a plain file, which a killed process would leave behind.
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
def name_os_errors(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Set ``path`` as the file name of ``OSError``s in the block: failed writes come without one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(instead_of)):
            error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to ``path`` when the block ends and removed on an error."""
    draft = path.with_name(f".{path.name}.tmp")
    discard(draft)  # left by a killed process
    try:
        yield draft
        publish_folder(draft, path)
    except BaseException:
        with suppress(OSError):
            discard(draft)
        raise


def publish_folder(draft: Path, path: Path) -> None:
    """Replace ``path``, a folder or a file, by a finished folder."""
    for file in draft.iterdir():
        _flush(file)
    _flush(draft)
    with swap_directory(path):
        draft.rename(path)


@contextmanager
def swap_directory(path: Path) -> Iterator[None]:
    """Back up ``path`` while the block writes a folder there, or a file in a folder's place.

    A folder can't be renamed over another. If the block fails, the backup is restored; if the process is
    killed, ``restore_backup`` restores it. When the block ends, the backup is removed.
    """
    backup = _backup_of(path)
    if path.exists():
        discard(backup)
        path.rename(backup)
    try:
        yield
        _flush(path.parent)
    except BaseException:
        restore_backup(path)
        raise
    discard(backup)


def restore_backup(path: Path) -> None:
    """Restore the backup of ``path`` if a process was killed inside ``swap_directory``."""
    backup = _backup_of(path)
    if not path.exists() and backup.exists():
        with suppress(FileNotFoundError):  # another process was faster
            backup.rename(path)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _backup_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.earlier")


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
