"""Where a run's files go."""

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
    """Return the run's folder: the one asked for, the checkpoint's, or a new one under ``runs/``.

    Args:
        asked: the ``run_dir`` setting.
        ckpt_path: the checkpoint that the command starts from, if any.
        method: the objective's name, for a new folder's name.

    Raises:
        ConfigError: if several processes would each choose a folder.
    """
    folder = without_dots(Path(asked)) if asked else _folder_of(ckpt_path)
    # Lightning starts the other ranks by running the same command again, perhaps a second later.
    shared = os.environ.get(_SHARED_WITH_RANKS)
    if folder is None and shared and "LOCAL_RANK" in os.environ:
        return Path(shared)
    if folder is None and _started_by_a_launcher():
        raise ConfigError(
            "Expected --run_dir, a folder that all processes see: torchrun and srun start each of them by "
            "itself, and the time of day would give them different folders."
        )
    if folder is None:
        folder = Path("runs") / f"{method.lower()}-{datetime.now():%Y%m%d-%H%M%S}"
    os.environ[_SHARED_WITH_RANKS] = str(folder)
    return folder


def require_run_folder(ckpt_path: str, run_dir: str | None) -> None:
    """Raise a ``ConfigError`` if ``last`` or ``best`` is asked for without saying of which run."""
    if run_dir is None and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"`--ckpt_path {ckpt_path}` is the checkpoint of a run: name the run with "
            "`-c runs/NAME/config.yaml` or `--run_dir`."
        )


def refuse_second_run(folder: Path, ckpt_path: str | None) -> None:
    """Raise a ``ConfigError`` if ``fit`` would mix a new run into the folder of another one."""
    own = ckpt_path in ("last", "best") or (
        ckpt_path is not None and Path(ckpt_path).resolve().is_relative_to(folder.resolve())
    )
    if not own and is_first_process() and _holds_a_run(folder):
        raise ConfigError(
            f"The folder {folder} holds a run already: add `--ckpt_path last` to go on with it, or "
            "`--run_dir` with another folder to start anew."
        )


def find_checkpoint(asked: str | None, folder: Path, *, may_be_missing: bool) -> str | None:
    """Return the checkpoint's path: ``last`` and ``best`` are those of the run's folder.

    Args:
        asked: the ``ckpt_path`` setting.
        folder: the run's folder.
        may_be_missing: whether ``last`` may be missing, because the run was stopped before its first one.
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
    """Tell whether this process has rank 0, by what its launcher says; Lightning, torchrun or srun."""
    # torchrun's number stands alone: it need not follow that of the SLURM task which it runs in. Processes
    # that Lightning starts have one on their machine, and in a shell of SLURM all have that of its task 0.
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
