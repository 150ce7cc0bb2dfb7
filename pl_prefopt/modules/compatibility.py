"""Checks, before a model loads, that objective, references, rows and strategy are compatible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from pl_prefopt.data import RowsSummary
from pl_prefopt.errors import ConfigError, ContractError, DataError, listed
from pl_prefopt.objectives import Needs, Objective
from pl_prefopt.pairing import known
from pl_prefopt.policies import HALF, PolicySpec, has_dropout
from pl_prefopt.references import ReferenceSource
from pl_prefopt.requests import HeadKind
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import PreferenceBatch


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies whose checkpoints can't be used; warn where a safer strategy exists.

    Raises:
        ConfigError: saying what to use instead.
    """
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ConfigError(
            f"{type(strategy).__name__} can't save the trained weights alone: to shard weights, set "
            "trainer.strategy.class_path to pl_prefopt.modules.FSDP2Strategy."
        )
    if isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        raise ConfigError(
            "Remove AsyncCheckpointIO from trainer.plugins. It reports a checkpoint as saved before it is "
            "written, and executes code in checkpoints that it reads: the default does neither."
        )
    if type(strategy) is ModelParallelStrategy:
        rank_zero_warn(
            "With Lightning's ModelParallelStrategy, a run killed while saving loses the previous checkpoint "
            "too: set trainer.strategy.class_path to pl_prefopt.modules.FSDP2Strategy, which takes the same "
            "settings."
        )


def check_accumulation(objective: Objective, trainer: Any) -> None:
    """Refuse to accumulate batches if the objective compares all prompts of an optimiser step.

    Raises:
        ConfigError: saying what to set instead.
    """
    if not objective.whole_step:
        return
    scheduled = any(isinstance(each, GradientAccumulationScheduler) for each in trainer.callbacks)
    if trainer.accumulate_grad_batches > 1 or scheduled:
        given = "by GradientAccumulationScheduler" if scheduled else f"{trainer.accumulate_grad_batches} each"
        raise ConfigError(
            f"{type(objective).__name__} depends on all prompts of an optimiser step at once, but batches "
            f"are accumulated, {given}: set trainer.accumulate_grad_batches to 1, and data.batch_size to the "
            "number of prompts per step."
        )


def check_clipping(optimizer: Optimizer, trainer: Any) -> None:
    """Raise a ``ConfigError`` if gradients would be clipped before they are unscaled from float16."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    if fused and trainer.gradient_clip_val and trainer.precision == "16-mixed":
        raise ConfigError(
            f"A fused {type(optimizer).__name__} unscales float16 gradients after trainer.gradient_clip_val "
            "has clipped them: set trainer.precision to bf16-mixed, or remove fused from "
            "model.init_args.optimizer.init_args."
        )


def reference_source(trainer: Any) -> ReferenceSource | None:
    """Return the callback that serves the references, ``None`` if there is none.

    Raises:
        ConfigError: if there are several.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, ReferenceSource)]
    if len(found) > 1:
        raise ConfigError(
            f"Expected one ReferenceEnsemble among the trainer's callbacks, got {len(found)}: list all "
            "references as the members of one."
        )
    return found[0] if found else None


def check_references(objective: Objective, count: int) -> None:
    """Raise a ``ContractError`` if the objective doesn't take this number of references."""
    needs, name = objective.needs, type(objective).__name__
    most = needs.max_references
    if count < needs.min_references or (most is not None and count > most):
        wanted = f"exactly {most}" if needs.min_references == most else f"at least {needs.min_references}"
        raise ContractError(
            f"{name} needs {wanted} reference(s), but references.members has {count}: for one, add "
            "`- class_path: pl_prefopt.references.AdapterOff` there; for none, set it to []."
        )


_OUTPUTS: dict[HeadKind, str] = {
    "rewards": "rewards (such as pl_prefopt.heads.ScalarHead)",
    "embedding": "an embedding (pl_prefopt.heads.EmbeddingHead)",
    "mixture": "rewards and log-weights (pl_prefopt.heads.MixtureHead or GroupHead)",
}


def check_reward_head(objective: Objective, outputs: int | None, kind: HeadKind) -> None:
    """Raise a ``ContractError`` if an objective on rewards is trained without a reward head, or vice versa.

    Args:
        objective: the objective.
        outputs: the number of outputs of the module's reward head; ``None`` if it has none.
        kind: what these outputs are.
    """
    needed, name = objective.needs.reward_outputs, type(objective).__name__
    if needed is not None and outputs is None:
        raise ContractError(
            f"{name} reads the rewards of a head, which this module has not: set model.class_path to "
            "pl_prefopt.modules.RewardModule."
        )
    if needed is None and outputs is not None:
        raise ContractError(
            f"RewardModule trains a reward head, but {name} reads none: use an objective on rewards, such as "
            "pl_prefopt.objectives.BradleyTerry, or Compose with the score HeadReward."
        )
    if needed is not None and kind != objective.needs.reward_kind:
        raise ContractError(
            f"{name} needs a reward head that gives {_OUTPUTS[objective.needs.reward_kind]}, but "
            f"model.init_args.reward_head gives {_OUTPUTS[kind]}: use a head that fits."
        )
    if needed and needed != outputs:
        raise ContractError(
            f"{name} needs a reward head with {needed} output(s) per response, but "
            f"model.init_args.reward_head has {outputs}: use another head, such as "
            "pl_prefopt.heads.ScalarHead for one output."
        )


def check_token_rewards(objective: Objective, *, wanted: bool) -> None:
    """Raise a ``ContractError`` if rewards per token are wanted and the objective has none."""
    if wanted and not objective.token_rewarded:
        raise ContractError(
            f"The reward of {type(objective).__name__} is no sum over tokens, so that predictions can't have "
            "rewards per token: set model.init_args.token_rewards to false."
        )


def check_rows(objective: Objective, datasets: Mapping[str, Any]) -> None:
    """Check that the objective can be computed on the rows.

    Args:
        objective: the objective.
        datasets: the rows of each split.

    Raises:
        ContractError: if the training rows give no gradient, or one of its views needs a second prompt.
        DataError: if a score is out of the objective's range, or a bare label where grades are needed.
    """
    for split, rows in datasets.items():
        if split == "train":
            _check_comparable(objective, rows.summary)
            objective.check_training_rows(rows.rows)
        else:
            objective.check_evaluation_rows(rows.rows, split)
        if split != "predict":
            _check_scores(objective, split, rows.rows)
            _check_prompts(objective, split, rows.rows)


def check_names(needs: Needs, datasets: Mapping[str, Any] | None) -> None:
    """Raise a ``ContractError`` if batches would not have the numbers of names that are needed.

    Args:
        needs: the inputs of objective and metrics.
        datasets: the rows of each split; ``None`` where batches come from a data loader.
    """
    for name in needs.names:
        if datasets is None or not all(name in rows.names for rows in datasets.values()):
            raise ContractError(
                f"the names in the column '{name}' get their numbers from a PreferenceDataModule, but the "
                "batches come from elsewhere: use one, or set PreferenceDataset.names."
            )


def check_unsharded(module: LightningModule, why: str) -> None:
    """Raise a ``ConfigError`` if the strategy shards the weights; ``why`` says what the module does."""
    if module.device_mesh is not None:
        raise ConfigError(f"{type(module).__name__} {why}: use another strategy, such as ddp.")


def check_dropout(objective: Objective, spec: PolicySpec) -> None:
    """Raise a ``ConfigError`` if the objective compares two passes over a row that are the same."""
    if any(view.repeats for view in objective.needs.views.values()) and not has_dropout(spec):
        raise ConfigError(
            f"{type(objective).__name__} compares two passes with different dropout, but the policy has "
            "none: set policy.lora.lora_dropout, such as 0.1, or policy.dropout to true for a model whose "
            "configuration has dropout."
        )


def check_tokens(spec: PolicySpec, datasets: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` if the rows have a token that the policy has no embedding for."""
    for rows in datasets.values():
        spec.check_token(rows.largest_token, rows.renderer.tokenizer)


def check_batch(batch: PreferenceBatch, needs: Needs, needed_by: Callable[[str], str]) -> None:
    """Raise a ``ContractError`` if a batch, from any data loader, lacks a view or a column.

    Args:
        batch: the batch.
        needs: the inputs of objective and metrics.
        needed_by: returns the class that asked for a column.
    """
    for name in needs.views.keys() - batch.trees.keys():
        raise ContractError(
            f"the objective needs the view '{name}' of each row, but a {batch.split} batch has only "
            f"{listed(batch.trees)}: make batches with PreferenceDataset.tokenised(..., views=module.views)."
        )
    for name in needs.columns:
        if name not in batch.columns:
            raise ContractError(
                f"{needed_by(name)} needs the column '{name}', but a {batch.split} batch has no such column; "
                f"its columns are {listed(batch.columns)}: add it to PreferenceBatch.columns."
            )


def warn_unchecked_rows(objective: Objective) -> None:
    """Warn that the training rows can't be checked before training."""
    rank_zero_warn(
        "The training batches come from a data loader, not from a PreferenceDataModule: it isn't checked "
        f"whether {type(objective).__name__} can learn anything from the rows, and the loss of a batch is "
        "its sum over prompts divided by the number of prompts in the first batch. The gradient of each "
        "optimiser step is the mean over its prompts all the same."
    )


def warn_rounded_updates(weights: Mapping[str, Tensor]) -> None:
    """Warn that weights are trained in a precision in which small updates are lost."""
    halved = sorted({str(weight.dtype) for weight in weights.values() if weight.dtype in HALF})
    if halved:
        rank_zero_warn(
            f"The optimiser updates weights in {halved[0]}, in which an update of less than a 512th of a "
            "weight is lost, as most are at learning rates of preference optimisation: set "
            "trainer.precision: bf16-true and model.init_args.master_weights: true to update float32 copies."
        )


def warn_undefined(name: str) -> None:
    """Warn that a metric isn't logged because a value that it averages is NaN."""
    rank_zero_warn(
        f"{name} is not logged: at least one of the values that it averages is NaN. Check the columns that "
        "the objective reads in these rows, and the weights for NaN."
    )


def _check_comparable(objective: Objective, summary: RowsSummary) -> None:
    if objective.needs.min_responses >= 2 and summary.comparable == 0:
        raise ContractError(
            f"{type(objective).__name__} compares responses to a prompt, but none of the {summary.rows} "
            "train rows has two responses with different scores: use pairs or scored lists, or an unpaired "
            "objective such as pl_prefopt.objectives.KTO."
        )


def _check_prompts(objective: Objective, split: str, rows: Sequence[PreferenceRow]) -> None:
    """Check for a second prompt where a view pairs one prompt's responses with another prompt."""
    if all(view.min_prompts < 2 for view in objective.needs.views.values()):
        return
    first = rows[0].prompt
    if all(row.prompt == first for row in rows):
        raise ContractError(
            f"{type(objective).__name__} scores each prompt with responses to another one, but all "
            f"{len(rows)} {split} rows have the same prompt: add rows with other prompts."
        )


def check_scores(objective: Objective, batch: PreferenceBatch) -> None:
    """Raise a ``DataError`` if a score can't be used, for rows that weren't checked at start-up."""
    if objective.needs.graded:
        bare = (known(batch.scores, batch.present).any(dim=-1) & ~batch.graded).nonzero().flatten().tolist()
        for place in bare:
            _refuse_label(objective, batch.rows[place].origin if batch.rows else "", batch.split)
    allowed = objective.needs.score_range
    if allowed is None:
        return
    wrong = ((batch.scores < allowed[0]) | (batch.scores > allowed[1])).nonzero().tolist()
    for place, response in wrong:
        origin = batch.rows[place].origin if batch.rows else ""
        score = float(f"{batch.scores[place, response]:.7g}")  # as in the data, without float32's rounding
        _refuse_score(objective, score, origin, batch.split)


def _check_scores(objective: Objective, split: str, rows: Sequence[PreferenceRow]) -> None:
    needs = objective.needs
    allowed = needs.score_range
    if allowed is None and not needs.graded:
        return
    for row in rows:
        if needs.graded and row.scores and not row.graded:
            _refuse_label(objective, row.origin, split)
        if allowed is None:
            continue
        for score in row.scores or ():
            if not allowed[0] <= score <= allowed[1]:
                _refuse_score(objective, score, row.origin, split)


def _refuse_score(objective: Objective, score: float, origin: str, split: str) -> NoReturn:
    low, high = objective.needs.score_range or (score, score)
    remedy = "rescale the scores"
    if hasattr(objective, "score_range"):
        remedy = (
            "set objective.init_args.score_range to the lowest and the highest score that your data can have"
        )
    raise DataError(
        f"{type(objective).__name__} expects scores from {low} to {high}, but {origin or 'a row'} ({split}) "
        f"has the score {score}: {remedy}."
    )


def _refuse_label(objective: Objective, origin: str, split: str) -> NoReturn:
    raise DataError(
        f"{type(objective).__name__} needs scores whose differences mean something, but {origin or 'a row'} "
        f"({split}) says only which response is better: add 'scores', or use an objective for pairs such as "
        "pl_prefopt.objectives.DPO."
    )
