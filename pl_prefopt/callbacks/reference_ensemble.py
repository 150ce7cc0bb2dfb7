"""The callback that gives every batch its references' log-probs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from pl_prefopt.data import SPLITS_OF_STAGE, row_source
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.references import (
    PolicyHost,
    PrecomputedTable,
    Reference,
    ReferenceAnswers,
    ReferenceSource,
    SyncedPolicy,
    token_answers,
)
from pl_prefopt.references.precompute import Workers, fill_table
from pl_prefopt.references.tables import TableFile, read_cached
from pl_prefopt.scoring import at_least_float32
from pl_prefopt.types import PreferenceBatch


class ReferenceEnsemble(Callback, ReferenceSource):
    """Holds K >= 0 references and answers the module that asks for their numbers, batch by batch.

    Answers are in member order, in float32 or better whatever the precision of the trainer, without gradient.
    Members are no part of the module: they are in no optimiser, and checkpoints hold the state of those alone
    that follow the policy.

    Args:
        members: the references.
        precompute: score the data once before the first step, keep the log-probs on disk, and free the
            models. A second run on the same data finds them there.
        cache_dir: where the log-probs are kept, a folder a reference.
        batch_size: rows in one forward pass of ``precompute``.

    Attributes:
        tables: after precomputing, the folders of the log-probs.
    """

    def __init__(
        self,
        members: Sequence[Reference] = (),
        precompute: bool = False,
        cache_dir: str = ".cache/pl_prefopt/references",
        batch_size: int = 8,
    ) -> None:
        self.members = list(members)
        self.precompute = precompute
        self.cache_dir = cache_dir
        self.batch_size = batch_size
        self.tables: list[Path] = []
        self._ready: list[Reference] = []

    @property
    def num_references(self) -> int:
        """K."""
        return len(self.members)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work before any model loads."""
        module: Any = pl_module
        for member in self.members:
            member.check(module.policy_spec)
            if member.follows_policy:
                self._check_following(member, sharded=module.device_mesh is not None)
            if module.reference_tokens is not None:
                own = module.objective.needs.tokens is not None
                asks = type(module.objective).__name__ if own else "model.init_args.token_rewards"
                self._check_tokens(member, asks)
            if row_source(trainer) is None:
                self._refuse_without_rows(member)

    def _refuse_without_rows(self, member: Reference) -> None:
        if self.precompute or member.needs_rows:
            who = "references.precompute" if self.precompute else type(member).__name__
            raise ContractError(
                f"{who} needs all rows and not only batches of them: pass a PreferenceDataModule as "
                "`datamodule`, or use a reference that scores batches, such as InitialPolicy."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the training and validation rows, unless a tuner's trial did."""
        if not self._ready:
            self._prepare(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where a reference is never synchronised, because the run is too short."""
        steps = trainer.estimated_stepping_batches
        for member in self.members:
            if isinstance(member, SyncedPolicy) and member.every > steps:
                rank_zero_warn(
                    f"SyncedPolicy is synchronised every {member.every} optimiser steps, but the run has "
                    f"{steps}, so that it never is: lower references.members.init_args.every."
                )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Let references follow a policy that was loaded between a step and their update."""
        self._follow(pl_module, trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Let references follow the policy."""
        self._follow(pl_module, trainer.global_step)

    def _follow(self, pl_module: LightningModule, step: int) -> None:
        module: Any = pl_module
        for member in self.members:
            member.follow(module, step)

    def state(self) -> dict[str, Any]:
        """Return the states of members that follow the policy, by position."""
        following = [(str(place), one) for place, one in enumerate(self.members) if one.follows_policy]
        return {place: member.state() for place, member in following}

    def restore(self, host: PolicyHost, states: Mapping[str, Any], *, training: bool) -> None:
        """Continue from the states of a checkpoint.

        Raises:
            ConfigError: if they aren't those of the members.
        """
        following = {str(place): one for place, one in enumerate(self.members) if one.follows_policy}
        if following.keys() - states.keys():
            raise ConfigError(
                f"references.members has {type(next(iter(following.values()))).__name__}, which follows the "
                "policy, but the checkpoint's run had other references: use its references.members, or start "
                "without ckpt_path."
            )
        if training and states.keys() - following.keys():
            raise ConfigError(
                "The checkpoint holds a reference that follows the policy, but references.members has none "
                "in its place: use the references.members that the checkpoint was made with, or start "
                "without ckpt_path."
            )
        for place, member in following.items():
            member.restore(host, states[place])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the validation rows, unless ``fit`` did."""
        if trainer.state.fn == "validate":
            self._prepare(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the test rows."""
        self._prepare(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the rows to predict."""
        self._prepare(trainer, pl_module, "predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the references."""
        for member in self._ready:
            member.release()
        self._ready = []

    @torch.no_grad()  # not inference_mode: the loss multiplies these numbers with ones that have a gradient
    def answer(self, host: PolicyHost, batch: PreferenceBatch) -> ReferenceAnswers:
        """Return what the members give for ``batch``; prepare them if no hook has, as in a tuner's trials."""
        if not self._ready and self.members:
            module: Any = host
            self._prepare(module.trainer, module, module.trainer.state.fn)
        if not self._ready:
            return ReferenceAnswers(log_probs={})
        if host.reference_tokens is not None:
            return token_answers(self._ready, host, batch)
        return ReferenceAnswers(
            log_probs={
                view: torch.stack(
                    [at_least_float32(member.log_probs(host, batch, view)) for member in self._ready]
                )
                for view in batch.trees
            }
        )

    def _check_following(self, member: Reference, *, sharded: bool) -> None:
        name = type(member).__name__
        if self.precompute:
            raise ContractError(
                f"{name} changes during training, so that its log-probs can't be precomputed: set "
                "references.precompute to false."
            )
        if sharded:
            raise ContractError(
                f"{name} can't follow a policy with sharded weights: use trainer.strategy ddp, or "
                "pl_prefopt.references.InitialPolicy."
            )

    def _check_tokens(self, member: Reference, asks: str) -> None:
        name = type(member).__name__
        if not member.live:
            raise ContractError(
                f"{asks} asks for log-probs of tokens, but {name} gives one log-prob per response: "
                "use a reference that is a model, such as pl_prefopt.references.InitialPolicy."
            )
        if self.precompute:
            raise ContractError(
                f"{asks} asks for log-probs of tokens, but references.precompute keeps one log-prob per "
                "response: set references.precompute to false."
            )

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        source = row_source(trainer)
        found = {} if source is None else source.datasets
        datasets = {split: found[split] for split in SPLITS_OF_STAGE[stage] if split in found}
        module: Any = pl_module
        self._ready = list(self.members)
        if self.precompute:
            with trainer.precision_plugin.forward_context():
                self._ready = [self._table(trainer, module, member, datasets) for member in self.members]
        for member in self._ready:
            member.prepare(module, datasets)

    def _table(self, trainer: Trainer, module: Any, member: Reference, datasets: dict[str, Any]) -> Reference:
        if not member.precomputable:
            return member
        precision = trainer.precision
        suffix = "" if precision == "32-true" else f"-{precision}"  # which decides what the model computes in
        folder = Path(self.cache_dir) / f"{member.fingerprint(module.policy_spec)}{suffix}"
        workers = Workers(rank=trainer.global_rank, count=trainer.world_size, wait=trainer.strategy.barrier)
        files = [file for rows in datasets.values() for file in TableFile.all_of(folder, rows, module.views)]
        missing = [file for file in files if read_cached(file.path) is None]
        # Every process has looked before the first one writes.
        trainer.strategy.barrier()
        if missing:
            member.prepare(module, datasets)
            for file in missing:
                fill_table(member, module, file, batch_size=self.batch_size, workers=workers)
            member.release()
        self.tables.append(folder)
        return PrecomputedTable(str(folder))
