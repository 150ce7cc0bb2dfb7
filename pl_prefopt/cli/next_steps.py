"""The commands that follow a finished run, ready to be copied."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace


def next_steps(folder: Path, checkpoint: Path, config: Any, *, is_adapter: bool) -> str:
    """Return the location of a run and the commands that use it.

    Args:
        folder: the run folder.
        checkpoint: the checkpoint to use.
        config: the settings of ``fit``.
        is_adapter: whether exporting it gives an adapter.
    """
    lines = [f"  {shlex.join(words)}" for words in _commands(folder, checkpoint, config, is_adapter)]
    return "\n".join([f"The run is in {folder}. Next, for example:", *lines])


def _commands(folder: Path, checkpoint: Path, config: Any, is_adapter: bool) -> Iterator[list[str]]:
    run = ["-c", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)]
    data = config.data
    if data.val or data.held_out:
        yield ["prefopt", "validate", *run]
    yield ["prefopt", "predict", *run, "--data.predict", _as_argument(data.val or data.train)]
    out = folder / ("adapter" if is_adapter else "model")
    yield ["prefopt", "export", str(checkpoint), "--out", str(out)]
    yield ["prefopt", "report", str(folder)]


def _as_argument(source: Any) -> str:
    return source if isinstance(source, str) else json.dumps(source, default=Namespace.as_dict)
