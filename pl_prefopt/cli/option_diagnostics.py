"""Checks of the arguments of ``export`` and ``report`` before anything heavy is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from pl_prefopt.errors import ConfigError, suggest
from pl_prefopt.files import restore_backup


def check_options(command: str, arguments: Sequence[str]) -> None:
    """Check that the options are known and that the inputs of a command exist.

    Args:
        command: ``export`` or ``report``.
        arguments: the arguments after it.

    Raises:
        ConfigError: for the first error found.
    """
    known = {"-h", "--help", *_options_of(command)}
    if not set(arguments) & {"-h", "--help"}:
        paths = list(_positional(arguments, known))
        for path in paths:
            restore_backup(path)
            if not path.exists():
                raise ConfigError(_missing(command, path))
        # A report skips what is not a run, if there is at least one run.
        if command == "report" and paths and not any(path.is_dir() for path in paths):
            raise ConfigError(f"Expected a run's folder, such as runs/NAME, but {paths[0]} is a file.")


def _options_of(command: str) -> Iterator[str]:
    """Yield the options that the command's module adds to its parser, without importing it."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [part.value for part in node.args if isinstance(part, ast.Constant)]
            yield from (name for name in names if isinstance(name, str) and name.startswith("-"))


def _positional(arguments: Sequence[str], known: set[str]) -> Iterator[Path]:
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not option.startswith("-"):
            yield Path(option + equals + value)
        elif not any(name.startswith(option) for name in known):
            raise ConfigError(f"there is no option '{option}'{suggest(option, known) or '.'}")
        elif not equals and words:
            words.pop(0)


def _missing(command: str, path: Path) -> str:
    siblings = (
        [str(path.with_name(one.name)) for one in path.parent.iterdir()] if path.parent.is_dir() else []
    )
    hint = suggest(str(path), siblings) or "."
    if command == "report":
        return f"Expected a run's folder, such as runs/NAME, but there is no folder {path}{hint}"
    return f"Expected a checkpoint, but {path} is missing{hint}"
