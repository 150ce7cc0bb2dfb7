"""Sampling a file of prompts: batches fixed by row number, shards, progress, and log-probs of our own."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pl_prefopt.data import EncodedRow, Renderer, collate
from pl_prefopt.data.formats import unlabelled, with_further
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.files import atomic_write
from pl_prefopt.generation.base import Engine, Sample, Sampling
from pl_prefopt.generation.shards import Format, ShardWriter, read_shards
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.scoring import Scorer

SETTINGS_FILE = "sampling.json"
"""What the samples of a folder depend on and, once they are complete, what was measured."""
_SCORED_TOGETHER = 2048
"""Tokens of rows that are scored in one pass, with padding: enough for a matrix product to be fast."""
_Sums = list[float | None]


@dataclass(frozen=True, kw_only=True)
class SampleFolder:
    """Where samples go, and how.

    Attributes:
        folder: the folder.
        batch_size: prompts per batch.
        rows_per_shard: prompts per shard.
        kind: the format of the shards.
    """

    folder: Path
    batch_size: int = 8
    rows_per_shard: int = 1000
    kind: Format = "parquet"

    def __post_init__(self) -> None:
        for name in ("batch_size", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected `{name}` to be at least 1, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class Measured:
    """What is counted over samples.

    Attributes:
        samples: how many there are.
        tokens: their tokens.
        stopped: how many end with an end token.
        empty: how many have no text.
        retokenised: how many consist of other tokens when their text is tokenised, as training does.
        compared: samples with both log-probs, ours and the engine's.
        gap_sum: their |our log-prob − the engine's| per token, added up.
        gap_max: the largest of them.
    """

    samples: int = 0
    tokens: int = 0
    stopped: int = 0
    empty: int = 0
    retokenised: int = 0
    compared: int = 0
    gap_sum: float = 0.0
    gap_max: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of samples."""
        for number, ids in enumerate(row["token_ids"]):
            self.samples += 1
            self.tokens += len(ids)
            self.stopped += row["finish_reasons"][number] == "stop"
            self.empty += not row["responses"][number].strip()
            self.retokenised += row["retokenised"][number]
            ours, theirs = row["log_probs"][number], row["engine_log_probs"][number]
            if ours is not None and theirs is not None:
                gap = abs(ours - theirs) / max(1, len(ids))
                self.compared += 1
                self.gap_sum += gap
                self.gap_max = max(self.gap_max, gap)

    def summary(self) -> dict[str, Any]:
        """Return the numbers as JSON has them; shares of samples."""
        count = max(1, self.samples)
        return {
            "samples": self.samples,
            "mean_tokens": self.tokens / count,
            "stopped": self.stopped / count,
            "empty": self.empty / count,
            "retokenised": self.retokenised / count,
            "log_prob_gap_mean": self.gap_sum / self.compared if self.compared else None,
            "log_prob_gap_max": self.gap_max if self.compared else None,
        }


class Sampler:
    """Samples prompts into a folder; a run that was killed goes on after its last complete batch.

    Args:
        engine: samples.
        renderer: turns prompts into tokens as training does, and tokens into texts.
        sampling: the settings.
        out: where samples go.
        policy: returns the model that scores the samples at temperature 1; without it there are no log-probs
            of our own.
        reference: returns a second model that scores the samples, for estimates of a KL divergence; where it
            is ``policy``, the samples are scored once.
        reference_identity: a hash of that model.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        sampling: Sampling,
        out: SampleFolder,
        policy: Callable[[], Any] | None = None,
        reference: Callable[[], Any] | None = None,
        reference_identity: str = "",
    ) -> None:
        self.engine, self.renderer, self.sampling, self.out = engine, renderer, sampling, out
        self.policy, self.reference, self._reference_identity = policy, reference, reference_identity
        self._scorers = Scorer(), Scorer()  # one per model

    def run(
        self,
        prompts: Iterable[tuple[int, PreferenceRow]],
        count: int,
        *,
        content: str,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Sample all prompts and return what was measured.

        Args:
            prompts: the prompts and their numbers, in a fixed order.
            count: how many there are, for the progress.
            content: a hash of the prompts.
            say: prints a line.

        Raises:
            ConfigError: if the folder holds samples of other prompts or with other settings.
            RunError: if the engine fails.
        """
        self._check_settings(content)
        writer = ShardWriter(self.out.folder, rows_per_shard=self.out.rows_per_shard, kind=self.out.kind)
        if writer.rows:
            say(f"{writer.rows} of {count} prompts are sampled: going on after them.")
        if writer.rows < count:
            with self.engine:
                self._sample_all(prompts, count, writer, say)
        writer.finish()
        measured = Measured()
        for row in read_shards(self.out.folder):
            measured.add(row)
        found = {"prompts": count, **measured.summary()}
        self._write({**self._settings(content), "measured": found})
        return found

    def _sample_all(
        self,
        prompts: Iterable[tuple[int, PreferenceRow]],
        count: int,
        writer: ShardWriter,
        say: Callable[[str], None],
    ) -> None:
        started, tokens = time.monotonic(), 0
        for batch in _batches(prompts, self.out.batch_size, writer.rows):
            rows = self._sample(batch)
            writer.append(rows)
            tokens += sum(len(ids) for row in rows for ids in row["token_ids"])
            rate = tokens / max(1e-9, time.monotonic() - started)
            say(f"{writer.rows} of {count} prompts, {rate:.0f} tokens per second")

    def _sample(self, batch: Sequence[tuple[int, PreferenceRow]]) -> list[dict[str, Any]]:
        prompts = [list(self.renderer.encode(row).prompt_ids) for _, row in batch]
        seeds = [self.sampling.seeds(number) for number, _ in batch]
        sampled = self.engine.sample(prompts, seeds, self.sampling)
        if len(sampled) != len(batch):
            raise RunError(f"expected samples of {len(batch)} prompts from the engine, got {len(sampled)}.")
        for (_, row), own in zip(batch, sampled, strict=True):
            if len(own) != self.sampling.n:
                raise RunError(
                    f"expected {self.sampling.n} samples of {row.origin or 'a prompt'} from the engine, got "
                    f"{len(own)}."
                )
        sampled = [[self._with_ids(sample) for sample in own] for own in sampled]
        ours = _log_probs(self.policy, self._scorers[0], prompts, sampled)
        theirs = ours
        if self.reference is not self.policy:
            theirs = _log_probs(self.reference, self._scorers[1], prompts, sampled)
        return [
            self._row(number, row, own, self._texts(row, prompt, own), (first, second))
            for (number, row), prompt, own, first, second in zip(
                batch, prompts, sampled, ours, theirs, strict=True
            )
        ]

    def _row(
        self,
        number: int,
        row: PreferenceRow,
        own: list[Sample],
        texts: list[str],
        scored: tuple[_Sums, _Sums],
    ) -> dict[str, Any]:
        encoded = [list(self._retokenised(text)) for text in texts]
        of_row = unlabelled(row)
        written = {
            **of_row,
            "responses": texts,
            "number": number,
            "gold": _gold(row),
            "token_ids": [sample.token_ids for sample in own],
            "token_log_probs": [sample.log_probs for sample in own],
            "finish_reasons": [sample.finish_reason for sample in own],
            "seeds": [sample.seed for sample in own],
            "retokenised": [
                ids != self._body(sample.token_ids) for ids, sample in zip(encoded, own, strict=True)
            ],
            "log_probs": scored[0],
            "reference_log_probs": scored[1],
            "engine_log_probs": [
                sum(one.log_probs) if len(one.log_probs) == len(one.token_ids) else None for one in own
            ],
        }
        further = {name: value for name, value in row.columns.items() if not isinstance(value, tuple)}
        return with_further(written, {name: further[name] for name in further if name not in of_row})

    def _texts(self, row: PreferenceRow, prompt: Sequence[int], own: Sequence[Sample]) -> list[str]:
        """Return the texts of a prompt's samples.

        Decoders such as SentencePiece's drop a space at the start, which a continued turn needs.
        """
        continues = row.prompt[-1].role == "assistant"
        before = list(prompt[-1:]) if continues else []
        start = len(self.text(before))
        return [self.text([*before, *sample.token_ids])[start:] for sample in own]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a response's tokens, without the end token and other special tokens."""
        return str(self.renderer.tokenizer.decode(ids, skip_special_tokens=True))

    def _retokenised(self, text: str) -> Iterator[int]:
        yield from self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _body(self, ids: Sequence[int]) -> list[int]:
        return list(ids[:-1] if ids and ids[-1] == self.renderer.end_token_id else ids)

    def _with_ids(self, sample: Sample) -> Sample:
        """Tokenise the text of an engine that returned no token ids."""
        if sample.text is None:
            return sample
        ends = [self.renderer.end_token_id] if sample.finish_reason == "stop" else []
        return sample._replace(token_ids=[*self._retokenised(sample.text), *ends])

    def _settings(self, content: str) -> dict[str, Any]:
        return {
            "sampling": asdict(self.sampling),
            "engine": self.engine.identity,
            "tokens": self.renderer.fingerprint,
            "prompts": content,
            "batch_size": self.out.batch_size,
            "rows_per_shard": self.out.rows_per_shard,
            "format": self.out.kind,
            "scored": self.policy is not None,
            "reference": self._reference_identity,
        }

    def _check_settings(self, content: str) -> None:
        path, wanted = self.out.folder / SETTINGS_FILE, self._settings(content)
        if not path.is_file():
            # Hidden files are a lock, and what a kill left of the settings.
            if self.out.folder.is_dir() and any(self.out.folder.glob("[!.]*")):
                raise ConfigError(f"Expected --out to be a new or empty folder, but {self.out.folder} isn't.")
            self._write(wanted)
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"{self.out.folder} holds samples with another '{name}' ({found.get(name)}, and now "
                    f"{value}): set --out to another folder, or remove this one."
                )

    def _write(self, content: Mapping[str, Any]) -> None:
        with atomic_write(self.out.folder / SETTINGS_FILE) as draft:
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _log_probs(
    load: Callable[[], Any] | None,
    scorer: Scorer,
    prompts: Sequence[list[int]],
    sampled: Sequence[Sequence[Sample]],
) -> list[_Sums]:
    """Return log π(y|x) of each sample by our scorer, at temperature 1; ``None`` without tokens."""
    found: list[_Sums] = [[None] * len(own) for own in sampled]
    if load is None:
        return found
    policy = load()
    for places in _groups(prompts, sampled):
        encoded = []
        for place in places:
            ids = [sample.token_ids for sample in sampled[place]]
            counted = [[True] * len(tokens) for tokens in ids]
            encoded.append(EncodedRow(prompt_ids=prompts[place], response_ids=ids, counted=counted))
        with torch.no_grad():
            sums = scorer(policy, collate(encoded).to(policy.device)).sum.tolist()
        for place, values in zip(places, sums, strict=True):
            found[place] = values[: len(sampled[place])]
    return found


def _groups(prompts: Sequence[list[int]], sampled: Sequence[Sequence[Sample]]) -> Iterator[list[int]]:
    """Yield the places of rows that are scored together: as many as fit into ``_SCORED_TOGETHER`` tokens."""
    group: list[int] = []
    longest = 0
    for place, (prompt, own) in enumerate(zip(prompts, sampled, strict=True)):
        if not all(sample.token_ids for sample in own):
            continue
        length = len(prompt) + len(own) * max(len(sample.token_ids) for sample in own)
        if group and (len(group) + 1) * max(longest, length) > _SCORED_TOGETHER:
            yield group
            group, longest = [], 0
        group.append(place)
        longest = max(longest, length)
    if group:
        yield group


def _gold(row: PreferenceRow) -> list[dict[str, Any]] | None:
    """Return the row's best response; ``None`` without responses, or where several are the best."""
    if not row.responses:
        return None
    scores = row.scores or (0.0,) * len(row.responses)
    best = [place for place, score in enumerate(scores) if score == max(scores)]
    return [message.as_dict() for message in row.responses[best[0]]] if len(best) == 1 else None


def _batches(
    prompts: Iterable[tuple[int, PreferenceRow]], size: int, done: int
) -> Iterator[list[tuple[int, PreferenceRow]]]:
    """Yield the batches that aren't done; they are the same whatever is."""
    iterator = iter(prompts)
    for first in itertools.count(0, size):
        batch = list(itertools.islice(iterator, size))
        if not batch:
            return
        if first >= done:
            yield batch
