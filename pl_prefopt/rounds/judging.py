"""Judges for rounds: the policy of the round, combinations of judges, and comparisons of answers."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import statistics
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch

from pl_prefopt.data import Renderer
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.files import atomic_write
from pl_prefopt.generation import Engine, RefusedPromptError, Sample, Sampling, ShardWriter, read_shards
from pl_prefopt.judges import Gives, Judge, JudgedRow, Verdict
from pl_prefopt.judges.generative import Answer, Grading
from pl_prefopt.rewards import RewardCombination
from pl_prefopt.rows import Message

BY_ORDER = "_by_order"
"""The end of the name of columns with the probabilities of both orders."""
JUDGE_FILE = "judge.json"
"""The file that says which judge a folder's verdicts are of."""
_ROWS_PER_SHARD = 1000


class OwnGrades(Grading):
    """Grades samples with the policy that wrote them: self-rewarding, arXiv 2401.10020.

    The judge of each round is the policy that samples in it, with a prompt for grades. A score is the mean of
    the grades that can be read; a response without one has no score. Seeds depend on the question alone, so
    that a resumed run gets the same grades.

    Args:
        template: the name of a template of ours that gives scores, or a YAML file, see ``JudgeTemplate``.
        sampling: how the policy answers; ``n`` grades are averaged. The default is an example.
        batch_size: rows per batch.

    Raises:
        ConfigError: if the template compares, or a setting is out of range.
    """

    def __init__(
        self, template: str = "pointwise", sampling: Sampling | None = None, batch_size: int = 8
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        super().__init__(template, "never", rationales=False)
        self.batch_size = batch_size
        self.sampling = sampling or Sampling(n=3, temperature=0.7, top_p=0.9, max_new_tokens=256)
        self._policy: tuple[Engine, Renderer] | None = None

    def by(self, engine: Engine, renderer: Renderer) -> Self:
        """Return this judge with a policy that grades.

        Args:
            engine: samples of the policy.
            renderer: renders questions; it should cut no prompt.
        """
        bound = copy.copy(self)
        bound._policy = engine, renderer
        return bound

    def fingerprint(self) -> str:
        """Return a hash of the policy, the template and the settings."""
        told = (self._bound[0].identity, self._bound[1].fingerprint, self.template.fingerprint, self.sampling)
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    @property
    def _bound(self) -> tuple[Engine, Renderer]:
        if self._policy is None:
            raise ConfigError(
                "OwnGrades grades by the policy of a round: name it as the `judge` of `prefopt rounds`."
            )
        return self._policy

    def prepare(self) -> None:
        """Load the policy."""
        self._bound[0].__enter__()

    def close(self) -> None:
        """Free the policy."""
        self._bound[0].__exit__()

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class. A question that the policy can't read is an invalid answer."""
        asked = [[self._question(values) for values in self._questions(row)] for row in batch]
        samples = iter(self._sampled([one for own in asked for one in own if not isinstance(one, str)]))
        return [
            self._verdict(row, [self._answer(one if isinstance(one, str) else next(samples)) for one in own])
            for row, own in zip(batch, asked, strict=True)
        ]

    def _question(self, values: dict[str, Any]) -> list[int] | str:
        """Return the tokens of a question, or why the policy can't read it."""
        engine, renderer = self._bound
        try:
            turns = self.template.messages(values)
            ids = renderer.encode_prompt([Message(turn["role"], turn["content"]) for turn in turns])
        except DataError as error:
            return str(error)
        limit = engine.longest_prompt(self.sampling)
        if limit is None or len(ids) <= limit:
            return ids
        return f"the question has {len(ids)} tokens, and the policy's context has room for {limit}"

    def _sampled(self, questions: Sequence[list[int]]) -> list[list[Sample] | str]:
        """Return the samples of each question, or why the engine refuses it."""
        if not questions:
            return []
        seeds = [self._seeds(one) for one in questions]
        try:
            return list(self._bound[0].sample(questions, seeds, self.sampling))
        except RefusedPromptError as error:
            if len(questions) == 1:
                return [str(error)]
            return [found for one in questions for found in self._sampled([one])]

    def _seeds(self, question: Sequence[int]) -> list[int]:
        told = hashlib.blake2b(repr(list(question)).encode(), digest_size=6).digest()
        return self.sampling.seeds(int.from_bytes(told, "big"))

    def _answer(self, samples: list[Sample] | str) -> Answer:
        """Return the mean of the grades that can be read."""
        if isinstance(samples, str):
            return Answer(None, problem=samples)
        grades = [self._grade(one) for one in samples]
        missing = sum(grade is None for grade in grades)
        problem = f"no grade in {missing} of {len(grades)} answers" if missing else ""
        return Answer(_mean_of_known(grades), problem=problem)

    def _grade(self, sample: Sample) -> float | None:
        text = self._bound[1].decode(sample.token_ids) if sample.text is None else sample.text
        return self.template.value(text)


def _mean_of_known(grades: Sequence[float | None]) -> float | None:
    known = [grade for grade in grades if grade is not None]
    return statistics.fmean(known) if known else None


class SeveralJudges(Judge):
    """Base class of judges that make one score per response of the scores of several judges.

    Args:
        judges: judges that give scores. All of them are loaded at the same time.
        batch_size: rows per batch.

    Raises:
        ConfigError: if a judge compares.
    """

    gives: ClassVar[Gives] = "scores"

    def __init__(self, judges: list[Judge], batch_size: int) -> None:
        if not judges or any(one.gives != "scores" for one in judges):
            raise ConfigError(f"{type(self).__name__} needs judges that give scores, one or more.")
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        self.judges, self.batch_size = judges, batch_size

    def prepare(self) -> None:
        """Prepare all judges."""
        for one in self.judges:
            one.prepare()

    def close(self) -> None:
        """Close all judges."""
        for one in self.judges:
            one.close()

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        found = [list(one.verdicts(batch)) for one in self.judges]
        return [
            self._combined(row, verdicts)
            for row, verdicts in zip(batch, zip(*found, strict=True), strict=True)
        ]

    def _combined(self, row: JudgedRow, verdicts: Sequence[Verdict]) -> Verdict:
        parts = tuple(zip(*(one.scores for one in verdicts), strict=True))
        return Verdict(
            scores=tuple(
                None if None in own else self._score(row, place, own) for place, own in enumerate(parts)
            ),
            parts=parts,
            problems=tuple(problem for one in verdicts for problem in one.problems),
            cost=sum((one.cost for one in verdicts[1:]), verdicts[0].cost),
        )

    @abstractmethod
    def _score(self, row: JudgedRow, place: int, scores: Sequence[float | None]) -> float | None:
        """Return the score of a response from the known scores of all judges."""


class CombinedScores(SeveralJudges):
    """Combines the scores of several judges into one per response, such as MaxMin-RLHF's minimum.

    A response without a score from one of them has none. All judges are loaded at the same time.

    Args:
        judges: judges that give scores.
        combination: what makes one score of theirs, such as ``pl_prefopt.rewards.Minimum``.
        batch_size: rows per batch.

    Raises:
        ConfigError: if a judge compares, or the combination is for another number of scores.
    """

    def __init__(self, judges: list[Judge], combination: RewardCombination, batch_size: int = 64) -> None:
        super().__init__(judges, batch_size)
        if combination.count not in (None, len(judges)):
            raise ConfigError(
                f"{type(combination).__name__} combines {combination.count} scores, but there are "
                f"{len(judges)} judges: give one part per judge."
            )
        self.combination = combination

    def fingerprint(self) -> str:
        """Return a hash of the judges and the combination."""
        told = ([one.fingerprint() for one in self.judges], self.combination)
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def _score(self, row: JudgedRow, place: int, scores: Sequence[float | None]) -> float | None:
        combined = float(self.combination(torch.tensor(scores, dtype=torch.float64)))
        # A harmonic mean, for one, has no value for a score below 0.
        return combined if math.isfinite(combined) else None


def verdicts_writer(judge: Judge, out: Path, *, rows_per_shard: int) -> ShardWriter:
    """Return what writes a judge's verdicts to a folder, where no other judge's are.

    Raises:
        ConfigError: if there are verdicts of another judge.
    """
    writer = ShardWriter(out, rows_per_shard=rows_per_shard)
    file, told = out / JUDGE_FILE, {"judge": judge.name, "fingerprint": judge.fingerprint()}
    if writer.rows:
        held = judge_of(out)
        if held != told:
            raise ConfigError(
                f"{out} has verdicts of another judge ({held}, and now {told}), or of one whose model or "
                f"code has changed: add `--rerun {out.parent.name.removeprefix('round-')}/{out.name}` to "
                "judge all answers with this one."
            )
    else:
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return writer


def judge_of(folder: Path) -> dict[str, str] | None:
    """Return the name and the fingerprint of the judge of a folder's verdicts; ``None`` if it has none."""
    file = folder / JUDGE_FILE
    held: dict[str, str] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return held


class _Pair(NamedTuple):
    """Two answers to be compared, and where the result belongs."""

    row: JudgedRow
    place: tuple[int, str, int]

    def swapped(self) -> JudgedRow:
        """Return the answers in the other order."""
        return replace(self.row, responses=self.row.responses[::-1])


def compare_answers(judge: Judge, ours: Path, opponents: Mapping[str, Path], out: Path) -> None:
    """Compare answers with those of other policies, in both orders; resumes after the last judged batch.

    Each row of the result has, by opponent, the probability that our answer is better, per sample: the mean
    of both orders; ``None`` where an answer of the judge is invalid. Equal texts count as 0.5. ``_by_order``
    after the opponent's name has the two orders: our answer first, and second.

    Args:
        judge: a judge that gives probabilities.
        ours: the folder of our answers.
        opponents: folders with answers to the same prompts.
        out: where the result goes.
    """
    writer = verdicts_writer(judge, out, rows_per_shard=_ROWS_PER_SHARD)
    all_rows = zip(read_shards(ours), *map(read_shards, opponents.values()), strict=True)
    rows = itertools.islice(all_rows, writer.rows, None)
    with judge:
        while batch := list(itertools.islice(rows, judge.batch_size)):
            found: list[dict[str, Any]] = []
            asked: list[_Pair] = []
            for row, *others in batch:
                found.append({"number": row["number"]})
                for name, other in zip(opponents, others, strict=True):
                    found[-1][name] = [0.5] * len(row["responses"])
                    found[-1][name + BY_ORDER] = [[None, None] for _ in row["responses"]]
                    asked += _pairs(row, other, (len(found) - 1, name))
            for pair, (there, back) in zip(asked, _in_both_orders(judge, asked), strict=True):
                place, name, sample = pair.place
                found[place][name][sample] = None if there is None or back is None else (there + back) / 2
                found[place][name + BY_ORDER][sample] = [there, back]
            writer.append(found)
            print(f"{writer.rows} prompts are compared", flush=True)
    writer.finish()


def _pairs(row: Mapping[str, Any], other: Mapping[str, Any], place: tuple[int, str]) -> Iterator[_Pair]:
    prompt = tuple(
        Message.of({name: value for name, value in turn.items() if value is not None})
        for turn in row["prompt"]
    )
    for sample, texts in enumerate(zip(row["responses"], other["responses"], strict=True)):
        if texts[0] != texts[1]:
            answers = tuple((Message("assistant", text),) for text in texts)
            origin = f"prompt {row['number'] + 1}"
            yield _Pair(JudgedRow(prompt=prompt, responses=answers, origin=origin), (*place, sample))


def _in_both_orders(judge: Judge, pairs: Sequence[_Pair]) -> list[tuple[float | None, float | None]]:
    """Return the probabilities that the first answer of each pair is better: shown first, then second."""
    verdicts = list(judge.verdicts([pair.row for pair in pairs]))
    # A judge that sees both orders by itself needs no second question.
    again = [place for place, verdict in enumerate(verdicts) if verdict.by_order is None]
    second = dict(zip(again, judge.verdicts([pairs[place].swapped() for place in again]), strict=True))
    found = []
    for place, verdict in enumerate(verdicts):
        if verdict.by_order is not None:
            there, back = (matrix[0][1] for matrix in verdict.by_order)
        else:
            there, back = _probability(verdict, 0, 1), _probability(second[place], 1, 0)
        found.append((there, back))
    return found


def _probability(verdict: Verdict, better: int, worse: int) -> float | None:
    assert verdict.probabilities is not None, "the judge compares"
    return verdict.probabilities[better][worse]
