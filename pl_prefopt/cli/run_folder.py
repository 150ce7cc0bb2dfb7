"""Choosing and checking the folder of a run."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from pl_prefopt.errors import ConfigError
from pl_prefopt.files import restore_backup, without_dots
from pl_prefopt.saved_settings import FILE_NAME

METRICS = "metrics.csv"
_SHARED_WITH_RANKS = "PREFOPT_RUN_DIR"


def choose_run_folder(*, asked: str | None, ckpt_path: str | None, method: str) -> Path:
    """Return the run folder: the one set, the checkpoint's, or a new one under ``runs/``.

    Args:
        asked: the ``run_dir`` setting.
        ckpt_path: the checkpoint that the command starts from, if any.
        method: the objective's name, for a new folder's name.

    Raises:
        ConfigError: if several processes would each choose a different folder.
    """
    folder = without_dots(Path(asked)) if asked else _folder_of(ckpt_path)
    # Lightning starts the other ranks by rerunning the command, possibly a second later.
    shared = os.environ.get(_SHARED_WITH_RANKS)
    if folder is None and shared and "LOCAL_RANK" in os.environ:
        return Path(shared)
    if folder is None and _started_by_a_launcher():
        raise ConfigError(
            "Expected --run_dir, a folder that all processes share: torchrun and srun start each process "
            "separately, and the default, which has the time in its name, could differ between them."
        )
    if folder is None:
        folder = Path("runs") / f"{method.lower()}-{datetime.now():%Y%m%d-%H%M%S}"
    os.environ[_SHARED_WITH_RANKS] = str(folder)
    return folder


def require_run_folder(ckpt_path: str, run_dir: str | None) -> None:
    """Raise a ``ConfigError`` if ``last`` or ``best`` is given without a run."""
    if run_dir is None and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"`--ckpt_path {ckpt_path}` is the checkpoint of a run: name the run with "
            "`-c runs/NAME/config.yaml` or `--run_dir`."
        )


def refuse_second_run(folder: Path, ckpt_path: str | None) -> None:
    """Raise a ``ConfigError`` if ``fit`` would write a new run into the folder of another one."""
    own = ckpt_path in ("last", "best") or (
        ckpt_path is not None and Path(ckpt_path).resolve().is_relative_to(folder.resolve())
    )
    if not own and is_first_process() and _holds_a_run(folder):
        raise ConfigError(
            f"The folder {folder} already contains a run: add `--ckpt_path last` to resume it, or "
            "`--run_dir` with another folder to start a new one."
        )


def find_checkpoint(asked: str | None, folder: Path, *, may_be_missing: bool) -> str | None:
    """Return the checkpoint's path; ``last`` and ``best`` refer to the run folder.

    Args:
        asked: the ``ckpt_path`` setting.
        folder: the run's folder.
        may_be_missing: whether ``last`` may be missing, if the run was stopped before its first checkpoint.
    """
    if asked is None:
        return None
    if not asked:
        raise ConfigError("Expected --ckpt_path to be a checkpoint, 'last' or 'best', got nothing.")
    path = folder / "checkpoints" / f"{asked}.ckpt" if asked in ("last", "best") else Path(asked)
    restore_backup(path)
    if path.exists():
        return str(path)
    if may_be_missing and asked == "last":
        print(f"There is no checkpoint in {folder} yet: starting from the beginning.")
        return None
    raise ConfigError(f"Expected --ckpt_path to be a checkpoint, 'last' or 'best', but {path} is missing.")


def keep_earlier_metrics(folder: Path) -> None:
    """Rename an earlier ``metrics.csv``, which the logger would delete."""
    current = folder / METRICS
    if not current.exists() or not is_first_process():
        return
    number = 1
    while (folder / f"metrics.{number}.csv").exists():
        number += 1
    current.rename(folder / f"metrics.{number}.csv")


def is_first_process() -> bool:
    """Return whether this process has rank 0, from the environment of Lightning, torchrun or srun."""
    # torchrun's rank takes precedence, since it is independent of the SLURM task that torchrun runs in.
    # Processes started by Lightning have a local rank; in a SLURM shell all of them see the rank of task 0.
    names = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(int(os.environ.get(name, "0")) == 0 for name in names)


def _holds_a_run(folder: Path) -> bool:
    return (folder / FILE_NAME).exists() or any((folder / "checkpoints").glob("*.ckpt"))


def _started_by_a_launcher() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _folder_of(ckpt_path: str | None) -> Path | None:
    if ckpt_path is None:
        return None
    folder = Path(ckpt_path).resolve().parent.parent
    return folder if (folder / FILE_NAME).is_file() else None
