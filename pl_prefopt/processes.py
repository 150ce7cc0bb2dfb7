"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pl_prefopt.errors import ConfigError

_GRACE = 10.0
"""Seconds between asking a process group to end and killing it."""


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command, without a shell, in a process group that ends when this process does.

    A guard between the two waits for the end of its input, which the operating system closes even if this
    process is killed.

    Args:
        command: the program and its arguments.
        log: the file that the output is appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that ``start`` returned, and all that it started."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(2 * _GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command to its end and return its exit status (negative: the signal that ended it)."""
    process = start(command, log)
    try:
        return _exit_status(process.wait())
    finally:
        stop(process)


def run_watched(
    command: Sequence[str], log: Path, is_enough: Callable[[], bool], *, every: float = 1.0
) -> int | None:
    """Run a command until it ends or ``is_enough``; return its exit status, ``None`` if it was stopped.

    Args:
        command: the program and its arguments.
        log: the file that the output is appended to.
        is_enough: says whether to stop the command.
        every: seconds between two questions.
    """
    process = start(command, log)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return _exit_status(process.wait(every))
            if is_enough():
                return None
    finally:
        stop(process)


def _exit_status(status: int) -> int:
    """Return a status as that of ``subprocess``: negative for a signal, which the guard adds to 256."""
    return status - 256 if status > 192 else status


def last_line(log: Path) -> str:
    """Return the last line of a log that isn't blank, or an empty string."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def require_permission(command: Sequence[str], *, allowed: bool, what: str) -> None:
    """Print a command from a configuration, or refuse to run it.

    Raises:
        ConfigError: unless commands are allowed.
    """
    shown = " ".join(command)
    if not allowed:
        raise ConfigError(
            f"{what} is a command, `{shown}`, and commands run only where that is asked for: add "
            "`--allow_commands true` if you trust it."
        )
    print(f"$ {shown}", flush=True)


def _guard(command: list[str]) -> int:
    """Run a command in a process group of its own, which ends when the standard input does."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    status = child.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # what the command left running
    return status if status >= 0 else 256 + status


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock this thread would hold at the guard's end
        pass
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE)


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
