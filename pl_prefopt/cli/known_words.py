"""The accepted values of settings that are annotated as ``str`` but don't accept arbitrary text.

Lightning or transformers would reject other values only after all imports or after loading the model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pl_prefopt.cli.class_sources import ClassSource, find_class


@dataclass(frozen=True)
class Texts:
    """The text that a setting accepts.

    Attributes:
        words: names, compared in lower case as Lightning does.
        form: a regular expression for other text.
        told: the description of ``form`` in messages.
        paths: whether the import path of a class is accepted too, without a mapping around it.
    """

    words: tuple[str, ...] = ()
    form: str = ""
    told: str = ""
    paths: bool = False

    def take(self, text: str) -> bool:
        """Return whether the setting accepts ``text``."""
        return text.lower() in self.words or bool(self.form and re.fullmatch(self.form, text.strip()))

    @property
    def expected(self) -> list[str]:
        """The expected values for messages; the first few if there are many."""
        words = (
            self.words
            if len(self.words) <= _MOST_LISTED
            else (f"a name such as {self.words[0]}", *self.words[1:4])
        )
        return [*words, *([self.told] if self.told else [])]


_MOST_LISTED = 12
_TIME = Texts(form=r"\d+:\d\d:\d\d:\d\d", told="a time such as 00:12:00:00, days first")
_LOWEST_OR_HIGHEST = Texts(("min", "max"))
_DDP = ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
_STRATEGIES = (
    *("auto", "ddp", "fsdp", "deepspeed"),
    *_DDP[1:],
    *(f"{name}_find_unused_parameters_{value}" for name in _DDP for value in ("true", "false")),
    *(f"deepspeed_stage_{stage}" for stage in ("1", "2", "2_offload", "3", "3_offload", "3_offload_nvme")),
    *("fsdp_cpu_offload", "single_device", "single_xla", "single_tpu", "xla", "xla_debug"),
)
_TEXTS = {
    "lightning.pytorch.trainer.trainer": {
        "strategy": Texts(_STRATEGIES),
        "accelerator": Texts(("auto", "cpu", "gpu", "cuda", "mps", "tpu")),
        "devices": Texts(("auto",), r"-?\d+(\s*,\s*-?\d+)*,?", "device numbers such as 0,1"),
        "gradient_clip_algorithm": Texts(("norm", "value")),
        "profiler": Texts(("simple", "advanced", "pytorch", "xla"), paths=True),
        "max_time": _TIME,
        # YAML reads 10:00:00:00 as a base-60 number, which would be taken as a number of batches.
        "val_check_interval": Texts(
            form=r"0\d*:\d+:\d+:\d+", told="a time such as 00:12:00:00 or {hours: 12}"
        ),
    },
    "lightning.pytorch.callbacks.model_checkpoint": {"mode": _LOWEST_OR_HIGHEST},
    "lightning.pytorch.callbacks.early_stopping": {"mode": _LOWEST_OR_HIGHEST},
    "lightning.pytorch.callbacks.batch_size_finder": {"mode": Texts(("power", "binsearch"))},
    "lightning.pytorch.callbacks.lr_finder": {"mode": Texts(("exponential", "linear"))},
    "lightning.pytorch.callbacks.timer": {"duration": _TIME, "interval": Texts(("step", "epoch"))},
}


def known_texts(module: str, name: str) -> Texts | None:
    """Return the text that a setting accepts; ``None`` if it accepts any.

    Args:
        module: the module of the constructor.
        name: the name of the setting.
    """
    if (module, name) == ("pl_prefopt.modules.schedule", "name"):
        return _members("transformers.trainer_utils.SchedulerType")
    return _TEXTS.get(module, {}).get(name)


def _members(path: str) -> Texts | None:
    """Return the values of a string enumeration, from its source file."""
    source = find_class(path)
    words = tuple(_assigned(source)) if isinstance(source, ClassSource) else ()
    return Texts(words) if words else None


def _assigned(source: ClassSource) -> Iterator[str]:
    for statement in source.node.body:
        value = statement.value if isinstance(statement, ast.Assign) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value
