"""Collaborative reward modelling (CRM): two models, each trained on pairs that the other one selects."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pl_prefopt.checks import at_least, positive
from pl_prefopt.data import row_source
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.functional.peer_review import Reviewed, review
from pl_prefopt.heads import Head
from pl_prefopt.heads.users import pairs_in
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.checkpoints import trained_weights
from pl_prefopt.modules.compatibility import check_unsharded
from pl_prefopt.modules.dpo import DPOModule
from pl_prefopt.modules.head_updates import check_epochs, scored_anew
from pl_prefopt.modules.reward import RewardModule
from pl_prefopt.objectives import Objective, ReferenceObjective
from pl_prefopt.objectives.structures import mean_over
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.policies import PolicySpec, float32_by_default
from pl_prefopt.types import Outcome, PreferenceBatch, ScoredBatch

_MARGINS = "pl_prefopt_margins"
_KEPT_BY_BOTH = MetricInfo(
    name="kept_by_both",
    help="Share of a batch's prompts with pairs on which both models are trained.",
    range=(0.0, 1.0),
    unit="%",
)


class PeerReview(PreferenceModule):
    """Base class of CRM's modules, which train a second model of the same kind, the peer.

    In every batch each model ranks the prompts by its own reward margin, the mean over a prompt's pairs, and
    the other one is trained on the ``keep_rate`` with the largest margins. The loss is the sum of both means
    over the kept prompts. A batch is reviewed by itself: with accumulated batches or on several devices each
    batch of each device, so that ``data.batch_size`` is the number of prompts under review.

    With the curriculum, both models measure all margins before each epoch but the first, and the epoch goes
    from large ones to small ones. Its batches hold prompts of similar margins, so that a share of the last
    batches would be wrong labels; such an epoch is therefore reviewed as a whole, by the measured margins.
    """

    peer: PreferenceModule
    _kept: tuple[Reviewed, float] | None = None
    """Of an ordered epoch: the rows that are kept, by number, and their share."""
    _measured: Tensor | None = None
    """The margins of both models, [2, rows], that the epoch is ordered by."""

    def _start_review(
        self, peer: PreferenceModule, keep_rate: float, *, warmup_epochs: int, curriculum: bool
    ) -> None:
        if positive("keep_rate", keep_rate) > 1:
            raise ConfigError(f"expected `keep_rate` above 0 and at most 1, got {keep_rate}.")
        if self.objective.whole_step or self.objective.state_dict():
            raise ConfigError(
                f"{type(self).__name__} reviews single prompts, but {type(self.objective).__name__} depends "
                "on other ones or on earlier steps: use an objective of single prompts, such as DPO."
            )
        if self.router_aux_loss_coef is not None:
            raise ConfigError(
                f"{type(self).__name__} adds no load-balancing loss: remove "
                "model.init_args.router_aux_loss_coef."
            )
        self.peer, self.keep_rate, self.curriculum = peer, keep_rate, curriculum
        self.warmup_epochs = at_least("warmup_epochs", warmup_epochs, 0)

    one_pass = False

    @property
    def metric_info(self) -> tuple[MetricInfo, ...]:
        """The descriptions of all logged metrics."""
        return (*super().metric_info, _KEPT_BY_BOTH)

    def setup(self, stage: str) -> None:
        """Check that there are pairs, and that the strategy and the reference suit two models."""
        check_unsharded(self, "trains two models, which can't be sharded")
        if stage == "fit" and self.warmup_epochs:
            check_epochs(
                self.trainer,
                self.warmup_epochs,
                f"The models of {type(self).__name__} review each other only after the first "
                f"{self.warmup_epochs} epoch(s), model.init_args.warmup_epochs",
            )
        super().setup(stage)
        if self._references is not None and self._references.state():
            raise ConfigError(
                f"{type(self).__name__} has one reference for two models, but this one follows the policy: "
                "use a reference that stays as it is, such as AdapterOff."
            )
        self.peer._references = self._references
        source: Any = row_source(self.trainer)
        if stage == "fit" and source is not None:
            self._check_rows(source)

    def _check_rows(self, source: Any) -> None:
        if not any(pairs_in(row) for row in source.datasets["train"].rows):
            raise ContractError(
                f"{type(self).__name__} ranks prompts by the margins of their pairs, but no train row has "
                "two responses with different scores: use pairs or lists."
            )
        if self.curriculum and getattr(source, "max_tokens_per_batch", None) is not None:
            raise ConfigError(
                "The curriculum changes which rows share a batch, and data.max_tokens_per_batch needs the "
                "same batches in every epoch: set it to null, or model.init_args.curriculum to false."
            )

    def configure_model(self) -> None:
        """Load both models."""
        super().configure_model()
        self.peer.configure_model()
        self._own_weights |= {f"peer.{name}" for name in self.peer._own_weights}
        other = trained_weights(self.peer)
        if all(torch.equal(weight, self.get_parameter(name)) for name, weight in other.items()):
            raise ConfigError(
                f"Both models of {type(self).__name__} would start with the same weights, and so stay the "
                "same: train adapters that start at random (policy.lora), or a head that does."
            )

    def sketch_policy(self) -> nn.Module:
        """Refuse to plan: a plan would count only one of the two models."""
        raise ConfigError(
            f"{type(self).__name__} trains two models, of which a plan would count one: plan a run with "
            f"{type(self.peer).__name__}, and allow for twice its weights and activations."
        )

    @float32_by_default()
    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the batch's share of both models' losses, each over the prompts that the other one keeps."""
        own, outcome = self._evaluate(batch, "train")
        other = self.peer.score(batch)
        peer_outcome = self._weighted(self.peer.objective(other), batch)
        kept, share = self._review(batch, margins(own, outcome), margins(other, peer_outcome))
        loss = (
            torch.where(kept.first, outcome.loss, 0.0) + torch.where(kept.second, peer_outcome.loss, 0.0)
        ) / share
        self._guard.note(batch, loss)
        both = (kept.first & kept.second).sum() / outcome.counted.sum().clamp(min=1)
        self._stats = {**self._stats, _KEPT_BY_BOTH.name: both}
        return self._mean.share(loss, batch, self.trainer)

    def _review(
        self, batch: PreferenceBatch, first: Tensor, second: Tensor
    ) -> tuple[Reviewed, Tensor | float]:
        """Return which of the batch's prompts each model is trained on, and their share."""
        if self.current_epoch < self.warmup_epochs:
            return Reviewed(~first.isnan(), ~second.isnan()), 1.0
        if self._kept is not None:
            of_epoch, share = self._kept
            there = ~first.isnan()
            return Reviewed(*(there & one.to(there.device)[batch.index] for one in of_epoch)), share
        kept = review(first, second, keep_rate=self.keep_rate)
        return kept, kept.first.sum().clamp(min=1) / (~first.isnan()).sum().clamp(min=1)

    def on_train_epoch_start(self) -> None:
        """Order the epoch's prompts from easy to hard, by the mean of both models' margins."""
        super().on_train_epoch_start()
        source: Any = row_source(self.trainer)
        if not self.curriculum or not self.current_epoch or source is None:
            return
        rows, size = source.datasets["train"], max(1, round(source.prompts_per_batch))
        self._measured = torch.stack(
            [self._all_margins(model, rows, size) for model in (self, self.peer)]
        ).cpu()
        self._order(source)

    def _order(self, source: Any) -> None:
        """Order and review the epoch by what was measured before it."""
        assert self._measured is not None
        kept = review(*self._measured, keep_rate=self.keep_rate)
        known = int((~self._measured[0].isnan()).sum())
        self._kept = kept, int(kept.first.sum()) / max(1, known)
        source.reorder(-self._measured.mean(dim=0).nan_to_num(nan=-torch.inf).double().numpy())

    @torch.no_grad()
    def _all_margins(self, model: PreferenceModule, rows: Any, size: int) -> Tensor:
        """Return the margin of each row under a model, on every rank, [rows]."""
        own = [
            margins(scored, model.objective(scored))
            for scored in scored_anew(model, self.trainer, rows, size)
        ]
        gathered: Any = self.all_gather(torch.cat(own))
        # Rank r has the rows r, r + ranks, ...
        found: Tensor = gathered.view(self.trainer.world_size, -1).T.flatten()[: len(rows)]
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the margins that the epoch is ordered by."""
        super().on_save_checkpoint(checkpoint)
        if self._measured is not None:
            checkpoint[_MARGINS] = self._measured

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the order of the interrupted epoch."""
        super().on_load_checkpoint(checkpoint)
        source = row_source(self.trainer) if self._is_fitting else None
        if source is not None and _MARGINS in checkpoint:
            self._measured = checkpoint[_MARGINS]
            self._order(source)

    def _description(self) -> dict[str, str]:
        return super()._description() | {"peer review": "two models"}


def margins(scored: ScoredBatch, outcome: Outcome) -> Tensor:
    """Return the mean reward margin of each prompt's pairs, [B]; NaN for prompts without pairs.

    Args:
        scored: the batch.
        outcome: of an objective.
    """
    pairs = ALL_PAIRS(scored.scores, scored.present)
    differences = outcome.reward.unsqueeze(-1) - outcome.reward.unsqueeze(-2)
    return mean_over(pairs, differences).masked_fill(~pairs.flatten(1).any(dim=-1), torch.nan)


class PeerRewardModule(PeerReview, RewardModule):
    """Trains two reward models, each on the pairs that have large margins under the other one: CRM.

    "Two Minds Better Than One: Collaborative Reward Modeling for LLM Alignment", arXiv 2505.10597. A small or
    negative margin is read as a wrong label; ``keep_rate`` is 1 − η, η the expected share of wrong labels. A
    schedule for it was not found, so it is constant and has no default. With 1 the two models are trained
    independently. Both start from the same model, with heads and adapters of their own. Metrics, predictions
    and exports are those of the first one.

    Args:
        policy: the model under each head.
        objective: the loss, of rewards.
        keep_rate: in (0, 1].
        reward_head: from hidden states to rewards; ``ScalarHead`` by default.
        warmup_epochs: the number of epochs at the start in which both models are trained on everything. An
            untrained model would select the pairs that agree with its random weights.
        curriculum: whether epochs after the first go from large margins to small ones, measured before each.
        truncated_responses: as in ``RewardModule``.
        freeze_policy: train the heads alone.
        states_dir: where hidden states are kept.
        options: the same for all families, see ``PreferenceModule``.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        keep_rate: float,
        reward_head: Head | None = None,
        warmup_epochs: int = 0,
        curriculum: bool = True,
        truncated_responses: Literal["warn", "refuse"] = "warn",
        freeze_policy: bool = False,
        states_dir: str = ".cache/pl_prefopt/hidden_states",
        **options: Any,
    ) -> None:
        own: dict[str, Any] = {
            "truncated_responses": truncated_responses,
            "freeze_policy": freeze_policy,
            "states_dir": states_dir,
        }
        super().__init__(policy, objective, reward_head, **own, **options)
        head = self.reward_head
        if type(head).update is not Head.update:
            raise ConfigError(
                f"{type(self).__name__} can't train two {type(head).__name__}s, whose groups would differ: "
                "use another head."
            )
        peer = RewardModule(policy, copy.deepcopy(objective), copy.deepcopy(head), **own, **options)
        self._start_review(peer, keep_rate, warmup_epochs=warmup_epochs, curriculum=curriculum)

    def setup(self, stage: str) -> None:
        """Give the peer's head what the first head has learned from the rows."""
        super().setup(stage)
        peer: Any = self.peer
        peer.reward_head.learned = self.reward_head.learned

    def _adopt(self, learned: Mapping[str, Any]) -> None:
        """Give the peer's head what the checkpoint's heads have learned, too."""
        super()._adopt(learned)
        peer: Any = self.peer
        peer._adopt(learned)


class PeerDPOModule(PeerReview, DPOModule):
    """Trains two policies, each on the pairs with large implicit reward margins under the other one: CRM.

    As ``PeerRewardModule``, with the objectives of ``DPOModule``. Both policies have the same reference.

    Args:
        policy: the model to train, twice.
        objective: the loss and the reward.
        keep_rate: in (0, 1].
        warmup_epochs: the number of epochs at the start in which both models are trained on everything. An
            untrained model would select the pairs that agree with its random weights.
        curriculum: whether epochs after the first go from large margins to small ones, measured before each.
        options: the same for all families, see ``PreferenceModule``.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: ReferenceObjective,
        keep_rate: float,
        warmup_epochs: int = 0,
        curriculum: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(policy, objective, **options)
        peer = DPOModule(policy, copy.deepcopy(objective), **options)
        self._start_review(peer, keep_rate, warmup_epochs=warmup_epochs, curriculum=curriculum)
