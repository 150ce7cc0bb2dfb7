"""MetaRM: a reward model's gradient after a step that separates responses to other prompts."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from pl_prefopt.checks import at_least, positive
from pl_prefopt.data import EncodedRow, Prompts, collate, row_source
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.functional import reward_spread
from pl_prefopt.heads import Head
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.modules.checkpoints import trained_weights
from pl_prefopt.modules.compatibility import check_unsharded
from pl_prefopt.modules.hidden_states import FOLDER
from pl_prefopt.modules.reward import RewardModule
from pl_prefopt.modules.reward_outputs import read_outputs
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring import evaluating
from pl_prefopt.types import PreferenceBatch

_SPREAD = MetricInfo(
    name="reward_spread",
    help="J of the last batch of samples: the mean of σ(|r_i − r_j|) over the pairs of a prompt's responses.",
    range=(0.5, 1.0),
    better="higher",
)


class MetaRewardModule(RewardModule):
    """Trains a reward model by MetaRM: the gradient of the loss at θ′ = θ + η∇J(θ), applied at θ.

    Dou et al., "MetaRM: Shifted Distributions Alignment via Meta-Learning", arXiv 2405.00438. J is how well
    the rewards separate responses of a policy that has moved on, such as those of `prefopt sample`; these
    have no labels. For every batch of pairs a batch of such prompts is drawn, the weights take a step up J,
    the loss and its gradient are computed there, and the weights return. To first order the gradient is
    ∇L + η∇⟨∇J, ∇L⟩, which favours pairs that also help to separate the samples. The derivative of θ′ by θ is
    left out, as in the paper's algorithm. With accumulated batches each batch takes its own step; on several
    devices ∇J is the mean over them.

    Reconstructed: J is ``functional.reward_spread``, whose form was not found, and neither were η and the
    number of prompts, which have no defaults. Logged losses and training metrics are those at θ′.

    Args:
        policy: the model under the head.
        objective: the loss, of one reward per response.
        samples: rows with a prompt and at least two responses each; scores aren't read.
        meta_step: η > 0.
        meta_batch_size: how many prompts of ``samples`` each batch draws on each device.
        reward_head: from hidden states to one reward; ``ScalarHead`` by default.
        truncated_responses: as in ``RewardModule``.
        freeze_policy: train the head alone; the samples' hidden states are computed anew in every step.
        states_dir: where hidden states of the pairs are kept.
        options: the same for all families, see ``PreferenceModule``.

    Raises:
        ConfigError: if a setting is out of range, or the head gives more than one reward.
    """

    one_pass = False

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        samples: str,
        meta_step: float,
        meta_batch_size: int,
        reward_head: Head | None = None,
        truncated_responses: Literal["warn", "refuse"] = "warn",
        freeze_policy: bool = False,
        states_dir: str = FOLDER,
        **options: Any,
    ) -> None:
        own: dict[str, Any] = {
            "truncated_responses": truncated_responses,
            "freeze_policy": freeze_policy,
            "states_dir": states_dir,
        }
        super().__init__(policy, objective, reward_head, **own, **options)
        self.samples = samples
        self.meta_step = positive("meta_step", meta_step)
        self.meta_batch_size = at_least("meta_batch_size", meta_batch_size, 1)
        head = self.reward_head
        if head.outputs != 1 or head.columns:
            raise ConfigError(
                f"{type(self).__name__} needs a head with one reward per response and without columns, but "
                f"{type(head).__name__} has {head.outputs} output(s) and reads "
                f"{', '.join(head.columns) or 'no column'}: use pl_prefopt.heads.ScalarHead."
            )
        self._encoded: list[EncodedRow] = []
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def metric_info(self) -> tuple[MetricInfo, ...]:
        """The descriptions of all logged metrics."""
        return (*super().metric_info, _SPREAD)

    def setup(self, stage: str) -> None:
        """Check the strategy, and read the samples."""
        check_unsharded(self, "takes two steps per batch, which sharded weights can't")
        if self.trainer.precision == "16-mixed":
            raise ConfigError(
                f"{type(self).__name__} doesn't scale the gradient of J, so that parts of it would be 0 in "
                "float16: set trainer.precision to bf16-mixed or 32-true."
            )
        super().setup(stage)
        if stage == "fit":
            self._encoded = self._read_samples()

    def _read_samples(self) -> list[EncodedRow]:
        source = row_source(self.trainer)
        if source is None:
            raise ConfigError(
                f"{type(self).__name__} renders its samples as the training rows, whose batches come from a "
                "data loader: use a PreferenceDataModule."
            )
        renderer = source.datasets["train"].renderer
        encoded = []
        with tempfile.TemporaryDirectory() as scratch:
            for number, row in Prompts(source=self.samples).rows(Path(scratch)):
                if len(row.responses) < 2:
                    raise DataError(
                        f"expected at least two responses per prompt in {self.samples}, got "
                        f"{len(row.responses)} in row {number + 1}: sample more of them, such as by "
                        "`prefopt sample --n 4`."
                    )
                encoded.append(renderer.encode(row))
        if len(encoded) < self.meta_batch_size:
            raise DataError(
                f"expected at least model.init_args.meta_batch_size, {self.meta_batch_size}, prompts in "
                f"{self.samples}, got {len(encoded)}: add samples, or set it to {max(1, len(encoded))}."
            )
        largest = max(max(map(max, (row.prompt_ids, *row.response_ids))) for row in encoded)
        self.policy_spec.check_token(largest, renderer.tokenizer)
        return encoded

    def configure_model(self) -> None:
        """Load the model, and refuse weights that the step up J would not move."""
        super().configure_model()
        for name, weight in trained_weights(self).items():
            if weight.dtype in (torch.bfloat16, torch.float16):
                raise ConfigError(
                    f"{type(self).__name__} trains '{name}' in {weight.dtype}, in which small steps up J "
                    "round to none: set policy.dtype to float32, or train an adapter."
                )

    def sketch_policy(self) -> nn.Module:
        """Refuse to plan: a plan would leave out the step up J."""
        raise ConfigError(
            f"{type(self).__name__} computes samples before each batch, which a plan would leave out: plan "
            "a run with RewardModule, and allow for the larger of the two batches and two copies of the "
            "trained weights."
        )

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the batch's share of the loss at θ′, where the weights stay until the backward pass."""
        spread = self._ascend()
        try:
            loss = super().training_step(batch, batch_idx)
        except BaseException:
            self._return()
            raise
        self._stats = {**self._stats, _SPREAD.name: spread}
        return loss

    def on_after_backward(self) -> None:
        """Return to θ."""
        self._return()
        super().on_after_backward()

    def configure_callbacks(self) -> list[Callback]:
        """Return to θ also where the backward pass fails, before checkpoints of a failed run are written."""
        return [*super().configure_callbacks(), _ReturnOnError()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Forget the θ of weights that are replaced."""
        super().on_load_checkpoint(checkpoint)
        self._held = []

    @torch.no_grad()
    def _return(self) -> None:
        for weight, start in self._held:
            weight.copy_(start)
        self._held = []

    def _ascend(self) -> Tensor:
        """Move the trained weights to θ′, and return J(θ)."""
        self._return()  # where the backward pass of the batch before has failed, and the error was caught
        spread, weights = self._spread(), list(trained_weights(self).values())
        slopes = torch.autograd.grad(spread, weights, allow_unused=True, materialize_grads=True)
        self._held = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_(_mean_over_ranks(slope), alpha=self.meta_step)
        torch.clear_autocast_cache()  # which may hold θ in half precision
        return spread.detach()

    def _spread(self) -> Tensor:
        """Return J of some samples, drawn by the batch's seed."""
        drawn = torch.randperm(len(self._encoded))[: self.meta_batch_size].tolist()
        tree = collate([self._encoded[number] for number in drawn]).to(self.device)
        with evaluating(self.policy) if self.freeze_policy else nullcontext():
            rewards = read_outputs(self.scorer, self.policy, self.reward_head, tree, {}).squeeze(-1)
        return reward_spread(rewards, tree.response_mask.any(dim=-1)).mean()


class _ReturnOnError(Callback):
    """Moves the weights of a failed run back to θ."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        pl_module._return()


def _mean_over_ranks(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    values = values.contiguous()
    dist.all_reduce(values)
    return values / dist.get_world_size()
