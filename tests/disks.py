"""Small and read-only disks, for a process that is forked off here and seen by nobody else."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000  # of Linux' unshare


class Disk:
    """A file system in memory, mounted on a folder.

    Args:
        folder: where.
        mebibytes: its size.
    """

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder, self.mebibytes = folder, mebibytes

    def mount(self) -> None:
        """Make this process see the disk, and no other process."""
        if sys.platform != "linux":
            raise OSError(f"{sys.platform} has no mounts of one process")
        user, group = os.getuid(), os.getgid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_MOUNTS | (_NEW_USERS if user else 0)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if user:  # who is nobody else's root may be its own
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        self.folder.mkdir()
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", f"size={self.mebibytes}m", "tmpfs", str(self.folder))

    def fill(self, *, kibibytes: int) -> None:
        """Leave so much room."""
        with (self.folder / "ballast").open("wb") as file:
            room = shutil.disk_usage(self.folder).free
            file.write(bytes(room - 1024 * kibibytes))

    def refuse(self) -> None:
        """Make room, and let nothing be written."""
        (self.folder / "ballast").unlink()
        _mount("-o", "remount,bind,ro", str(self.folder))

    def contents(self) -> dict[str, str]:
        """Every file, as text that differs where bytes do."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.name != "ballast"]
        return {str(file.relative_to(self.folder)): file.read_bytes().hex() for file in files}


def on_disk(disk: Disk, work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns (plain values) in a forked process that has the disk, or skip the test."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            try:
                disk.mount()
            except (OSError, subprocess.CalledProcessError) as error:
                json.dump({"skip": str(error)}, out)
            else:
                json.dump(_outcome(work), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        outcome = json.load(answer)
    os.waitpid(child, 0)
    if "skip" in outcome:
        pytest.skip(f"a disk of its own can't be mounted here: {outcome['skip']}")
    if "failed" in outcome:
        pytest.fail(outcome["failed"])
    return outcome["result"]


def _outcome(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": work()}
    except BaseException:
        return {"failed": traceback.format_exc()}


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
