"""`prefopt sample`: samples responses of a policy to a file of prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pl_prefopt.cli.chosen_policy import ChosenPolicy, Limits
from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.data import Prompts, Renderer
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.files import without_dots
from pl_prefopt.generation import (
    Engine,
    Format,
    OpenAIServer,
    SampleFolder,
    Sampler,
    Sampling,
    Server,
    TransformersEngine,
)
from pl_prefopt.policies.spec import Dtype
from pl_prefopt.rows import PreferenceRow

_BUSY = "Another process is sampling to {}: wait until it ends, or stop it."
_LOG, _SERVED = ".engine.log", ".served"


def sample(arguments: list[str]) -> None:
    """Run ``prefopt sample`` with the given command-line arguments."""
    settings = _parser().parse_args(arguments)
    out = without_dots(Path(settings.out))
    chosen = ChosenPolicy(settings.policy, dtype=settings.dtype)
    renderer = chosen.renderer(_limits(chosen.limits, settings))
    prompts = Prompts(
        source=settings.prompts,
        columns=settings.columns or {},
        part=_part(settings.part),
        max_prompts=settings.max_prompts,
    )
    sampling = Sampling(**{**vars(settings.sampling), **_shortened(settings)})
    target = SampleFolder(
        folder=out,
        batch_size=settings.batch_size,
        rows_per_shard=settings.rows_per_shard,
        kind=settings.format,
    )
    with tempfile.TemporaryDirectory() as scratch, alone_in(out, busy=_BUSY.format(out)):
        content, count = prompts.open(Path(scratch), checked_prompt(chosen, renderer, sampling))
        server = Server(**vars(settings.engine))
        engine = engine_of(chosen, renderer, server, out, allowed=settings.allow_commands)
        scorer = (lambda: chosen.model) if settings.score else None
        reference = ChosenPolicy(settings.reference, dtype=settings.dtype) if settings.reference else None
        other = None if reference is None else (lambda: reference.model)
        if reference is not None and reference.identity == chosen.identity and scorer is not None:
            other = scorer
        identity = "" if reference is None else reference.identity
        sampler = Sampler(engine, renderer, sampling, target, scorer, other, identity)
        found = sampler.run(prompts.rows(Path(scratch)), count, content=content, say=_say)
    print(f"Wrote {found['samples']} samples of {count} prompts to {out}: {_told(found)}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="prefopt sample", description="Sample responses of a policy to prompts, resumably."
    )
    parser.add_argument("-c", "--config", action="config", help="A YAML file with these settings.")
    parser.add_argument("prompts", type=str, help="Rows with prompts: a file, a folder or a hub name.")
    parser.add_argument(
        "--policy", type=str, required=True, help="A run, a checkpoint, a PEFT adapter, or a model."
    )
    parser.add_argument("--out", type=str, required=True, help="The folder for the samples.")
    parser.add_class_arguments(Sampling, "sampling")
    parser.add_argument("--n", type=int | None, default=None, help="The same as --sampling.n.")
    parser.add_argument("--seed", type=int | None, default=None, help="The same as --sampling.seed.")
    parser.add_class_arguments(Server, "engine")
    parser.add_argument(
        "--allow_commands", type=bool, default=False, help="Whether engine.command may be run."
    )
    parser.add_argument("--dtype", type=Dtype | None, default=None, help="The policy's dtype in memory.")
    parser.add_argument(
        "--score", type=bool, default=True, help="Compute log-probs of the samples with our scorer."
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="A second policy that scores the samples, with the policy's tokeniser.",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Prompts per batch.")
    parser.add_argument("--rows_per_shard", type=int, default=1000, help="Prompts per shard.")
    parser.add_argument("--format", type=Format, default="parquet", help="The format of the shards.")
    parser.add_argument("--part", type=str, default="1/1", help="Which prompts: 2/3 is the second third.")
    parser.add_argument("--max_prompts", type=int | None, default=None, help="Read so many prompts.")
    parser.add_argument(
        "--columns", type=dict[str, str] | None, default=None, help="Our names of columns and the file's."
    )
    kinds = {
        "template": str,
        "template_arguments": dict[str, Any],
        "max_prompt_length": int,
        "tokenizer": str,
    }
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=f"As data.{name}; the run's.")
    return parser


def checked_prompt(
    chosen: ChosenPolicy, renderer: Renderer, sampling: Sampling
) -> Callable[[PreferenceRow], None]:
    """Return a check that a prompt can be sampled for, so that none ends the command after hours."""
    context = chosen.spec.context_length()

    def check(row: PreferenceRow) -> None:
        length = len(renderer.encode(row).prompt_ids)
        if context is not None and length + sampling.max_new_tokens > context:
            raise DataError(
                f"{row.origin}: a prompt of {length} tokens and a response of {sampling.max_new_tokens} "
                f"don't fit into the policy's context of {context}: set max_prompt_length to at most "
                f"{max(1, context - sampling.max_new_tokens)}, or lower max_new_tokens."
            )

    return check


def _shortened(settings: Any) -> dict[str, Any]:
    return {name: settings[name] for name in ("n", "seed") if settings[name] is not None}


def engine_of(
    chosen: ChosenPolicy, renderer: Renderer, server: Server, out: Path, *, allowed: bool
) -> Engine:
    """Return what samples from a policy: transformers in this process, or a server.

    Args:
        chosen: the policy.
        renderer: knows the end token of responses.
        server: the server, if there is one.
        out: the folder of the samples; the model for a server is written alongside it.
        allowed: whether the server's command may be run.
    """
    if not server:
        return TransformersEngine(lambda: chosen.model, end=renderer.end_token_id, identity=chosen.identity)
    return OpenAIServer(
        server,
        policy=lambda: chosen.whole_model(out.with_name(f"{out.name}{_SERVED}")),
        identity=chosen.identity,
        ends=chosen.end_token_ids(renderer.end_token_id),
        log=out.with_name(f"{out.name}{_LOG}"),
        allowed=allowed,
    )


def _limits(own: Limits, settings: Any) -> Limits:
    names = ("template", "template_arguments", "max_prompt_length", "tokenizer")
    asked = {name: settings[name] for name in names if settings[name] is not None}
    return own._replace(max_response_length=None, **asked)


def _part(text: str) -> tuple[int, int]:
    first, _, parts = text.partition("/")
    if not (first.isdigit() and parts.isdigit()):
        raise ConfigError(f"expected `--part` to be a part such as 1/3, got '{text}'.")
    return int(first), int(parts)


def _say(line: str) -> None:
    print(line, flush=True)


def _told(found: dict[str, Any]) -> str:
    parts = [
        f"{found['mean_tokens']:.1f} tokens on average",
        f"{found['stopped']:.1%} end with an end token",
        f"{found['empty']:.1%} are empty",
        f"{found['retokenised']:.1%} are other tokens when their text is tokenised",
    ]
    if found["log_prob_gap_mean"] is not None:
        parts.append(
            f"our log-probs differ from the engine's by {found['log_prob_gap_mean']:.2g} per token "
            f"(at most {found['log_prob_gap_max']:.2g})"
        )
    return ", ".join(parts) + "."
