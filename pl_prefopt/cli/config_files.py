"""Configuration files, by path or by name, found before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pl_prefopt.errors import ConfigError, suggest

_PACKAGE = Path(__file__).resolve().parents[1]
_OPTIONS = ("-c", "--config")
_EXAMPLES = "scripts/demo/"
SHORT = {
    "--policy": "--model.init_args.policy.name",
    "--lr": "--model.init_args.optimizer.init_args.lr",
}
"""Short options and the settings that they set."""


def shipped() -> Path:
    """Return the folder of the configurations that come with the package.

    A wheel has them inside the package; a checkout or editable install has them at its top level.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> dict[str, Path]:
    """Return the files that come with the package by name, such as ``methods/dpo``."""
    root = shipped()
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
    return dict(sorted(files.items(), key=lambda item: ("/" in item[0], item[0])))


def find(wanted: str) -> str:
    """Return the path of a configuration: a file that exists, or one that comes with the package.

    Raises:
        ConfigError: if there is neither.
    """
    # A link, a pipe (`<(...)`), or inline settings instead of a file name.
    if Path(wanted).exists() and not Path(wanted).is_dir():
        return wanted
    if any(sign in wanted for sign in "{\n"):
        return wanted
    known = names()
    if wanted in known:
        return str(known[wanted])
    raise ConfigError(_missing(wanted, known))


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Return the command line with every configuration as ``--config PATH`` and options in full.

    Raises:
        ConfigError: if one is missing.
    """
    return [word for part in _parts(arguments) for word in part]


def example_rows(path: str) -> str:
    """Return the path of rows; the demo's rows, which come with the package, are found from any folder."""
    ours = shipped().parent / path
    is_ours = path.startswith(_EXAMPLES) and not Path(path).exists() and ours.is_file()
    return str(ours) if is_ours else path


def _parts(arguments: Sequence[str]) -> Iterator[Sequence[str]]:
    words = iter(arguments)
    for word in words:
        wanted = next(words, None) if word in _OPTIONS else _glued(word)
        option, equals, value = word.partition("=")
        word = SHORT.get(option, option) + equals + value
        yield (word,) if wanted is None else ("--config", find(wanted))


def _glued(word: str) -> str | None:
    """Return what follows ``-c`` or ``--config=`` in the same argument."""
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return value if option in _OPTIONS and equals else None
    return word.removeprefix("-c").removeprefix("=") if word.startswith("-c") else None


def _missing(wanted: str, known: dict[str, Path]) -> str:
    """Return the error for a configuration that can't be found, with a suggestion."""
    if not wanted:
        return "expected the name of a configuration or a file, got nothing."
    path = Path(wanted)
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f"; name {inside}" if inside.is_file() else "; name a file in it"
        return f"expected a configuration file, but {wanted} is a folder{hint}."
    asked = wanted.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    same = [name for name in known if asked in (name, name.rpartition("/")[2])]
    if same:
        there = f"there is no file {wanted} in {Path.cwd()}; the one that comes with prefopt is"
        return f"{there} `-c {same[0]}`."
    if path.suffix in (".yaml", ".yml") and not path.parent.is_dir():
        return f"there is no file {wanted}: the folder {path.parent} doesn't exist."
    beside = [str(path.with_name(file.name)) for file in path.parent.glob("*.y*ml")]
    hint = suggest(wanted, beside) or suggest(asked, known) or "."
    return f"there is no configuration '{wanted}': it is neither a file nor listed by `prefopt configs`{hint}"
