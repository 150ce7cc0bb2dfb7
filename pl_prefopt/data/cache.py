"""A cache of results in a folder, each keyed by everything that it depends on."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pl_prefopt.errors import ConfigError, DataError, first_line
from pl_prefopt.files import name_os_errors

_SUMS = "checksums.txt"


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
        unfinished = self._temporary()
        try:
            with name_os_errors(self.root):
                build(unfinished)
                _write_sums(unfinished)
                _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return folder

    def _temporary(self) -> Path:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.root))
        except OSError as error:
            raise ConfigError(
                f"expected a writable cache at {self.root}, got: {error}; set `data.cache_dir` to another "
                "folder"
            ) from error


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
