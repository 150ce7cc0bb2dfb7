"""Stages as forks of a process that has imported everything, which saves most of a short stage's time."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pl_prefopt.judges import JudgedRow


def run_forked(command: Sequence[str], log: Path) -> int:
    """Do as ``processes.run_logged`` with a command of ours: ``python -m pl_prefopt ...``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        _be(list(command[3:]), log)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _be(words: list[str], log: Path) -> None:
    from pl_prefopt.cli.main import main

    printed = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    status = 0
    try:
        sys.argv = ["prefopt", *words]
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def vowels(row: JudgedRow) -> list[float]:
    """Score a response by its share of vowels."""
    texts = ["".join(turn.content for turn in response) for response in row.responses]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def indifferent(row: JudgedRow) -> list[float]:
    """Score all responses alike."""
    return [1.0] * len(row.responses)
