"""Run the notebooks of docs/notebooks in this process and keep what their cells print.

    python -m scripts.site.notebooks --model .cache/models/SmolLM2-135M-Instruct

The cells are plain Python without magics, so that a kernel, which would take seconds to start, isn't needed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

_ROOT = Path(__file__).resolve().parents[2]
FOLDER = _ROOT / "docs" / "notebooks"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_MOST = 4000


def run(path: Path, *, model: str) -> Any:
    """Run a notebook's cells in the working folder and return it with their outputs.

    Args:
        path: the notebook.
        model: what is used in the place of its model.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell.source.replace(MODEL, model), f"{path.name}, cell {number}", "exec"), names)
        text = printed.getvalue().replace(model, MODEL).replace(f"{_ROOT}/", "")
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text[-_MOST:])] if text else []
    return notebook


def main() -> None:
    """Run all notebooks and write them with their outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="The folder of SmolLM2-135M-Instruct.")
    model = str(Path(parser.parse_args().model).resolve())
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            nbformat.write(run(path, model=model), path)
            sys.path.remove(folder)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
