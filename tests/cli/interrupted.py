"""A process that starts `prefopt` again and again, and lets it be killed where a test says.

Importing takes most of a short run's time, so it is done once: each run is a fork of this process, and dies
or ends as a run of its own would.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

_IMPORTED_ONCE = (
    "pl_prefopt.cli.plan",
    "pl_prefopt.cli.export",
    "pl_prefopt.cli.report",
    "pl_prefopt.cli.rounds",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "torch.utils.tensorboard",
    "torch._inductor.compile_fx",  # which PEFT's models import
    "peft",
    "bitsandbytes",
)


class Runs:
    """Starts runs in a folder."""

    def __init__(
        self, folder: Path, settings: dict[str, Any] | None = None, *, packages: Path | None = None
    ) -> None:
        """Start in ``folder``.

        Args:
            folder: the working folder, which may be changed later.
            settings: values to set, by ``package.module:NAME``; ``{"function": "module:NAME"}`` names one.
            packages: where to import from before anywhere else.
        """
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        path = [str(packages)] if packages else []
        self.folder, self.settings = folder, settings or {}
        self.server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=folder,
            env={**environment, "PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object, fault: dict[str, Any] | None = None) -> tuple[int, str]:
        """Run a command to its end; return its exit status (negative: the signal) and what it printed."""
        texts = [str(argument) for argument in arguments]
        order = {
            "folder": str(self.folder),
            "arguments": texts,
            "fault": fault,
            "settings": self.settings,
        }
        print(json.dumps(order), file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        return status, (self.folder / "printed.txt").read_text()

    def close(self) -> None:
        """End the process."""
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.kill()  # it only waits for orders
        self.server.wait()


def serve() -> None:
    """Do as ``Runs`` asks until it closes."""
    for name in _IMPORTED_ONCE:
        with suppress(ImportError):  # the run that needs it will say so
            importlib.import_module(name)
    _read_sources()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _read_sources() -> None:
    """Parse the modules that a command's check reads, which every child would do again."""
    from pl_prefopt.cli.config_diagnostics import check_command
    from pl_prefopt.cli.config_files import with_paths
    from pl_prefopt.errors import ConfigError

    axes = ["-c", "base", "-c", "methods/dpo", "-c", "hardware/cpu"]
    with suppress(ConfigError):  # no rows are named
        check_command("fit", with_paths(["fit", *axes])[1:])


def _run(folder: str, arguments: list[str], fault: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Be the command, and end."""
    from pl_prefopt.cli.main import main

    os.chdir(folder)
    sys.path[0] = folder  # as `python -m pl_prefopt` has it
    printed = os.open("printed.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    status = 0
    try:
        for place, value in settings.items():
            owner, name = _find(place)
            function = isinstance(value, dict) and value.get("function")
            setattr(owner, name, getattr(*_find(function)) if function else value)
        if fault is not None:
            _arrange(**fault)
        sys.argv = ["prefopt", *arguments]
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _arrange(place: str, call: int, how: str, named: str = "") -> None:
    """Let a signal come at the ``call``-th call of the function at ``place``.

    With ``named`` only calls count that are given a file or a path with this in its name.
    """
    owner, attribute = _find(place)
    original, calls = getattr(owner, attribute), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not any(named in str(getattr(each, "name", "")) for each in args):
            return original(*args, **kwargs)
        calls.append(1)
        if len(calls) == call and how == "torn":
            whole = io.BytesIO()
            original(args[0], whole)
            args[1].write(whole.getvalue()[: len(whole.getvalue()) // 2])
            args[1].flush()
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, interrupted)


def _find(place: str) -> tuple[Any, str]:
    """Return the module or class, and the attribute's name, of ``package.module:Class.name``."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for name in classes:
        owner = getattr(owner, name)
    return owner, attribute


if __name__ == "__main__":
    serve()
