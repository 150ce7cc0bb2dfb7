"""A folder of finished results, each keyed by all that it depends on."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pl_prefopt.errors import ConfigError, DataError, first_line
from pl_prefopt.files import name_os_errors


class Cache:
    """Keeps results as folders. A folder appears only when it is complete.

    Args:
        root: where the folders lie; made when needed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def entry(self, name: str, key_parts: tuple[object, ...], build: Callable[[Path], None]) -> Path:
        """Return the folder of a result, built now unless it is already there.

        Args:
            name: what the result is, as the beginning of the folder's name.
            key_parts: all that the result depends on; the code of this package is added.
            build: writes the result into the folder that it is given.

        Raises:
            ConfigError: if the cache cannot be written.
        """
        key = hashlib.blake2b(repr((_code_key(), key_parts)).encode(), digest_size=10).hexdigest()
        folder = self.root / f"{name}-{key}"
        if folder.is_dir():
            return folder
        unfinished = self._temporary()
        try:
            with name_os_errors(self.root):
                build(unfinished)
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
                f"expected to write the cache to {self.root}, got: {error}; set `data.cache_dir` elsewhere"
            ) from error


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a file of the cache that can't be read."""
    return DataError(
        f"the cached file {path} is damaged ({first_line(error)}); delete the folder {path.parent}, and "
        "it is made anew"
    )


def _publish(unfinished: Path, folder: Path) -> None:
    unfinished.chmod(0o755)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process finished the same result first; its folder serves as well.


@cache
def _code_key() -> str:
    """Hash the code that makes the results, so that none outlives a change of it."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=10)
    for path in sorted([*here.glob("*.py"), here.parent / "rows.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
