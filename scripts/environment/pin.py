"""Pin the environments of CI and the demo: every package that they install, for each supported Python.

    make constraints                      # after a change of pyproject.toml: changes no more than it must
    make constraints UPGRADE=--upgrade    # takes the newest versions of everything

``constraints.txt`` gets the newest versions. ``constraints-oldest.txt`` gets the lower bounds of
``pyproject.toml`` and the newest versions of what those need in turn. uv resolves both from the metadata on
PyPI alone, for all versions of Python at once; pip's settings and indexes on this machine play no part. pip
does the installing: it may find a CPU wheel of torch through such settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
"""Changed by hand only: CPU wheels are offered for some versions."""
UV = "uv==0.13.9"
# What builds and installs our own package.
TOOLS = ("pip", "hatchling", "editables")
OLDEST_PYTHON = "3.11"


def main() -> None:
    """Write both files; arguments go to uv: ``--upgrade``, or ``--upgrade-package NAME``."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        pins = Path(folder) / "torch.txt"
        pins.write_text(f"{TORCH}\n", encoding="utf-8")
        tools = Path(folder) / "tools.in"
        tools.write_text("\n".join(TOOLS), encoding="utf-8")
        newest = ["--extra", "dev", "--extra", "oracle", str(tools), "--constraint", str(pins)]
        resolve(python, "constraints.txt", *newest, *sys.argv[1:])
        oldest = ["--extra", "test", "--resolution", "lowest-direct"]
        resolve(python, "constraints-oldest.txt", *oldest, *sys.argv[1:])


def resolve(python: Path, target: str, *arguments: str) -> None:
    """Let uv write ``target``; the versions that it already names are preferred."""
    command = [python, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-config", "--no-build"]
    command += ["--python-version", OLDEST_PYTHON, "--no-annotate"]
    command += ["--custom-compile-command", "make constraints"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    subprocess.run(
        [*command, "pyproject.toml", *arguments, "--output-file", target], check=True, env=environment
    )


if __name__ == "__main__":
    main()
