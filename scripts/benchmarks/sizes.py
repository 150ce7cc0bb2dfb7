"""Processor time against size of what must not be quadratic, with the exponents between the sizes.

python scripts/benchmarks/sizes.py [NAME ...]

An exponent of 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pl_prefopt.data import Renderer
from pl_prefopt.data.sampler import LengthGroupedSampler
from pl_prefopt.data.store import hold_out
from pl_prefopt.metrics import bootstrap
from pl_prefopt.metrics.states import keep
from pl_prefopt.rows import Message, PreferenceRow
from tests.support import tiny_tokenizer

_seconds = [0.0]


@contextmanager
def _timed() -> Iterator[None]:
    began = time.process_time()
    yield
    _seconds[0] = time.process_time() - began


def _row(prompt: str, *responses: tuple[Message, ...]) -> PreferenceRow:
    return PreferenceRow(prompt=(Message("user", prompt),), responses=responses, scores=(1.0, 0.0))


def _hold_out(prompts: int) -> None:
    response = (Message("assistant", "Yes."),)
    rows = [_row(f"Question {number}?", response, response) for number in range(prompts)]
    with _timed():
        hold_out(rows, 0.1, seed=0)


def _dialogue(turns: int) -> None:
    roles = ("assistant", "user")
    said = tuple(Message(roles[turn % 2], f"Turn {turn} has something to say.") for turn in range(turns))
    renderer = Renderer(tiny_tokenizer(), max_response_length=None)
    with _timed():
        renderer.encode(_row("Hi", said, (Message("assistant", "No."),)))


def _long_text(characters: int) -> None:
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdefghij", k=pick.randint(1, 9))) for _ in range(2000)]
    text = " ".join(pick.choices(words, k=characters // 6))
    renderer = Renderer(tiny_tokenizer(), max_prompt_length=1024)
    with _timed():
        renderer.encode(_row(text, (Message("assistant", "Yes."),), (Message("assistant", "No."),)))


def _metric_state(batches: int) -> None:
    values: list[torch.Tensor] = []
    batch = torch.zeros(4)
    with _timed():
        for _ in range(batches):
            keep(values, batch)


def _bootstrap(pairs: int) -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=pairs)
    second = first + generator.normal(size=pairs)
    with _timed():
        ranked = bootstrap.RankCorrelations(first, second)
        for weights in bootstrap.resampled_weights(np.arange(pairs), resamples=4, seed=0):
            ranked.spearman(weights)
            ranked.kendall(weights)


def _sampler(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(50, 2000, rows)
    with _timed():
        next(iter(LengthGroupedSampler(lengths, 4, max_tokens=8192, shuffle=True, seed=0)))


CASES: dict[str, tuple[Callable[[int], None], str, tuple[int, int, int]]] = {
    "hold_out": (_hold_out, "prompts", (20_000, 80_000, 320_000)),
    "dialogue": (_dialogue, "turns", (501, 2001, 8001)),
    "long_text": (_long_text, "characters", (250_000, 1_000_000, 4_000_000)),
    "metric_state": (_metric_state, "batches", (20_000, 80_000, 320_000)),
    "bootstrap": (_bootstrap, "pairs", (20_000, 80_000, 320_000)),
    "sampler_start": (_sampler, "rows", (20_000, 80_000, 320_000)),
}


def main() -> None:
    """Print a table."""
    print("| case | sizes | seconds of CPU | exponents |\n|---|---|---|---|")
    for name in sys.argv[1:] or CASES:
        case, unit, sizes = CASES[name]
        seconds = []
        for size in sizes:
            case(size)
            seconds.append(_seconds[0])
        exponents = [
            math.log(seconds[place + 1] / seconds[place]) / math.log(sizes[place + 1] / sizes[place])
            for place in range(2)
        ]
        columns = (
            f"`{name}`",
            f"{', '.join(f'{size:,}' for size in sizes)} {unit}",
            ", ".join(f"{one:.3g}" for one in seconds),
            ", ".join(f"{one:.2f}" for one in exponents),
        )
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
