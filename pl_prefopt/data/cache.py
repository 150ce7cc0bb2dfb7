"""A cache of results in a folder, each keyed by everything that it depends on."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from pl_prefopt.errors import ConfigError, DataError, first_line
from pl_prefopt.files import NO_LOCKS, discard, name_os_errors

PART = "part-"
"""How the names of finished parts of an entry begin, which the next process keeps."""

_SUMS = "checksums.txt"
_UNFINISHED = ".unfinished-"
_PATIENCE = 5.0
_WEEK = 7 * 24 * 3600.0
_logger = logging.getLogger(__name__)


class Cache:
    """Stores each result as a subfolder, which appears only when it is complete.

    Args:
        root: the folder of the cache; created when needed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self._verified: set[Path] = set()  # entries whose checksums this process has verified

    def entry(self, name: str, key_parts: tuple[object, ...], build: Callable[[Path], None]) -> Path:
        """Return the folder of a result, building it first if it is not cached.

        Args:
            name: the kind of result; the folder's name starts with it.
            key_parts: everything that the result depends on; a hash of this package's code is added.
            build: writes the result into the folder that it is given.

        Raises:
            ConfigError: if the cache cannot be written.
            DataError: if a cached file is corrupt.
        """
        key = hashlib.blake2b(repr((_code_key(), key_parts)).encode(), digest_size=10).hexdigest()
        folder = self.root / f"{name}-{key}"
        if folder.is_dir():
            if folder not in self._verified:
                _verify(folder)
                self._verified.add(folder)
            return folder
        with self._alone(folder.name) as is_alone:
            if not folder.is_dir():  # another process, or machine, may have built it meanwhile
                self._build(folder, build, "" if is_alone else f".{uuid4().hex[:8]}")
        return folder

    def _build(self, folder: Path, build: Callable[[Path], None], suffix: str) -> None:
        unfinished = self._start(f"{_UNFINISHED}{folder.name}{suffix}")
        try:
            with name_os_errors(self.root):
                build(unfinished)
                _write_sums(unfinished)
                _publish(unfinished, folder)
        except BaseException as error:
            # An interruption keeps the finished parts, as a kill does.
            if isinstance(error, Exception) or not any(unfinished.glob(f"{PART}*.json")):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(unfinished, ignore_errors=True)

    def _start(self, name: str) -> Path:
        """Return the folder to build in, with no more than the finished parts of a killed process in it."""
        unfinished = self.root / name
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            for path in unfinished.iterdir():
                if not path.name.startswith(PART):
                    discard(path)
        except OSError as error:
            raise self._unwritable(error) from error
        return unfinished

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"expected a writable cache at {self.root}, got: {error}; set `data.cache_dir` to another folder"
        )

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Keep other processes, also on other machines with the same folder, from building an entry.

        Where the file system has no locks, they may build it too, in the same way; this yields false there.
        """
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        lock = _lock(self._locks / f"{name}.lock")
        try:
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout:
                _logger.warning("waiting for another process that prepares %s", self.root / name)
                lock.acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise self._unwritable(error) from error
        self._clear_unfinished(name)
        try:
            yield lock.is_locked
        finally:
            lock.release(force=True)

    @property
    def _locks(self) -> Path:
        return self.root / ".locks"

    def _clear_unfinished(self, own: str) -> None:
        """Remove what killed processes left, but for finished parts that are younger than a week.

        The lock of a process that still runs is taken; folders of earlier versions have no locks.
        """
        for folder in self.root.glob(f"{_UNFINISHED}*"):
            name = folder.name.removeprefix(_UNFINISHED)
            has_lock = (self._locks / f"{name}.lock").exists()
            if name == own or ((not has_lock or any(folder.glob(f"{PART}*.json"))) and not _is_old(folder)):
                continue
            lock = _lock(self._locks / f"{name}.lock")
            with suppress(Timeout, OSError):
                lock.acquire(timeout=0)
                shutil.rmtree(folder, ignore_errors=True)
            lock.release(force=True)


def _lock(path: Path) -> FileLock:
    # A soft lock is a plain file, which a killed process would leave behind.
    return FileLock(path, fallback_to_soft=False)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > _WEEK
    except OSError:  # its process has just finished
        return False


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a cached file that can't be read."""
    return DataError(
        f"the cached file {path} is corrupt ({first_line(error)}); delete the folder {path.parent} to have "
        "it rebuilt"
    )


def _write_sums(folder: Path) -> None:
    (folder / _SUMS).write_bytes(_sums(folder))


def _verify(folder: Path) -> None:
    """Raise a ``DataError`` if a file of an entry is not what was written."""
    try:
        written, found = (folder / _SUMS).read_bytes(), _sums(folder)
    except OSError as error:
        raise damaged(folder / _SUMS, error) from error
    if written != found:
        lines = written.splitlines()
        files = [line.split(b" ", 1)[1].decode() for line in found.splitlines() if line not in lines]
        raise damaged(folder / (files or [_SUMS])[0], ValueError("its checksum is wrong"))


def _sums(folder: Path) -> bytes:
    """Return a line with checksum and name for each file of an entry."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != _SUMS:
            found = 0
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    found = zlib.crc32(block, found)
            lines.append(f"{found:08x} {path.name}\n")
    return "".join(lines).encode()


def _publish(unfinished: Path, folder: Path) -> None:
    unfinished.chmod(0o755)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process published the same result first; use that one.


@cache
def _code_key() -> str:
    """Hash the code that builds the results, so that a code change invalidates them."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=10)
    for path in sorted([*here.rglob("*.py"), here.parent / "rows.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
