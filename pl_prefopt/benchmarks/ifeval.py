"""IFEval (Zhou et al., arXiv 2311.07911): verifiable instructions, whose rules are those of lm-eval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pl_prefopt.benchmarks.estimates import estimate
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.data.file_readers import Record
from pl_prefopt.errors import ConfigError, DataError, listed, printable

HUB = "google/IFEval"
PROMPTS = 541
COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
_LEVELS = ("strict", "loose")


def score(tasks: Sequence[Mapping[str, Any]], responses: Mapping[str, str]) -> Result:
    """Return the shares of prompts and of instructions that are followed, strictly and loosely.

    Args:
        tasks: rows of IFEval's data.
        responses: a response by prompt.

    Raises:
        ConfigError: without lm-eval.
        DataError: if a prompt has no response.
    """
    check = _checker()
    kept: dict[str, list[list[bool]]] = {level: [] for level in _LEVELS}
    for task in tasks:
        prompt = task["prompt"]
        if prompt not in responses:
            raise DataError(
                f"expected a response to each prompt of IFEval, got none to '{printable(prompt)}'; add one "
                "to the file of --responses."
            )
        found = check(task, [responses[prompt]])
        for level in _LEVELS:
            kept[level].append([bool(one) for one in found[f"inst_level_{level}_acc"]])
    prompts = {level: estimate([all(one) for one in kept[level]], seed=61) for level in _LEVELS}
    owners = [number for number, row in enumerate(kept["strict"]) for _ in row]
    single = {
        level: estimate([one for row in kept[level] for one in row], seed=62, prompts=owners)
        for level in _LEVELS
    }
    return Result(
        title="IFEval",
        overall=prompts["strict"],
        tables={"prompts": prompts, "instructions": single},
        counts={"prompts": len(tasks), "instructions": single["strict"].count},
    )


def read_tasks(records: Iterable[Record], *, partial: bool = False) -> list[dict[str, Any]]:
    """Return the rows of IFEval's ``input_data.jsonl`` or hub data set."""
    tasks = [_fields(record, COLUMNS) for record in records]
    if not tasks:
        raise DataError("expected prompts of IFEval, got none; check --data.")
    if len(tasks) != PROMPTS and not partial:
        raise DataError(
            f"expected the {PROMPTS} prompts of IFEval, got {len(tasks)}; type --partial to score these."
        )
    return tasks


def read_responses(records: Iterable[Record]) -> dict[str, str]:
    """Return a response by prompt, from rows with ``prompt`` and ``response``."""
    found: dict[str, str] = {}
    for record in records:
        fields = _fields(record, ("prompt", "response"))
        if fields["prompt"] in found:
            raise DataError(f"{record.origin}: there is already a response to this prompt; remove one.")
        found[fields["prompt"]] = fields["response"]
    return found


def _fields(record: Record, columns: Sequence[str]) -> dict[str, Any]:
    if record.problem:
        raise DataError(f"{record.origin}: {record.problem}; fix the row.")
    missing = [name for name in columns if record.fields.get(name) is None]
    if missing:
        raise DataError(
            f"{record.origin}: the column '{missing[0]}' is missing; expected {', '.join(columns)}, got "
            f"{listed(record.fields)}."
        )
    return {name: record.fields[name] for name in columns}


def _checker() -> Any:
    try:
        from lm_eval.tasks.ifeval.utils import process_results
    except ImportError as error:
        raise ConfigError(
            f"IFEval's rules need lm-eval, which can't be imported ({error}): "
            "`pip install 'pl-prefopt[ifeval]'`."
        ) from error
    return process_results
