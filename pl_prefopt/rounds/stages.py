"""The stages that are ours: judging samples, selecting rows, measuring policies."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pl_prefopt.data.formats import to_prompt
from pl_prefopt.errors import RunError
from pl_prefopt.files import atomic_write
from pl_prefopt.generation import SETTINGS_FILE, ShardWriter, read_shards
from pl_prefopt.generation.base import sample_seed
from pl_prefopt.judges import Judge, JudgedRow, Verdict, pairs
from pl_prefopt.metrics import order_effects
from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.judging import BY_ORDER, compare_answers, judge_of, verdicts_writer
from pl_prefopt.rounds.plan import Rounds, Stage, evaluating_judge
from pl_prefopt.rounds.selection import Candidate, Candidates
from pl_prefopt.rows import Message, PreferenceRow

MARK = "reference_sample"
"""The column that marks samples of the initial policy, as XPO reads it."""
SUMMARY = "summary.json"
_ROWS_PER_SHARD = 1000
_SHARE = 2**48


def judge_samples(judge: Judge, folders: Sequence[Path], out: Path, *, gold: bool) -> None:
    """Judge the samples of all ``folders`` prompt by prompt; goes on after the last judged batch.

    Args:
        judge: the judge.
        folders: folders with samples of the same prompts; the responses of a prompt are judged together.
        out: where the judged rows go.
        gold: whether the data's own response is judged with them.

    Raises:
        RunError: if a folder lacks prompts that another one has.
    """
    writer = verdicts_writer(judge, out, rows_per_shard=_ROWS_PER_SHARD)
    rows = itertools.islice(gathered(folders), writer.rows, None)
    invalid = sum(row["invalid"] for row in writer.written())
    with judge:
        while batch := list(itertools.islice(rows, judge.batch_size)):
            asked = [_judged(row, gold=gold) for row in batch]
            verdicts = list(judge.verdicts(asked))
            writer.append([_with_verdict(row, one) for row, one in zip(batch, verdicts, strict=True)])
            invalid += sum(one.invalid for one in verdicts)
            missing = f", {invalid} responses or pairs without a verdict so far" if invalid else ""
            reason = next((f"; {problem}" for one in verdicts for problem in one.problems), "")
            print(f"{writer.rows} prompts are judged{missing}{reason}", flush=True)
    writer.finish()


def gathered(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the prompts with the samples of all folders; those after the first folder are marked.

    Raises:
        RunError: if the folders have other prompts.
    """
    for rows in itertools.zip_longest(*map(read_shards, folders)):
        if None in rows or len({row["number"] for row in rows}) > 1:
            raise RunError(f"expected samples of the same prompts in {' and '.join(map(str, folders))}.")
        first = dict(rows[0])
        for name in ("responses", "log_probs", "reference_log_probs", "finish_reasons"):
            first[name] = [value for row in rows for value in row[name]]
        first[MARK] = [place > 0 for place, row in enumerate(rows) for _ in row["responses"]]
        yield {name: value for name, value in first.items() if name not in _TOKENS}


_TOKENS = ("token_ids", "token_log_probs", "seeds", "retokenised", "engine_log_probs")


def _judged(row: Mapping[str, Any], *, gold: bool) -> JudgedRow:
    prompt: PreferenceRow = to_prompt(
        {name: row[name] for name in ("prompt", "tools", "chat_template_kwargs") if name in row}
    )
    responses: list[tuple[Message, ...]] = [(Message("assistant", text),) for text in row["responses"]]
    if gold and row.get("gold"):
        responses.append(tuple(Message.of(_known(turn)) for turn in row["gold"]))
    return JudgedRow(
        prompt=prompt.prompt,
        responses=tuple(responses),
        template_args=prompt.template_args,
        columns={name: value for name, value in row.items() if name not in _NOT_COLUMNS},
        origin=f"prompt {row['number'] + 1}",
    )


_NOT_COLUMNS = ("prompt", "responses", "gold", "tools", "chat_template_kwargs", MARK)


def _known(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if value is not None}


def _with_verdict(row: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    own = len(row["responses"])
    matrix = verdict.probabilities
    return {
        **row,
        "scores": list(verdict.scores[:own]),
        "gold_score": verdict.scores[own] if len(verdict.scores) > own else None,
        "probabilities": None if matrix is None else [list(line) for line in matrix],
        "invalid": verdict.invalid,
        "problems": list(verdict.problems),
        **({"parts": [list(scores) for scores in verdict.parts]} if verdict.parts else {}),
        **_orders(verdict),
    }


def _orders(verdict: Verdict) -> dict[str, Any]:
    """Return the column with both orders of each pair, of a judge that sees both."""
    if verdict.by_order is None:
        return {}
    first, second = verdict.by_order
    return {_ORDERS: [[first[i][j], second[i][j]] for i, j in pairs(len(first))]}


_ORDERS = "probabilities_by_order"


def select_rows(settings: Rounds, number: int) -> dict[str, Any]:
    """Write the rows that round ``number`` trains on; return counts.

    Raises:
        RunError: if there are none.
    """
    out = Stage(number, "select").folder(Path(settings.out))
    writer = ShardWriter(out / "rows", rows_per_shard=_ROWS_PER_SHARD)
    counts: Counter[str] = Counter()
    _append_all(writer, _selected(settings, number, counts))
    gold, unscored = counts.pop("gold", 0), counts.pop("gold_unscored", 0)
    if gold and unscored == gold:
        raise RunError(
            f"{type(settings.select).__name__} needs judged responses of the data, but none of the {gold} in "
            f"round {number} has a score: if another `select` was set when samples were judged, add "
            f"`--rerun {number}/label`."
        )
    if not counts["rows"]:
        raise RunError(
            f"round {number} has nothing to train on: none of its {counts['prompts']} prompts gives a row by "
            f"{type(settings.select).__name__} ({counts['empty']} of {counts['samples']} samples are empty, "
            f"{counts['unscored']} have no score, and the judge ties or the margins are too small for the "
            "rest). Nothing was trained; sample more, or change `select` or the judge."
        )
    _append_all(writer, _replayed(settings, number, counts))
    writer.finish()
    return dict(counts)


def _append_all(writer: ShardWriter, rows: Iterator[dict[str, Any]]) -> None:
    """Append rows, many at a time, since each time waits for the disk."""
    while batch := list(itertools.islice(rows, _ROWS_PER_SHARD)):
        writer.append(batch)


def _selected(settings: Rounds, number: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a round's own samples, and count."""
    for row in judged_rows(settings, number):
        counts["prompts"] += 1
        found = settings.select(_candidates(settings, row, counts).usable(), number)
        counts["prompts_without_rows"] += not found
        counts["rows"] += len(found)
        given = {name: row[name] for name in ("prompt", "tools", "chat_template_kwargs") if row.get(name)}
        yield from (
            {**given, **_with_messages(one), "number": row["number"], "round": number} for one in found
        )


def _with_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose responses are messages, as the data's own are: a Parquet column has one type."""
    made = dict(row)
    for name in ("chosen", "rejected", "completion"):
        if name in made:
            made[name] = _messages(made[name])
    if "responses" in made:
        made["responses"] = [_messages(one) for one in made["responses"]]
    return made


def _messages(response: Any) -> Any:
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


def judged_rows(settings: Rounds, number: int) -> Iterator[dict[str, Any]]:
    """Yield the judged samples of a round; without a judge, the samples."""
    out = Path(settings.out)
    if settings.judge is not None:
        return read_shards(Stage(number, "label").folder(out))
    return gathered(sample_folders(settings, number))


def sample_folders(settings: Rounds, number: int) -> list[Path]:
    """Return the folders of a round's samples."""
    names = ["sample", "sample_initial"] if settings.sample_initial else ["sample"]
    return [Stage(number, name).folder(Path(settings.out)) for name in names]


def _candidates(settings: Rounds, row: Mapping[str, Any], counts: Counter[str]) -> Candidates:
    scores = row.get("scores") or [None] * len(row["responses"])
    judged = settings.judge is not None
    counts["samples"] += len(scores)
    counts["empty"] += sum(not text.strip() for text in row["responses"])
    counts["unscored"] += judged * sum(score is None for score in scores)
    members = []
    for place, (text, score) in enumerate(zip(row["responses"], scores, strict=True)):
        columns = {"log_prob": row["log_probs"][place]} if row["log_probs"][place] is not None else {}
        if settings.sample_initial:
            columns[MARK] = row[MARK][place]
        members.append(
            # Without a judge there is nothing to rank by; 0 says that the response may be used.
            Candidate(response=text, score=score if judged else 0.0, columns=columns)
        )
    if settings.select.wants_gold and row.get("gold"):
        counts["gold"] += 1
        counts["gold_unscored"] += judged and row.get("gold_score") is None
        turns = [_known(turn) for turn in row["gold"]]
        members.append(Candidate(response=turns, score=row.get("gold_score"), own=False))
    matrix = row.get("probabilities")
    if matrix is not None:
        matrix = [line[: len(members)] for line in matrix[: len(members)]]
    return Candidates(tuple(members), matrix)


def _replayed(settings: Rounds, number: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield rows of earlier rounds, each with probability ``replay`` by its own number, and count them."""
    counts["replayed"] = 0
    for earlier in range(1, number) if settings.replay else ():
        folder = Stage(earlier, "select").folder(Path(settings.out)) / "rows"
        for place, row in enumerate(read_shards(folder)):
            if row["round"] != earlier:
                continue  # replayed itself
            if sample_seed(settings.sampling.seed + number, earlier, place) < settings.replay * _SHARE:
                counts["replayed"] += 1
                yield row


def measure(settings: Rounds, number: int) -> dict[str, Any]:
    """Return what is measured of the policy after round ``number``, from its held-out answers."""
    rows = list(_held_out(settings, number))
    scores = [_mean(row.get("scores")) for row in rows]
    known = [score for score in scores if score is not None]
    texts = [text for row in rows for text in row["responses"]]
    found: dict[str, Any] = {
        "prompts": len(rows),
        "score": statistics.fmean(known) if known else None,
        "score_half_width": _half_width(known),
        "words": statistics.fmean(len(text.split()) for text in texts),
        "distinct_bigrams": distinct_bigrams(texts),
        "refusals": statistics.fmean(map(is_refusal, texts)),
        "empty": statistics.fmean(not text.strip() for text in texts),
        "kl": _kl(rows),
    }
    for name, other in (("first", 0), ("previous", number - 1)):
        if number and known:
            before = [_mean(row.get("scores")) for row in _held_out(settings, other)]
            found[f"win_rate_{name}"] = win_rate(scores, before)
            gains = [a - b for a, b in zip(scores, before, strict=True) if a is not None and b is not None]
            found[f"gain_{name}"] = statistics.fmean(gains) if gains else None
            found[f"gain_{name}_half_width"] = _half_width(gains)
    if number and evaluating_judge(settings, "probabilities") is not None:
        found |= _win_rates(settings, number)
    if number:
        found["training"] = _training(settings, number)
    return found


def check_judge(judge: Judge, settings: Rounds, stage: Stage) -> None:
    """Refuse a judge of held-out answers whose model or code has changed since the first answers were judged.

    Gains between rounds would be differences of two judges.

    Raises:
        RunError: if it has.
    """
    first = Stage(int(stage.name == "compare"), stage.name)
    held = judge_of(first.folder(Path(settings.out)))
    if held is not None and first != stage and held["fingerprint"] != judge.fingerprint():
        raise RunError(
            f"the answers of round {first.number} were judged by {held['judge']}, whose model or code has "
            "changed since: gains between rounds would be differences of two judges. Restore it, or set "
            "`out` to another folder."
        )


def compare(settings: Rounds, number: int) -> None:
    """Compare the held-out answers of a round with those of the first and the previous policy."""
    judge = evaluating_judge(settings, "probabilities")
    assert judge is not None
    out = Path(settings.out)
    check_judge(judge, settings, Stage(number, "compare"))
    ours, first, previous = (Stage(one, "held_out").folder(out) for one in (number, 0, number - 1))
    opponents = {"first": first} if number == 1 else {"first": first, "previous": previous}
    compare_answers(judge, ours, opponents, Stage(number, "compare").folder(out))


def _win_rates(settings: Rounds, number: int) -> dict[str, Any]:
    """Return the mean probabilities that our answers are better, with the share that the judge left open."""
    rows = list(read_shards(Stage(number, "compare").folder(Path(settings.out))))
    found: dict[str, Any] = {}
    for name in ("first", "previous"):
        given = [row.get(name, row["first"]) for row in rows]  # in round 1 they are one policy
        means = [mean for values in given if (mean := _mean(values)) is not None]
        found[f"win_rate_{name}"] = statistics.fmean(means) if means else None
        found[f"win_rate_{name}_half_width"] = _half_width(means)
        values = [value for own in given for value in own]
        found[f"win_rate_{name}_invalid"] = statistics.fmean(value is None for value in values)
    orders = _Orders()
    for row in rows:
        for name in ("first", "previous"):
            orders.add(row.get(f"{name}{BY_ORDER}"))
    return found | orders.summary()


class _Orders:
    """Counts what the order of two responses does to a judge, row by row."""

    def __init__(self) -> None:
        self._sums, self._pairs = np.zeros(3), 0

    def add(self, orders: Sequence[Sequence[float | None]] | None) -> None:
        """Count the pairs of a row: the probabilities of either order, or ``None``."""
        if orders:
            effects = order_effects(*zip(*orders, strict=True))
            effects = effects[~np.isnan(effects[:, 0])]
            self._sums, self._pairs = self._sums + effects.sum(axis=0), self._pairs + len(effects)

    def summary(self) -> dict[str, Any]:
        """Return the shares; nothing without a pair that was judged in both orders."""
        if not self._pairs:
            return {}
        shares = (self._sums / self._pairs).tolist()
        names = ("first_wins", "same_verdict", "flipped")
        return {"position_bias": {"pairs": self._pairs, **dict(zip(names, shares, strict=True))}}


def _held_out(settings: Rounds, number: int) -> Iterator[dict[str, Any]]:
    name = "held_out" if evaluating_judge(settings, "scores") is None else "judge"
    return read_shards(Stage(number, name).folder(Path(settings.out)))


def _training(settings: Rounds, number: int) -> dict[str, Any]:
    """Return the selection's counts, and the mean score of the round's own samples."""
    counts = json.loads((Stage(number, "select").folder(Path(settings.out)) / SUMMARY).read_text("utf-8"))
    count, total = 0, 0.0
    orders = _Orders()
    for row in judged_rows(settings, number):
        orders.add(row.get(_ORDERS))
        scores = row.get("scores") or [None] * len(row[MARK])
        own = zip(scores, row[MARK], strict=True)
        known = [score for score, initial in own if score is not None and not initial]
        count, total = count + len(known), total + math.fsum(known)
    sampled = json.loads((sample_folders(settings, number)[0] / SETTINGS_FILE).read_text("utf-8"))
    return {
        **counts,
        **_rewards(settings, number),
        **orders.summary(),
        "share_without_rows": counts["prompts_without_rows"] / counts["prompts"],
        "sample_score": total / count if count else None,
        "sampling": sampled["measured"],
    }


def _rewards(settings: Rounds, number: int) -> dict[str, Any]:
    """Return what the round said about each of constrained rewards; nothing with another judge."""
    if not isinstance(settings.judge, ConstrainedScores):
        return {}
    stepped = Stage(number, "multipliers").folder(Path(settings.out)) / SUMMARY
    return {"rewards": json.loads(stepped.read_text("utf-8"))["rewards"]}


def win_rate(scores: Sequence[float | None], others: Sequence[float | None]) -> float | None:
    """Return how often a score is above the other one, prompt by prompt; ties count as 0.5.

    Examples:
        >>> win_rate([3.0, 1.0, None, 2.0], [1.0, 1.0, 5.0, 4.0])
        0.5
    """
    pairs = [(a, b) for a, b in zip(scores, others, strict=True) if a is not None and b is not None]
    return statistics.fmean((a > b) + 0.5 * (a == b) for a, b in pairs) if pairs else None


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Return the share of different ones among the pairs of neighbouring words of all texts.

    Examples:
        >>> distinct_bigrams(["a b a b", "b a"])
        0.5
    """
    pairs = [pair for text in texts for pair in itertools.pairwise(text.lower().split())]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def is_refusal(text: str) -> bool:
    """Return whether a text begins as refusals do.

    Examples:
        >>> is_refusal("I'm sorry, but I can't help."), is_refusal("Sorry to hear that. First, rest.")
        (True, False)
    """
    begin = text.strip().lower().replace("’", "'")
    return begin.startswith(_REFUSALS)


_REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "i can't",
    "i cannot",
    "i'm unable",
    "i am unable",
    "i won't",
    "as an ai",
    "sorry, but",
    "sorry, i",
)


def _kl(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean of log π(y) − log π_initial(y) over samples y of π, which estimates their KL."""
    gaps = [
        ours - first
        for row in rows
        for ours, first in zip(row["log_probs"], row.get("reference_log_probs") or (), strict=False)
        if ours is not None and first is not None
    ]
    return statistics.fmean(gaps) if gaps else None


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return statistics.fmean(known) if known else None


def _half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean over prompts, by the normal approximation."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def write_summary(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a stage has found."""
    with atomic_write(folder / SUMMARY) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
