"""`prefopt merge`: adds or interpolates trained policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pl_prefopt.cli.plain_parser import PlainParser
from pl_prefopt.errors import ConfigError
from pl_prefopt.files import new_folder, without_dots
from pl_prefopt.modules import RewardScorer
from pl_prefopt.modules.reward_folders import SETTINGS_FILE, read_settings, write_folder
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.policies.combining import Method, check_weights, combine_adapters, combine_states
from pl_prefopt.policies.spec import Dtype

_SHARED = ("reward_head", "learned", "template", "template_arguments", "end_token_id")
"""What reward models must agree in to be combined."""


def merge(arguments: list[str]) -> None:
    """Run ``prefopt merge`` with the given command-line arguments."""
    parser = PlainParser(
        prog="prefopt merge",
        description="Add or interpolate what policies of one base have learned: W = W_0 + Σ w_i (W_i − W_0).",
    )
    parser.add_argument("policies", type=str, nargs="+", help="Folders of PEFT adapters, or of models.")
    parser.add_argument("--weights", type=list[float], required=True, help="One per policy: [0.5,0.5].")
    parser.add_argument(
        "--method", type=Method, default="sum", help="slerp: along the arc between two; weights 1 - t and t."
    )
    parser.add_argument("--base", type=str | None, default=None, help="Their base; adapters name it.")
    parser.add_argument("--dtype", type=Dtype, default="auto", help="The dtype of whole models.")
    parser.add_argument("--out", type=str, required=True, help="The folder to write; it must not exist yet.")
    settings = parser.parse_args(arguments)
    merge_policies(
        [Path(one) for one in settings.policies],
        settings.weights,
        without_dots(Path(settings.out)),
        method=settings.method,
        base=settings.base,
        dtype=settings.dtype,
    )
    print(f"Wrote {settings.out}")


def merge_policies(
    folders: list[Path],
    weights: list[float],
    out: Path,
    *,
    method: Method = "sum",
    base: str | None = None,
    dtype: Dtype = "auto",
) -> None:
    """Write W_0 + Σ w_i (W_i − W_0), with the tokeniser of the first policy.

    Args:
        folders: PEFT adapters, of which an adapter is made, or models, of which a model is made; or reward
            models that `prefopt export` wrote, of which one with its head is made.
        weights: one per policy.
        out: a new folder.
        method: ``sum`` or ``slerp``.
        base: W_0; needed for models whose weights don't add up to 1, and for ``slerp`` of models.
        dtype: the dtype of models.

    Raises:
        ConfigError: if the policies can't be combined.
    """
    check_weights(len(folders), weights, method)
    if out.exists():
        raise ConfigError(f"Expected --out to be a new folder, but {out} exists.")
    if any((folder / SETTINGS_FILE).is_file() for folder in folders):
        _merge_rewards(folders, weights, out, method, base, dtype)
        return
    adapters = [(folder / "adapter_config.json").is_file() for folder in folders]
    if any(adapters) and not all(adapters):
        raise ConfigError("Expected adapters or models, got both: export adapters with --merge true first.")
    with new_folder(out) as draft:
        if all(adapters):
            combine_adapters(folders, weights, method, draft)
        else:
            _merge_models(folders, weights, draft, method, base, dtype)
        _copy_tokenizer(folders[0], draft)


def _merge_rewards(
    folders: list[Path], weights: list[float], out: Path, method: Method, base: str | None, dtype: Dtype
) -> None:
    """Write the weighted sum of exported reward models, their heads included."""
    described = [read_settings(folder) for folder in folders]
    if base is not None or method != "sum" or abs(sum(weights) - 1) > 1e-9:
        raise ConfigError(
            "Expected --weights that add up to 1, --method sum and no --base for reward models, such as "
            "--weights [-0.3,1.3] to extrapolate from the first to the second."
        )
    for folder, one in zip(folders, described, strict=True):
        for differ in (name for name in _SHARED if one.get(name) != described[0].get(name)):
            raise ConfigError(
                f"Expected reward models with the same head and template, but {differ} differs between "
                f"{folders[0]} and {folder}: train one from the other (model.init_args.head_from)."
            )
    scorers = [RewardScorer.load(folder, dtype=dtype) for folder in folders]
    for parts in ([one.policy for one in scorers], [one.head for one in scorers]):
        states = [part.state_dict() for part in parts]
        parts[0].load_state_dict(combine_states(states[0], states, weights, "sum"))
    first = scorers[0]
    settings = {name: value for name, value in described[0].items() if name not in ("reward_head", "learned")}
    with new_folder(out) as draft:
        write_folder(draft, first.policy, first.head, first.renderer.tokenizer, settings)


def _merge_models(
    folders: list[Path], weights: list[float], draft: Path, method: Method, base: str | None, dtype: Dtype
) -> None:
    if base is None and (method == "slerp" or abs(sum(weights) - 1) > 1e-9):
        raise ConfigError("Expected --base, the model that the policies were trained from.")
    models: list[Any] = [build_frozen(PolicySpec(name=str(folder), dtype=dtype)) for folder in folders]
    # With weights that add up to 1 any model may be the base: it cancels.
    start: Any = models[0] if base is None else build_frozen(PolicySpec(name=base, dtype=dtype))
    states = [model.state_dict() for model in models]
    models[0].load_state_dict(combine_states(start.state_dict(), states, weights, method))
    models[0].save_pretrained(draft)


def _copy_tokenizer(folder: Path, draft: Path) -> None:
    from transformers import AutoTokenizer

    if (folder / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(folder).save_pretrained(draft)
