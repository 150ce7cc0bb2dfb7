"""What has been done: one readable file, replaced atomically after each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, DataError, first_line
from pl_prefopt.files import atomic_write
from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.plan import EVALUATION, Stage

FILE = "rounds.json"
_MAY_CHANGE = ("rounds", "evaluate")
"""Settings of which a change leaves the training as it is."""
_WHERE_IT_RUNS = ("out", "engine", "batch_size")
"""Settings that stages to come may have others of, along with ``--rerun``."""
_FIRST_READ = {
    "judge": "label",
    "select": "select",
    "replay": "select",
    "fit": "fit",
    "start": "fit",
    "references": "fit",
    "average": "average",
    "momentum": "extrapolate",
    "sample_initial": "sample_initial",
}
"""The first stage of a round that reads a setting; ``sample`` for all others."""
_OF_ALL_ROUNDS = {
    "policy": Stage(0, "held_out"),
    "split_prompts": Stage(1, "sample"),
    "rounds": Stage(1, "sample"),  # of split prompts
}
"""Settings that can't change between rounds, with the first stage that reads them."""
_MERGED = ("average", "extrapolate")
"""Stages whose result nothing reads where the settings are without them."""
LIMITS = "limits"
"""What the configuration of ``fit`` says about how prompts are cut and rendered, as one setting."""


class State:
    """The finished stages of rounds, and the settings that they were run with.

    Args:
        out: the folder of the rounds.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.settings: Mapping[str, Any] = {}
        self.done: dict[str, dict[str, Any]] = {}
        self.evaluation: Mapping[str, Any] | None = None
        if self.path.is_file():
            try:
                held = json.loads(self.path.read_text(encoding="utf-8"))
                self.settings, self.done = held["settings"], held["done"]
                self.evaluation = held.get("evaluation", _evaluation(self.settings))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"expected the state of rounds in {self.path}, got: {first_line(error)}; restore the "
                    "file, or set `out` to another folder."
                ) from error

    def accept(
        self,
        settings: Mapping[str, Any],
        *,
        rerun: Stage | None,
        stages: Sequence[Stage] = (),
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the settings are those of the finished stages, and keep them.

        Args:
            settings: the settings as text, numbers, lists and mappings.
            rerun: the stage that is run again with all after it, which other settings may be for.
            stages: all stages that the settings have.
            limits: how the configuration of ``fit`` cuts and renders prompts, which also samples have.

        Raises:
            ConfigError: if they differ, a stage that is kept has read a setting that is another now, or
                answers were evaluated in another way than later ones would be.
        """
        held = dict(self.settings)
        now = dict(settings)
        if LIMITS in held:  # earlier versions kept none
            now[LIMITS] = dict(limits or {})
        for name in {**now, **held} if self.done else ():
            changed = held.get(name) != now.get(name)
            if changed and (name not in _MAY_CHANGE or _parts_change(name, settings)):
                self._accept_change(name, now, rerun, stages)
        self._accept_evaluation(_evaluation(settings), rerun)
        self.settings = {**settings, LIMITS: dict(limits or {})}
        self._write()

    def _accept_change(
        self, name: str, settings: Mapping[str, Any], rerun: Stage | None, stages: Sequence[Stage]
    ) -> None:
        how = f"{self.settings.get(name)}, and now {settings.get(name)}"
        if rerun is None:
            raise ConfigError(
                f"{self.path.parent} has rounds with another `{name}` ({how}): set `out` to another folder, "
                f"or add `--rerun STAGE` to run a stage and what follows it again."
            )
        if name in _WHERE_IT_RUNS:
            return
        reader = self._first_reader(name, settings, max(1, rerun.number))
        if reader.name in _MERGED and reader not in stages:
            return
        first = next((stage for stage in stages if stage.order >= reader.order), reader)
        if any(first.order <= Stage.of(one).order < rerun.order for one in self.done):
            raise ConfigError(
                f"{self.path.parent} keeps stages that have read another `{name}` ({how}): add "
                f"`--rerun {first}` in place of `--rerun {rerun}`."
            )

    def _first_reader(self, name: str, settings: Mapping[str, Any], number: int) -> Stage:
        """Return the first stage to run again where a setting changes from round ``number`` on."""
        if name == "judge" and _keeps_state(settings.get(name)):
            # Its samples need log-probs under the initial policy, which those for other judges lack.
            return Stage(1, "label" if _keeps_state(self.settings.get(name)) else "sample")
        if name == LIMITS:
            evaluated = any(Stage.of(one).name in EVALUATION for one in self.done)
            return Stage(0, "held_out") if evaluated else Stage(number, "sample")
        return _OF_ALL_ROUNDS.get(name) or Stage(number, _FIRST_READ.get(name, "sample"))

    def _accept_evaluation(self, now: Mapping[str, Any] | None, rerun: Stage | None) -> None:
        done = map(Stage.of, self.done)
        kept = any(one.name in EVALUATION and (rerun is None or one.order < rerun.order) for one in done)
        if not kept:
            self.evaluation = now
        elif now not in (None, self.evaluation):
            raise ConfigError(
                f"{self.path.parent} has answers that were evaluated by {self.evaluation}, and now "
                f"`evaluate` and `judge` say {now}; gains between rounds would be differences of two "
                "evaluations. Set `evaluate` (with its `judge`) to the earlier one, set `out` to another "
                "folder, or add `--rerun 0/held_out` to run everything again."
            )

    def finish(self, stage: Stage, *, seconds: float) -> None:
        """Note that a stage is done."""
        self.done[str(stage)] = {"seconds": round(seconds, 1), "exit_status": 0}
        self._write()

    def forget_from(self, first: Stage) -> None:
        """Note that a stage and all after it have to be run again."""
        self.done = {text: told for text, told in self.done.items() if Stage.of(text).order < first.order}
        self._write()

    def _write(self) -> None:
        with atomic_write(self.path) as draft:
            content = {"settings": self.settings, "evaluation": self.evaluation, "done": self.done}
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parts_change(name: str, settings: Mapping[str, Any]) -> bool:
    """Tell whether a change of a setting gives each round another part of the prompts."""
    return name == "rounds" and bool(settings.get("split_prompts"))


def _keeps_state(judge: Any) -> bool:
    """Tell whether a judge keeps state from one round to the next."""
    named = judge.get("class_path") if isinstance(judge, Mapping) else judge
    return str(named).rpartition(".")[2] == ConstrainedScores.__name__


def _evaluation(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how answers are evaluated: without a judge of its own, by that of the training rows."""
    own = settings.get("evaluate")
    return own and {**own, "judge": own.get("judge") or settings.get("judge")}
