"""Answers of servers on disk, so that none is paid for twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, RunError, first_line

_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
_WAIT = 60.0


class AnswerCache:
    """A file of answers by request. Several threads and processes may use it, and a kill loses nothing.

    Args:
        folder: the folder of the file; created when needed.

    Raises:
        ConfigError: if the folder can't be written.
        RunError: if the file is corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.expanduser() / "answers.sqlite"
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"expected a folder for answers at {folder}, got: {error}; set `cache_dir` to another one."
            ) from error
        try:
            self._file = sqlite3.connect(self.path, timeout=_WAIT, check_same_thread=False)
            with self._file:
                self._file.execute(_TABLE)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, or ``None``."""
        try:
            with self._lock:
                found = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return None if found is None else dict(json.loads(found[0]))

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Store an answer; it is on disk when this returns."""
        try:
            with self._lock, self._file:
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _failed(self, error: sqlite3.Error) -> RunError:
        return RunError(
            f"the file of answers {self.path} can't be used ({first_line(error)}): free some space or set "
            "`cache_dir` to another folder; if the file is corrupt, move it away."
        )


def key_of(request: Mapping[str, Any], version: str) -> str:
    """Return the key of a request: a hash of all that is sent, and of the version of the model.

    Args:
        request: the body of the request.
        version: what tells models of the same name apart.
    """
    text = json.dumps([request, version], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
