"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import traceback
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


def run_forked(work: Callable[[], object], log: Path) -> int:
    """Do as ``run_logged`` with a function, in a fork of this process, so that nothing is imported again.

    A driver of an accelerator doesn't survive a fork, so this is for processes that have used none.

    Args:
        work: what to run; it may exit by ``SystemExit``.
        log: the file that the output is appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    watched, held = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    guard = os.fork()
    if guard == 0:
        # What this process does at its end, such as removing its temporary folders, is not for its forks.
        atexit._clear()
        os.close(held)
        _leave(lambda: sys.exit(_guard_fork(work, watched, log)))
    os.close(watched)
    status = None
    try:
        status = os.waitpid(guard, 0)[1]
    finally:
        os.close(held)  # the guard ends its child then
        if status is None:
            os.waitpid(guard, 0)
    ended = os.waitstatus_to_exitcode(status)
    return ended - 256 if ended > 192 else ended


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
    # A handler, since the child would inherit that a signal is ignored: an interrupt reaches this process
    # and the one that started it, which then closes the standard input.
    signal.signal(signal.SIGINT, _do_nothing)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    return _watch(child.pid, child.wait, 0)


def _guard_fork(work: Callable[[], object], watched: int, log: Path) -> int:
    """Run a function in a process group of its own, which ends when the pipe ``watched`` does."""
    signal.signal(signal.SIGINT, _do_nothing)
    child = os.fork()
    if child == 0:
        os.close(watched)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, log, os.O_CREAT | os.O_APPEND | os.O_WRONLY),
        ):
            os.dup2(os.open(file, flags, 0o666), number)
        os.dup2(1, 2)
        _leave(work)
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)  # whoever of the two comes first
    return _watch(child, lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), watched)


def _watch(group: int, wait: Callable[[], int], watched: int) -> int:
    """Wait for a child and return its exit status; end its group when the input ``watched`` does."""
    ended = threading.Event()
    threading.Thread(target=_end_with_input, args=(group, ended, watched), daemon=True).start()
    status = wait()
    ended.set()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)  # what the command left running
    return status if status >= 0 else 256 + status


def _end_with_input(group: int, ended: threading.Event, watched: int) -> None:
    while os.read(watched, 4096):  # not sys.stdin, whose lock this thread would hold at the guard's end
        pass
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, sent)
        if ended.wait(_GRACE):
            return


def _do_nothing(*_: object) -> None:
    """Handle a signal."""


def _leave(work: Callable[[], object]) -> None:
    """Run a function in a fork and end the process, without returning to what the fork was made in."""
    status = 0
    try:
        work()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(Exception):
        atexit._run_exitfuncs()  # os._exit would skip them, and some loggers end their runs there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
