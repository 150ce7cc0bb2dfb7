"""Work that is killed again and again, at random points, until it is done."""

from __future__ import annotations

import os
import random
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_MOST_RUNS = 200
_LONGEST_TEAR = 30


def killed_until_done(work: Callable[[Callable[[], None]], object], *, seed: int, most_points: int) -> int:
    """Run ``work`` in forks, each of which is killed after a random number of points, until one ends.

    Points are the calls of the function that ``work`` is given, each flush to disk and each renaming. At a
    flush the end of the file may be cut off, as if the kill had come within the write.

    Args:
        work: goes on where it was.
        seed: of the points.
        most_points: the most points before a kill.

    Returns:
        How many forks were killed.
    """
    draw = random.Random(seed)
    for kills in range(_MOST_RUNS):
        points, tear = draw.randint(1, most_points), draw.randint(0, _LONGEST_TEAR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have threads
            child = os.fork()
        if child == 0:
            _die_while(work, points, tear)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        if ended == 0:
            return kills
        assert ended == -signal.SIGKILL, "the work failed: see its traceback"
    raise AssertionError(f"the work isn't done after {_MOST_RUNS} kills")


def _die_while(work: Callable[[Callable[[], None]], object], points: int, tear: int) -> None:
    left = [points]
    flush, rename = os.fsync, os.replace

    def point() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(file: Any) -> None:
        if left[0] == 1 and tear:
            with suppress(OSError):  # files that are open for reading only, and folders
                os.ftruncate(file, max(0, os.fstat(file).st_size - tear))
        point()
        flush(file)

    def replace(*names: Any) -> None:
        point()
        rename(*names)

    os.fsync, os.replace = fsync, replace
    status = 1
    try:
        work(point)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
