"""`prefopt rounds`: runs the stages of rounds one after the other, each in a process of its own."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from pl_prefopt.cli.chosen_policy import ChosenPolicy
from pl_prefopt.cli.config_files import find
from pl_prefopt.cli.plain_parser import PlainParser, made_from
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.cli.sample import engine_of
from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.files import atomic_write, discard
from pl_prefopt.judges import Judge
from pl_prefopt.processes import last_line, require_permission, run_forked, run_logged
from pl_prefopt.rounds.constrained import ConstrainedScores
from pl_prefopt.rounds.judging import OwnGrades
from pl_prefopt.rounds.multipliers import multipliers_of, updated_multipliers
from pl_prefopt.rounds.page import write_page
from pl_prefopt.rounds.plan import (
    Policies,
    Rounds,
    Stage,
    all_from,
    evaluating_judge,
    fit_settings,
    merged_settings,
    stage_named,
    stages_of,
)
from pl_prefopt.rounds.stages import (
    check_judge,
    compare,
    judge_samples,
    measure,
    sample_folders,
    select_rows,
    write_summary,
)
from pl_prefopt.rounds.state import State
from pl_prefopt.yaml_files import read_yaml

_OF_STAGES = (
    "pl_prefopt.cli.app",
    "pl_prefopt.cli.export",
    "pl_prefopt.cli.sample",
    "peft",
    "torch._inductor.compile_fx",  # which PEFT imports when it builds a model
)
"""What stages import, which each fork would do again."""
_RESUMABLE = ("sample", "sample_initial", "label", "fit", "held_out", "judge", "compare")
"""Stages that go on where they were stopped; others are short, and start again."""
_BUSY = "Another process is running the rounds in {}: wait until it ends, or stop it."
_LIMITS = ("template", "template_arguments", "max_prompt_length", "tokenizer")
_SUMMARISED = {"multipliers": updated_multipliers, "select": select_rows, "measure": measure}
"""Stages whose result is a summary."""
_ENGINE_FAILED = "Start the same command again to go on there"


def rounds(arguments: list[str]) -> None:
    """Run ``prefopt rounds`` with the given command-line arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    config = find(options.config)
    raw = read_yaml(Path(config))
    settings = read_rounds(config, raw)
    if options.only is not None:
        stage = stage_named(options.only, settings)
        _run_ours(settings, stage, allow_commands=options.allow_commands)
        return
    if settings.engine.command is not None:
        require_permission(settings.engine.command, allowed=options.allow_commands, what="`engine.command`")
    out = Path(settings.out)
    with alone_in(out, busy=_BUSY.format(out)):
        state = State(out)
        rerun = None if options.rerun is None else stage_named(options.rerun, settings)
        limits = _limits(settings)
        state.accept(raw, rerun=rerun, stages=list(stages_of(settings)), limits=limits)
        if rerun is not None:
            _forget_from(state, settings, rerun)
        for stage in stages_of(settings):
            if str(stage) not in state.done:
                _run(settings, stage, config, state, allow_commands=options.allow_commands)
    print(f"The {settings.rounds} rounds are in {out}.")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="prefopt rounds",
        description="Sample, judge, select, train and evaluate, round after round; resumes where it stopped.",
    )
    parser.add_argument("-c", "--config", type=str, required=True, help="The rounds: a YAML file.")
    parser.add_argument(
        "--rerun", type=str | None, default=None, help="Run a stage, such as 2/fit, and all after it again."
    )
    parser.add_argument(
        "--allow_commands", type=bool, default=False, help="Whether engine.command may be run."
    )
    parser.add_argument("--only", type=str | None, default=None, help="Run one stage in this process.")
    return parser


def read_rounds(config: str, raw: Any) -> Rounds:
    """Return the settings in a file.

    Args:
        config: the file's name, for messages.
        raw: its content.

    Raises:
        ConfigError: if they are wrong.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{config}: expected the settings of rounds, got {type(raw).__name__}.")
    given = copy.deepcopy(dict(raw))
    # `prefopt fit` reads these, and knows which classes they may name.
    of_fit = given["fit"].pop("settings", None) if isinstance(given.get("fit"), dict) else None
    try:
        settings = made_from(Rounds, "rounds", given)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    if not isinstance(of_fit, dict | None):
        raise ConfigError(f"{config}: expected `fit.settings` to be a section of settings, got {of_fit!r}.")
    return replace(settings, fit=replace(settings.fit, settings=of_fit or {}))


def _forget_from(state: State, settings: Rounds, first: Stage) -> None:
    """Remove what a stage and all after it have left, also under settings that had other stages."""
    out = Path(settings.out)
    state.forget_from(first)
    numbers = (folder.name.removeprefix("round-") for folder in out.glob("round-*"))
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    for stage in all_from(first, last):
        discard(stage.folder(out))


def _run(settings: Rounds, stage: Stage, config: str, state: State, *, allow_commands: bool) -> None:
    """Run a stage in a process of its own, and note that it is done.

    Raises:
        RunError: if it fails.
    """
    out = Path(settings.out)
    if stage.name not in _RESUMABLE:
        discard(stage.folder(out))
    log = stage.log(out)
    print(f"{stage} ... ", end="", flush=True)
    started = time.monotonic()
    words = _command(settings, stage, config, allow_commands=allow_commands)
    status = _run_process(words, log)
    if status != 0:
        print("failed", flush=True)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        said = last_line(log)
        raise RunError(
            f"stage {stage} ended with {how}{f': {said}' if said else '.'} Its log is {log}. "
            f"{_ENGINE_FAILED}."
        )
    seconds = time.monotonic() - started
    state.finish(stage, seconds=seconds)
    print(f"{seconds:.0f} s", flush=True)


def _run_process(words: list[str], log: Path) -> int:
    """Run a command of ``prefopt`` in a process of its own and return its exit status.

    Importing takes longer than a short stage, so the process is a fork where that is safe: on Linux, where no
    accelerator is.
    """
    if sys.platform != "linux" or torch.accelerator.is_available():
        return run_logged([sys.executable, "-m", "pl_prefopt", *words], log)
    for name in _OF_STAGES:
        with suppress(ImportError):  # the stage that needs it will say so
            importlib.import_module(name)
    return run_forked(lambda: _be(words), log)


def _be(words: list[str]) -> None:
    from pl_prefopt.cli.main import main

    sys.argv = ["prefopt", *words]
    # Lightning's launcher starts other ranks by the main module, whatever this process was started by.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("pl_prefopt.__main__")
    main()


def _command(settings: Rounds, stage: Stage, config: str, *, allow_commands: bool) -> list[str]:
    """Return the arguments of ``prefopt`` that run a stage."""
    number, name = stage
    policies, out = Policies(settings), Path(settings.out)
    folder = str(stage.folder(out))
    if name in ("sample", "sample_initial", "held_out"):
        return _sample_command(settings, stage, allow_commands=allow_commands)
    if name == "fit":
        made = merged_settings(settings.fit.settings, fit_settings(settings, number, _composed(settings)))
        file = _write_yaml(out / f"round-{number}" / "fit.yaml", made)
        configs = [word for one in (*settings.fit.config, file) for word in ("-c", one)]
        return ["fit", *configs, "--ckpt_path", "last"]
    if name == "export":
        checkpoint = Stage(number, "fit").folder(out) / "checkpoints" / "last.ckpt"
        return ["export", str(checkpoint), "--out", folder]
    if name in ("average", "extrapolate"):
        now, before = _merged_parts(settings, stage)
        members = {policies.trained(number).argument: now}
        older = Stage(number - 1, "average" if name == "average" else "export").folder(out)
        if number > 1:
            members[str(older)] = before
        weights = [str(weight) for weight in members.values()]
        base = policies.initial().name
        return ["merge", *members, "--weights", f"[{','.join(weights)}]", "--base", base, "--out", folder]
    words = ["rounds", "-c", config, "--only", str(stage)]
    return [*words, "--allow_commands", "true"] if allow_commands else words


def _merged_parts(settings: Rounds, stage: Stage) -> tuple[float, float]:
    """Return the weights of the new policy and of the older one, relative to the initial policy."""
    if stage.name == "extrapolate":
        return 1 + settings.momentum, -settings.momentum
    assert settings.average is not None
    return 1 - settings.average, settings.average


def _sample_command(settings: Rounds, stage: Stage, *, allow_commands: bool) -> list[str]:
    number, name = stage
    policies, out = Policies(settings), Path(settings.out)
    held = settings.evaluate
    sampling, prompts, most = settings.sampling, settings.prompts, settings.max_prompts
    place = policies.sampling(number) if number else policies.initial()
    given: dict[str, Any] = {"batch_size": settings.batch_size, "engine": asdict(settings.engine)}
    if name == "held_out":
        assert held is not None
        sampling, prompts, most = held.sampling, held.prompts, held.max_prompts
        place = policies.trained(number)
        given["reference"] = policies.initial().name
    elif settings.split_prompts:
        given["part"] = f"{number}/{settings.rounds}"
    told = asdict(sampling)
    if name != "held_out":
        told["seed"] += number
    if name == "sample_initial":
        place, told["n"] = policies.initial(), settings.sample_initial
        told["seed"] -= 1_000_003  # other samples than those of the same policy in round 1
    given |= {"sampling": told, "max_prompts": most, **_limits(settings)}
    if name != "held_out":
        given["score"] = settings.log_probs
        if isinstance(settings.judge, ConstrainedScores):
            given["reference"] = policies.initial().name
    file = _write_yaml(out / f"round-{number}" / f"{name}.yaml", given)
    words = ["sample", prompts, "-c", file, "--policy", place.argument, "--out", str(stage.folder(out))]
    return [*words, "--allow_commands", "true"] if allow_commands else words


def _limits(settings: Rounds) -> dict[str, Any]:
    """Return how ``fit`` cuts and renders prompts, from its configuration."""
    data = _composed(settings).get("data") or {}
    return {name: data[name] for name in _LIMITS if data.get(name) is not None}


def _composed(settings: Rounds) -> Mapping[str, Any]:
    """Return the user's configuration of ``fit``: its files, and ``fit.settings`` over them."""
    composed: Mapping[str, Any] = {}
    for name in settings.fit.config:
        composed = merged_settings(composed, read_yaml(Path(find(name))) or {})
    return merged_settings(composed, settings.fit.settings)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> str:
    with atomic_write(path) as draft:
        draft.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(path)


def _run_ours(settings: Rounds, stage: Stage, *, allow_commands: bool) -> None:
    """Run one of the stages that are no other command."""
    number, name = stage
    out = Path(settings.out)
    folder = stage.folder(out)
    if name == "label":
        judge = _training_judge(settings, stage, allow_commands=allow_commands)
        with alone_in(folder, busy=_BUSY.format(folder)):
            gold = settings.select.wants_gold
            judge_samples(judge, sample_folders(settings, number), folder, gold=gold)
    elif name in _SUMMARISED:
        found = _SUMMARISED[name](settings, number)
        write_summary(folder, found)
        print(json.dumps(found))
        if name == "measure":
            print(f"Wrote {write_page(settings)}")
    elif name == "judge":
        scoring = evaluating_judge(settings, "scores")
        assert scoring is not None
        check_judge(scoring, settings, stage)
        with alone_in(folder, busy=_BUSY.format(folder)):
            judge_samples(scoring, [Stage(number, "held_out").folder(out)], folder, gold=False)
    elif name == "compare":
        with alone_in(folder, busy=_BUSY.format(folder)):
            compare(settings, number)
    else:
        raise ConfigError(f"stage {stage} is a command of its own: {stage.log(out)} has its output.")


def _training_judge(settings: Rounds, stage: Stage, *, allow_commands: bool) -> Judge:
    """Return the judge of a round's samples, which may be the policy that wrote them."""
    judge = settings.judge
    assert judge is not None
    if isinstance(judge, ConstrainedScores):
        return judge.by(multipliers_of(settings, stage.number))
    if not isinstance(judge, OwnGrades):
        return judge
    chosen = ChosenPolicy(Policies(settings).sampling(stage.number).argument)
    # A grading prompt that is cut would ask for something else.
    limits = {**_limits(settings), "max_prompt_length": None, "max_response_length": None}
    renderer = chosen.renderer(chosen.limits._replace(**limits))
    folder = stage.folder(Path(settings.out))
    return judge.by(engine_of(chosen, renderer, settings.engine, folder, allowed=allow_commands), renderer)
