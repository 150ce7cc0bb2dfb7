"""The entry point: dispatches to a command before anything heavy is imported."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

from pl_prefopt.cli.class_sources import forget_modules
from pl_prefopt.cli.config_diagnostics import check_command
from pl_prefopt.cli.config_files import with_paths
from pl_prefopt.cli.failures import failure_behind
from pl_prefopt.cli.option_diagnostics import check_options
from pl_prefopt.cli.plugins import forget_plugins
from pl_prefopt.errors import StoppedError, suggest

_COMMANDS = {
    "init": "write a commented configuration for a method, rows and hardware",
    "fit": "train a policy on preference data",
    "validate": "evaluate a policy on the validation rows",
    "test": "evaluate a policy on the test rows",
    "predict": "write each response's log-prob, reward and rank",
    "data": "show how the rows of files are read, and their tokens",
    "label": "write a judge's scores or preferences for the rows of a file",
    "plan": "estimate the memory of a run, without loading a model",
    "precompute": "score the rows with every reference, without training",
    "export": "write a trained policy as a PEFT folder or a merged model",
    "adapt": "fit a trained reward model to new users or a context, from a few pairs",
    "transform": "write rows that transforms have cleaned, labelled or multiplied",
    "bench": "score a judge or a reward model on a public benchmark",
    "sample": "sample responses of a policy to prompts",
    "rounds": "sample, label, select, train and evaluate, round after round",
    "merge": "add or interpolate trained policies",
    "sweep": "search settings of `fit`, with all trials in one table",
    "report": "write one HTML page that compares runs",
    "configs": "list the configurations that come with prefopt, or print one",
    "list": "list objectives, metrics, references, sources or judges, including plug-ins",
}

# Commands that are not based on LightningCLI, and their functions.
_OWN = {
    "configs": "configs.configs",
    "init": "init.init",
    "list": "listing.list_known",
    "data": "data.data",
    "label": "label.label",
    "transform": "transform.transform",
    "bench": "bench.bench",
    "export": "export.export",
    "adapt": "adapt.adapt",
    "sample": "sample.sample",
    "rounds": "rounds.rounds",
    "merge": "merge.merge",
    "sweep": "sweep.sweep",
    "report": "report.report",
}
_WITHOUT_TRANSFORMERS = ("configs", "list")

_HELP = """prefopt {version}: preference optimisation of language models

usage: prefopt <command> [-c NAME or FILE.yaml ...] [--key.sub value ...]

{commands}

Settings come from YAML files and the command line; later ones override earlier ones:
  prefopt fit -c base -c methods/dpo -c hardware/cpu \\
    --data.train preferences.jsonl --policy HuggingFaceTB/SmolLM2-135M-Instruct --lr 1e-5
`prefopt <command> --help` lists a command's settings; `--print_config` shows them resolved."""

_TRAINING = """
`prefopt {command}` needs a configuration, a model and rows. Use a complete configuration:
  prefopt {command} -c ready/demo
or combine files for method and hardware with your rows and model:
  prefopt {command} -c base -c methods/dpo -c hardware/cpu \\
    --data.train preferences.jsonl --policy HuggingFaceTB/SmolLM2-135M-Instruct"""
_TRAINED = """
`prefopt {command}` needs a run of `prefopt fit` and its checkpoint:
  prefopt {command} -c runs/NAME/config.yaml --ckpt_path best{rows}
`prefopt {command} --help` lists the settings."""
_ROWS = {"validate": "", "test": " --data.test ROWS.jsonl", "predict": " --data.predict ROWS.jsonl"}


def main() -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 invalid input, 143 stopped by a signal."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(version("pl-prefopt"))
        return
    if arguments[0] not in _COMMANDS:
        hint = suggest(arguments[0], _COMMANDS) or "."
        _fail(f"there is no command '{arguments[0]}'{hint} Try `prefopt --help`.")
    try:
        _run(arguments)
    except (Exception, StoppedError) as error:
        failure = failure_behind(error)
        if failure is None:
            raise
        _fail(str(failure), failure.exit_status)


def _run(arguments: list[str]) -> None:
    forget_modules()
    forget_plugins()
    command, words = arguments[0], arguments[1:]
    if command not in _WITHOUT_TRANSFORMERS:
        from pl_prefopt.cli.log_filters import install_log_filters

        install_log_filters()
    if command in _OWN:
        if command in ("export", "report"):
            check_options(command, words)
        module, _, function = _OWN[command].partition(".")
        getattr(importlib.import_module(f"pl_prefopt.cli.{module}"), function)(words)
        return
    if not words:
        _fail(_needs(command))
    arguments = with_paths(arguments)
    check_command(command, arguments[1:])
    sys.argv[1:] = arguments
    if command == "plan":
        from pl_prefopt.cli.plan import plan

        plan()
        return
    from pl_prefopt.cli.app import PrefOptCLI

    PrefOptCLI()


def _help() -> str:
    commands = "\n".join(f"  {name:<10} {what}" for name, what in _COMMANDS.items())
    return _HELP.format(version=version("pl-prefopt"), commands=commands)


def _needs(command: str) -> str:
    text = _TRAINED if command in _ROWS else _TRAINING
    return text.format(command=command, rows=_ROWS.get(command)).strip()


def _fail(message: str, status: int = 2) -> None:
    print(f"prefopt: {message}", file=sys.stderr)
    sys.exit(status)
