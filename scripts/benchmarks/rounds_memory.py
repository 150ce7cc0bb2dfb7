"""Time and memory of a round's samples: sampled, labelled, and selected as rows to train on.

    python scripts/benchmarks/rounds_memory.py TOKENIZER [--samples 100000] [--n 8]

An engine without a model samples random tokens, and a rule judges. Printed is the resident set of the process
after each quarter of a stage: it is flat if memory doesn't depend on the number of samples.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from pl_prefopt.data import Prompts, Renderer
from pl_prefopt.generation import Engine, Sample, SampleFolder, Sampler, Sampling, read_shards
from pl_prefopt.judges import Rule
from pl_prefopt.rounds import BestAgainstWorst, Fit, Rounds, Stage
from pl_prefopt.rounds import stages as ours

TOKENS = 24


class RandomTokens(Engine):
    """Samples random tokens."""

    identity = "random"

    def __init__(self, words: int, end: int) -> None:
        self.words, self.end = words, end

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """See the base class."""
        return [[self._one(seed) for seed in own] for own in seeds]

    def _one(self, seed: int) -> Sample:
        ids = random.Random(seed).choices(range(1000, self.words), k=TOKENS - 1)
        return Sample([*ids, self.end], [-1.0] * TOKENS, "stop", seed)


class Meter:
    """Prints time and resident set of a stage, after each quarter of its prompts."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __call__(self, name: str, work: Callable[[Callable[[int], None]], object]) -> None:
        """Run a stage, which tells how many prompts are done."""
        found, started = [resident_mib()], time.monotonic()

        def done(count: int) -> None:
            while len(found) < 5 and count >= len(found) * self.total / 4:
                found.append(resident_mib())

        work(done)
        found += [resident_mib()] * (5 - len(found))
        shown = " ".join(f"{mib:.0f}" for mib in found)
        print(
            f"{name:<8} {time.monotonic() - started:6.0f} s; MiB at 0, 25, 50, 75, 100 %: {shown}", flush=True
        )


class _Told(io.TextIOBase):
    """Reads the number of prompts at the beginning of printed lines."""

    def __init__(self, done: Callable[[int], None]) -> None:
        self.done = done

    def write(self, text: str) -> int:
        first = text.split(" ", 1)[0]
        if first.isdigit():
            self.done(int(first))
        return len(text)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--n", type=int, default=8)
    given = parser.parse_args()
    count = given.samples // given.n
    renderer = Renderer(AutoTokenizer.from_pretrained(given.tokenizer))
    measure = Meter(count)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"Say {number}."}) + "\n" for number in range(count)))
        settings = Rounds(
            out=f"{folder}/out",
            rounds=1,
            prompts=str(data),
            policy="none",
            select=BestAgainstWorst(),
            fit=Fit(config=[]),
            judge=Rule("pl_prefopt.judges.rules.brevity"),
            sampling=Sampling(n=given.n, max_new_tokens=TOKENS),
        )
        measure("sample", lambda done: sample(settings, renderer, done))
        measure("label", lambda done: label(settings, done))
        measure("select", lambda _: ours.select_rows(settings, 1))
        rows = Stage(1, "select").folder(Path(settings.out)) / "rows"
        print(f"{given.n * count} samples, {sum(1 for _ in read_shards(rows))} rows to train on")


def sample(settings: Rounds, renderer: Renderer, done: Callable[[int], None]) -> None:
    """Sample all prompts."""
    engine = RandomTokens(len(renderer.tokenizer) - 100, renderer.end_token_id)
    target = SampleFolder(
        folder=Stage(1, "sample").folder(Path(settings.out)), batch_size=settings.batch_size
    )
    prompts = Prompts(source=settings.prompts)
    with tempfile.TemporaryDirectory() as scratch:
        content, count = prompts.open(Path(scratch))
        rows = prompts.rows(Path(scratch))
        sampler = Sampler(engine, renderer, settings.sampling, target)
        sampler.run(rows, count, content=content, say=lambda line: done(int(line.split(" ", 1)[0])))


def label(settings: Rounds, done: Callable[[int], None]) -> None:
    """Judge all samples."""
    assert settings.judge is not None
    folder = Stage(1, "label").folder(Path(settings.out))
    with contextlib.redirect_stdout(_Told(done)):
        ours.judge_samples(settings.judge, ours.sample_folders(settings, 1), folder, gold=False)


def resident_mib() -> float:
    """Return the resident set of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
