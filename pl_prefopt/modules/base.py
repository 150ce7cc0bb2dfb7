"""The base of all modules: scoring, loss, metrics and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from pl_prefopt.checks import positive
from pl_prefopt.data import WEIGHT, row_source
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.heads import Head
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics import (
    REGISTRY,
    PreferenceMetric,
    build_suite,
    check_added,
    columns_read,
    update,
    with_info,
)
from pl_prefopt.modules.averaging import require_averaging
from pl_prefopt.modules.checkpoint_files import read_head, read_weights
from pl_prefopt.modules.checkpoints import (
    check_fits,
    describe,
    describe_optimizer,
    refuse_shards,
    save_description,
    trained_weights,
)
from pl_prefopt.modules.compatibility import (
    check_accumulation,
    check_batch,
    check_clipping,
    check_dropout,
    check_names,
    check_references,
    check_reward_head,
    check_rows,
    check_scores,
    check_strategy,
    check_token_rewards,
    check_tokens,
    reference_source,
    warn_rounded_updates,
    warn_unchecked_rows,
    warn_undefined,
)
from pl_prefopt.modules.finite_loss import FiniteLossGuard
from pl_prefopt.modules.learning_rate import base_rate, set_base_rate
from pl_prefopt.modules.line_steps import LineSteps, check_lines
from pl_prefopt.modules.loading import arguments_of
from pl_prefopt.modules.logged_step import LoggedStep
from pl_prefopt.modules.master_weights import MasterWeights, check_master_weights
from pl_prefopt.modules.objective_state import ObjectiveState
from pl_prefopt.modules.output_heads import build_heads, shard_heads
from pl_prefopt.modules.randomness import BatchSeeds
from pl_prefopt.modules.resumed_settings import (
    Settings,
    compare_objective,
    keep_settings,
    save_objective,
    save_settings,
    saved_settings,
    settings_of,
)
from pl_prefopt.modules.schedule import Schedule, optimizer_steps
from pl_prefopt.modules.step_mean import StepMean
from pl_prefopt.modules.stock_callbacks import check_monitors, fit_in, rename_monitors
from pl_prefopt.modules.token_numbers import token_numbers, token_readouts
from pl_prefopt.modules.unfinished_step import restart_step, warn_lost_batches
from pl_prefopt.objectives import Needs, Objective
from pl_prefopt.policies import (
    Make,
    PolicySpec,
    build_policy,
    check_fast_layers,
    check_shardable,
    float32_by_default,
    full_precision_buffers,
    load_split,
    sketch_policy,
    with_fast_layers,
)
from pl_prefopt.references import ReferenceAnswers, ReferenceSource
from pl_prefopt.requests import HeadKind, TokenRequest
from pl_prefopt.scoring import (
    HeadName,
    LayoutName,
    LogProbs,
    Outputs,
    PrefixCache,
    Readout,
    Scorer,
    check_has_routers,
    evaluating,
    summed,
    unknown_log_probs,
)
from pl_prefopt.types import (
    PLAIN,
    Outcome,
    PreferenceBatch,
    ResponseLogProbs,
    ScoredBatch,
    TokenNumbers,
    TokenTree,
    ViewLogProbs,
)
from pl_prefopt.views import View

_STAGES = ("train", "val", "test")
_REFERENCES = "pl_prefopt_references"
_NOTHING: Mapping[str, Tensor] = {}
_ROUTER_LOSS = MetricInfo(
    name="router_aux_loss",
    help="Load-balancing loss of the last batch, without its coefficient.",
    better="lower",
)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW with the low learning rate that preference optimisation of all weights needs."""
    return torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)


class PreferenceModule(LightningModule):
    """Trains one policy with one objective. Subclasses differ in the objectives that they accept.

    Args:
        policy: the model to train.
        objective: the loss and the reward.
        optimizer: creates the optimiser from the trainable parameters.
        schedule: the learning rate schedule.
        layout: how prompts and their responses are laid out in the model's input, see ``Scorer``.
        head: how hidden states become log-probs, see ``Scorer``.
        metrics: custom metrics, in addition to those of ``pl_prefopt.metrics.REGISTRY``.
        token_rewards: let ``validate``, ``test`` and ``predict`` compute each token's share of the reward,
            and write it to their predictions. References must then be models that read the policy's tokens.
        router_aux_loss_coef: the coefficient of a mixture of experts' load-balancing loss, which is added to
            the loss of training; ``None`` for none. The policy's own is in its ``config.json``.
        master_weights: keep float32 copies of the trained weights in the optimiser, while the model computes
            in bfloat16 throughout; needs the trainer's precision ``bf16-true``, and weights that aren't
            sharded.

    Attributes:
        needs: the inputs that objective and metrics need; the data module reads it.
    """

    policy: nn.Module
    reward_outputs: int | None = None
    """The number of outputs of a reward head, ``None`` where there is no such head."""
    reward_kind: HeadKind = "rewards"
    """What these outputs are."""
    one_pass: bool = True
    """Whether a step runs one model on the batch's rows and views, and nothing else."""

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        layout: LayoutName = "auto",
        head: HeadName = "chunked",
        metrics: Sequence[PreferenceMetric] = (),
        token_rewards: bool = False,
        router_aux_loss_coef: float | None = None,
        master_weights: bool = False,
    ) -> None:
        super().__init__()
        policy.check_trainable()
        if router_aux_loss_coef is not None:
            positive("router_aux_loss_coef", router_aux_loss_coef)
        self.router_aux_loss_coef = router_aux_loss_coef
        self._router_loss: Tensor | None = None  # of the batch that is trained on
        self.master_weights, self.masters = master_weights, MasterWeights()
        self.policy_spec = policy
        self.objective = objective
        self.added_metrics = with_info(metrics)
        self._columns_of_metrics = columns_read(self.added_metrics)
        self.needs = Needs.of_all(
            objective.needs, Needs(columns=tuple(self._columns_of_metrics), log_probs=False)
        )
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.token_rewards = token_rewards
        self.scorer = Scorer(layout, head)
        self.run_folder: Path | None = None  # set by the command line, independent of the trainer's root
        self._references: ReferenceSource | None = None  # cached: a tuner replaces the trainer's callbacks
        self.restored_from: str | None = None  # set by the command line, before Lightning knows it
        self.restored_step: int | None = None  # the optimiser step of the checkpoint that was loaded
        # Checkpoints hold trained weights only; on_load_checkpoint checks that none of them is missing.
        self.strict_loading = False
        self._base_identity, self._adapter_identity = "", ""
        self.start: dict[str, Tensor] = {}
        self._own_weights: set[str] = set()  # the policy's, without adapters that references add
        self._metrics_logged_at = 0
        self._stats: Mapping[str, Tensor] = {}
        self._optimizer_settings: Settings = []
        self._saved_settings: Settings | None = None  # of the optimiser in the checkpoint
        self._found_lr: float | None = None
        self._trying = False
        self._knows_rows = True  # whether a PreferenceDataModule has them, so that setup checks them
        self._seeds, self._guard, self._mean = BatchSeeds(), FiniteLossGuard(), StepMean()
        self._logged_step = LoggedStep()
        self._objective_state = ObjectiveState(objective)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **arguments: Any
    ) -> Self:
        """Return the module of a run, with the weights of a checkpoint, in evaluation mode.

        Its arguments are those in the run's ``config.yaml``. Nothing is unpickled. Its ``policy`` is a
        transformers model, ``score`` needs no trainer, and rewards of objectives with references come from
        ``Trainer(callbacks=[ReferenceEnsemble(...)]).predict(module, datamodule)``.

        Args:
            checkpoint_path: a checkpoint of a run: a file, or a folder of shards.
            map_location: the device to move the module to; the CPU by default.
            arguments: arguments of the module that replace those of the run; without a ``config.yaml``,
                ``policy`` and ``objective`` are needed.

        Raises:
            ConfigError: if the checkpoint or its configuration is missing, damaged or of another run.
        """
        path = Path(checkpoint_path)
        head = read_head(path)
        module = cls(**arguments_of(cls, path, arguments))
        module.configure_model()
        weights = read_weights(path)
        module.on_load_checkpoint({**head.rest, "state_dict": weights})
        module.load_state_dict(weights, strict=False)
        return module.to(map_location or "cpu").eval()

    def needed_by(self, column: str) -> str:
        """Return the class that needs a column of the rows: the objective's, or a metric's."""
        if column in self.objective.needs.columns:
            return type(self.objective).__name__
        return self._columns_of_metrics[column]

    def load_tokenizer(self) -> Any:
        """Return the policy's tokeniser."""
        return self.policy_spec.load_tokenizer()

    @cached_property
    def _lines(self) -> LineSteps:
        return LineSteps(self.load_tokenizer())

    @property
    def views(self) -> Mapping[str, View]:
        """The second views that the objective requests."""
        return self.needs.views

    @property
    def tokens(self) -> TokenRequest | None:
        """The per-token values that the objective requests, and those that rewards per token take."""
        needs = self.needs
        if not self.token_rewards or self._trainer is None or self._is_fitting:
            return needs.tokens
        for_rewards = TokenRequest(references=needs.min_references > 0)
        return TokenRequest.of_all([for_rewards, *([needs.tokens] if needs.tokens else [])])

    @property
    def reference_tokens(self) -> TokenRequest | None:
        """The per-token values that the objective requests of references; ``None`` if there are none."""
        return self.tokens if self.tokens is not None and self.tokens.asks_references else None

    @property
    def num_references(self) -> int:
        """K, the number of references."""
        return 0 if self._references is None else self._references.num_references

    @property
    def metric_info(self) -> tuple[MetricInfo, ...]:
        """The descriptions of all logged metrics: the registry's, custom ones, and those of the settings."""
        of_router = () if self.router_aux_loss_coef is None else (_ROUTER_LOSS,)
        return (*REGISTRY, *(one.info for one in self.added_metrics), *self.objective.stats, *of_router)

    @property
    def lr(self) -> float:
        """The learning rate that the schedule scales; ``LearningRateFinder`` sets it."""
        return base_rate(self.trainer.optimizers[0])

    @lr.setter
    def lr(self, rate: float) -> None:
        if self.schedule.name == "polynomial":
            raise ConfigError(
                f"LearningRateFinder suggests the learning rate {rate:.6g}, but the schedule 'polynomial' "
                "depends on the configured one: set model.init_args.optimizer.init_args.lr to it, and remove "
                "LearningRateFinder from trainer.callbacks."
            )
        self._found_lr = rate  # used when training starts: Lightning overwrites the schedule's rate next

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Allow non-finite losses within the context, whose steps are undone afterwards."""
        self._trying, state = True, self._objective_state.now()
        try:
            yield
        finally:
            self._trying = False
            self._objective_state.restore(state)

    def configure_callbacks(self) -> list[Callback]:
        """Check the trainer's callbacks before anything is prepared or loaded; add none."""
        fit_in(self.trainer)
        check_monitors(self.trainer, self.metric_info)
        return []

    def setup(self, stage: str) -> None:
        """Check that objective, references, rows and strategy are compatible, and build the metrics."""
        self._logged_step.end()  # of an evaluation that raised
        check_strategy(self.trainer.strategy)
        check_reward_head(self.objective, self.reward_outputs, self.reward_kind)
        check_token_rewards(self.objective, wanted=self.token_rewards)
        check_clipping(self._try_optimizer(), self.trainer)
        if self.policy_spec.kernels is not None or self.policy_spec.compile is not None:
            check_fast_layers(self.policy_spec, self.trainer.strategy.root_device.type)
        if self.device_mesh is not None:
            check_shardable(self.policy_spec, self.device_mesh)
        if self.master_weights:
            sharded = self.device_mesh is not None
            check_master_weights(self.policy_spec, precision=str(self.trainer.precision), sharded=sharded)
        self._references = reference_source(self.trainer)
        check_references(self.objective, self.num_references)
        if stage == "fit":
            check_accumulation(self.objective, self.trainer)
            check_dropout(self.objective, self.policy_spec)
        source = row_source(self.trainer)
        self._knows_rows = source is not None
        check_rows(self.objective, {} if source is None else source.datasets)
        check_names(self.needs, None if source is None else source.datasets)
        check_tokens(self.policy_spec, {} if source is None else source.datasets)
        if source is not None and self.needs.tokens is not None and self.needs.tokens.steps:
            check_lines(self._lines, source.datasets)
        views, added, log_probs = self.objective.rewarded_views, self.added_metrics, self.reads_log_probs
        check_added(added, self.objective.stats, self.num_references, views)
        self.suites = nn.ModuleDict(
            {
                _key(name): build_suite(name, self.num_references, views, added, log_probs=log_probs)
                for name in _STAGES
            }
        )
        # One more suite for each named set of rows, in addition to that of all rows of the stage.
        self.set_suites = nn.ModuleDict(
            {
                _key(f"{stage}/{name}"): build_suite(
                    stage, self.num_references, views, added, within=name, log_probs=log_probs
                )
                for stage in _STAGES[1:]
                for name in (source.datasets[stage].sets if source and stage in source.datasets else ())
            }
        )

    def on_train_start(self) -> None:
        """Read the prompts per batch, fix the run's seed, and apply the configured optimiser settings."""
        source = row_source(self.trainer)
        if source is None:
            warn_unchecked_rows(self.objective)
        self._mean.start(None if source is None else source.prompts_per_batch)
        self._seeds.start(self.trainer)
        self._forget_metrics("train")  # of steps that a tuner tried
        self._metrics_logged_at = 0
        if self._saved_settings is not None:
            optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
            keep_settings(optimizer, scheduler, self._optimizer_settings, self._saved_settings)
            self._saved_settings = None
        self._take_found_lr()

    def on_train_batch_start(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Seed the batch's random numbers by its position in the run."""
        self._seeds.seed(self.trainer)
        self._objective_state.note_step(self.trainer)
        self._take_found_lr()  # of a search that begins later than the run

    def configure_model(self) -> None:
        """Load the policy once, and shard it if the strategy does."""
        if "policy" not in self._modules:
            self.policy = self.load_policy()
            if self.router_aux_loss_coef is not None:
                check_has_routers(self.policy)
            self._base_identity = self.policy_spec.base_identity  # now, since files may change
            self._adapter_identity = self.policy_spec.adapter_identity
            self._own_weights = {f"policy.{name}" for name in self.policy.state_dict()}
            if self.policy_spec.has_adapter and not self.policy_spec.starts_at_base:
                # Now, since Lightning reads a checkpoint into the policy before anything else asks for it.
                self.start = {
                    name: held.detach().clone() for name, held in trained_weights(self.policy).items()
                }
            self.heads = self.build_heads(self.policy)
            if self.device_mesh is not None:
                shard_heads(self.heads, self.device_mesh, precision=self.trainer.precision)
        if self.restored_from is not None:
            self._look_into(Path(self.restored_from))

    def load_policy(self) -> nn.Module:
        """Return the model to train."""
        return self.load(self.policy_spec, build_policy, sketch_policy)

    def sketch_policy(self) -> nn.Module:
        """Return the model to train on the meta device."""
        return sketch_policy(self.policy_spec)

    def build_heads(self, policy: nn.Module) -> nn.ModuleDict:
        """Return the heads on the policy's hidden states, by name."""
        return build_heads(self.needs.heads, policy)

    def load(self, spec: PolicySpec, build: Make, sketch: Make) -> nn.Module:
        """Return the model that ``build`` loads, with sharded weights if the strategy shards.

        Args:
            spec: the model.
            build: loads it.
            sketch: creates it on the meta device.
        """
        if self._trainer is not None:
            check_fast_layers(spec, self.trainer.strategy.root_device.type)
            build, sketch = (_with_fast_layers(make) for make in (build, sketch))
        if self.device_mesh is None:
            model = build(spec)
            if self._trainer is None:
                return model
            # As Lightning does with the policy: a reference in another precision would differ from its start.
            with full_precision_buffers(model):
                return self._trainer.precision_plugin.convert_module(model)
        return load_split(spec, build, sketch, self.device_mesh, precision=self.trainer.precision)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser of the trained weights, and its schedule in optimiser steps."""
        optimizer = self.build_optimizer(trained_weights(self))
        scheduler = self.schedule.build(optimizer, optimizer_steps(self.trainer))
        self._optimizer_settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def build_optimizer(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of trained weights, or of their master copies."""
        if not self.master_weights:
            warn_rounded_updates(weights)
            return self.make_optimizer(list(weights.values()))
        optimizer = self.make_optimizer(self.masters.replace(weights))
        self.masters.follow(optimizer)
        return optimizer

    def trained_values(self) -> dict[str, Tensor]:
        """Return the values of the trained weights by name, those of master copies where there are some."""
        return self.masters.of(trained_weights(self))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the module as torch does, but leave rotary frequencies in float32."""
        with full_precision_buffers(self):
            moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the batch's share of the loss; see ``StepMean`` for its divisor."""
        _, outcome = self._evaluate(batch, "train")
        loss = self._with_router_loss(outcome.loss, batch)
        self._guard.note(batch, loss)
        return self._mean.share(loss, batch, self.trainer)

    def _with_router_loss(self, loss: Tensor, batch: PreferenceBatch) -> Tensor:
        """Add the batch's load-balancing loss to that of each of its prompts, if there is one."""
        if self._router_loss is None:
            return loss
        added, self._router_loss = self._router_loss, None
        self._stats = {**self._stats, _ROUTER_LOSS.name: added.detach()}
        prompts = batch.present.any(dim=-1)
        return loss + self.router_aux_loss_coef * added * prompts  # type: ignore[operator]

    def on_after_backward(self) -> None:
        """Scale the gradient of a step to the mean over its prompts, before it is logged or clipped."""
        accumulates = self.trainer.fit_loop.epoch_loop._should_accumulate()
        if not accumulates or self.trainer.world_size == 1:
            self.masters.take_gradients()  # DDP reduces the sum of a window's gradients, in place
        if not accumulates:
            self._mean.scale(self.masters.optimised(self.parameters()), self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of fused optimisers too, which Lightning refuses to do in mixed precision.

        A fused optimiser unscales float16 gradients by itself, after clipping; those of bfloat16 aren't
        scaled.
        """
        plugin = self.trainer.precision_plugin
        if not isinstance(plugin, MixedPrecision) or plugin.scaler is not None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise on a non-finite loss before the weights are updated."""
        if self._trying:
            self._guard = FiniteLossGuard()
            return
        trainer = self.trainer
        folder = self.run_folder or Path(trainer.default_root_dir)
        self._guard.check(folder, step=trainer.global_step, rank=trainer.global_rank)

    def validation_step(  # type: ignore[override]
        self, batch: PreferenceBatch, batch_idx: int
    ) -> tuple[ScoredBatch, Outcome]:
        """Update the validation metrics; return the batch's log-probs and rewards."""
        return self._evaluate(batch, "val")

    def test_step(  # type: ignore[override]
        self, batch: PreferenceBatch, batch_idx: int
    ) -> tuple[ScoredBatch, Outcome]:
        """Update the test metrics; return the batch's log-probs and rewards."""
        return self._evaluate(batch, "test")

    @float32_by_default()
    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> tuple[ScoredBatch, Outcome]:
        """Return the batch's log-probs and rewards."""
        check_batch(batch, self.needs, self.needed_by)
        scored = self.score(batch)
        return scored, self.objective(scored)

    def score(self, batch: PreferenceBatch) -> ScoredBatch:
        """Return the values that the objective needs: the policy's with gradient, the references' without."""
        return self.score_with(batch, self._ask_references(batch))

    def score_with(self, batch: PreferenceBatch, answers: ReferenceAnswers) -> ScoredBatch:
        """Return the values that the objective needs, given the references' ``answers``."""
        prefix_cache = self.scorer.prefix_cache(self.policy, batch.index.device) if self.views else None
        of_heads = self.head_readouts()
        of_tokens = token_readouts(self.tokens, answers) if self.reads_log_probs else []
        tree = batch.trees[PLAIN]
        found = self._read(batch, [*of_tokens, *of_heads.values()], prefix_cache)
        at_tokens, at_ends = found[: len(of_tokens)], found[len(of_tokens) :]
        policy, tokens = self._log_probs(tree, at_tokens, answers)
        return ScoredBatch(
            policy=policy,
            references=answers.log_probs.get(PLAIN, batch.scores.new_empty((0, *batch.scores.shape))),
            scores=batch.scores,
            present=batch.present,
            graded=batch.graded,
            views={name: self._score_view(batch, name, prefix_cache) for name in self.views},
            tokens=tokens,
            outputs=self.head_outputs(batch, PLAIN, dict(zip(of_heads, at_ends, strict=True))),
            columns={name: batch.columns[name] for name in self.needs.columns if name in batch.columns},
        )

    def _read(
        self, batch: PreferenceBatch, readouts: Sequence[Readout], prefix_cache: PrefixCache | None
    ) -> list[Tensor]:
        """Run the policy on the rows' own prompts and responses."""
        tree, prompts = batch.trees[PLAIN], batch.present.any(dim=-1)
        if self.router_aux_loss_coef is None or not (self.training and torch.is_grad_enabled()):
            return self.scorer.read(self.policy, tree, readouts, prefix_cache)
        found, self._router_loss = self.scorer.read_balanced(
            self.policy, tree, readouts, prefix_cache, counted=prompts
        )
        return found

    @property
    def reads_log_probs(self) -> bool:
        """Whether the policy's log-probs are computed."""
        return True

    def head_readouts(self) -> dict[str, Readout]:
        """Return what heads read, by name."""
        return {name: Outputs(self.heads[name], head.at) for name, head in self.needs.heads.items()}

    def head_outputs(
        self, batch: PreferenceBatch, view: str, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the heads' outputs by name.

        Args:
            batch: the batch.
            view: the view that was read.
            found: what ``head_readouts`` gave.
        """
        return dict(found)

    def _log_probs(
        self, tree: TokenTree, found: Sequence[Tensor], answers: ReferenceAnswers
    ) -> tuple[ResponseLogProbs, TokenNumbers | None]:
        """Return the policy's log-probs, NaN where they weren't read, and numbers per token."""
        if not found:
            return unknown_log_probs(tree), None
        log_probs, *further = found
        numbers = log_probs.unsqueeze(-1) if log_probs.dim() == 3 else log_probs
        tokens = None
        if self.tokens is not None:
            lines = self._lines if self.tokens.steps else None
            tokens = token_numbers(numbers, further, tree, self.tokens, answers, lines)
        return summed(numbers[..., 0], tree), tokens

    def _ask_references(self, batch: PreferenceBatch) -> ReferenceAnswers:
        """Return the references' answers: those that came with the batch, or the ensemble's."""
        if self._references is None or (batch.references and self.reference_tokens is None):
            return ReferenceAnswers(log_probs=batch.references)
        answers = self._references.answer(self, batch)
        batch.references = dict(answers.log_probs)
        return answers

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        """Log the training metrics over the steps since they were last logged."""
        trainer: Any = self.trainer
        step = self.global_step
        every = trainer.log_every_n_steps
        if every and step % every == 0 and step != self._metrics_logged_at:
            self._metrics_logged_at = step
            self._log_metrics("train", {f"train/{name}": value for name, value in self._stats.items()})

    def on_validation_start(self) -> None:
        """Log the evaluation of a checkpoint at its step."""
        self._logged_step.begin(self.trainer, self.restored_step)

    def on_validation_end(self) -> None:
        """Log at the trained steps again."""
        self._logged_step.end()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trained weights only, or the policy's frozen ones too with ``full_checkpoints``."""
        whole: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        frozen = self._own_weights if self.policy_spec.full_checkpoints else ()
        kept = {prefix + name for name in {*frozen, *self._needed_weights()}}
        masters = {prefix + name: master for name, master in self.masters.current().items()}
        return {key: masters.get(key, value) for key, value in whole.items() if key in kept}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the description of method, base model and optimiser, and the run's state."""
        optimizers = self.trainer.optimizers
        save_description(checkpoint, self._description() | describe_optimizer(*optimizers[:1]))
        save_settings(checkpoint, self._optimizer_settings)
        save_objective(checkpoint, self.objective)
        self._objective_state.save(checkpoint, self.trainer)
        self._seeds.save(checkpoint)
        states = {} if self._references is None else self._references.state()
        if states:
            checkpoint[_REFERENCES] = states
        restart_step(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another run's checkpoint."""
        self.restored_step = checkpoint.get("global_step")
        self._seeds.load(checkpoint)
        if self._references is not None:
            states = checkpoint.get(_REFERENCES, {})
            self._references.restore(self, states, training=self._is_fitting)
        self._objective_state.load(checkpoint)
        if self._is_fitting:
            trainer: Any = self.trainer
            rename_monitors(checkpoint)  # Lightning restores the callbacks after the module
            require_averaging(checkpoint, trainer.callbacks)
            compare_objective(checkpoint, self.objective)
            self._saved_settings = saved_settings(checkpoint)
            warn_lost_batches(checkpoint)
        if "state_dict" in checkpoint:
            if self._is_fitting and "optimizer_states" not in checkpoint:
                raise ConfigError(
                    "The checkpoint holds weights only, without the optimiser states to resume from: name "
                    "another one, such as last.ckpt."
                )
            self._check(checkpoint, {name: weight.shape for name, weight in checkpoint["state_dict"].items()})
            if self._is_fitting:
                self.masters.load(checkpoint)
            return
        # Sharded weights have been loaded already, skipping those that aren't in the checkpoint.
        self._look_into(Path(str(self.trainer.ckpt_path)))
        # The data loader exists already, in the order of a first epoch: make Lightning set it up again.
        self.trainer.fit_loop._combined_loader = None

    @float32_by_default()
    def _evaluate(self, batch: PreferenceBatch, stage: str) -> tuple[ScoredBatch, Outcome]:
        check_batch(batch, self.needs, self.needed_by)
        if not self._knows_rows:
            check_scores(self.objective, batch)
        scored = self.score(batch)
        outcome = self._weighted(self.objective(scored), batch)
        suite: Any = self.suites[_key(stage)]
        update(suite, scored, outcome)
        if stage != "train":
            self._measure_sets(stage, batch, scored, outcome)
        for name in outcome.stats:
            if f"{stage}/{name}" in suite:
                raise ContractError(
                    f"{type(self.objective).__name__} logs '{name}', which is the name of a metric: rename "
                    "it in the objective's stats."
                )
        if stage == "train":
            self._stats = outcome.stats
        else:
            for name, value in outcome.stats.items():
                self.log(f"{stage}/{name}", value, batch_size=len(batch), sync_dist=True)
        return scored, outcome

    def _measure_sets(
        self, stage: str, batch: PreferenceBatch, scored: ScoredBatch, outcome: Outcome
    ) -> None:
        """Update the metrics of each named set, on every rank, for which rows of other sets are fillers."""
        for key, suite in self.set_suites.items():
            of_stage, _, name = key.partition("_stage_")
            if of_stage == stage and batch.sets:
                within = torch.tensor([one == name for one in batch.sets], device=scored.present.device)
                update(suite, scored, outcome, within)

    def _weighted(self, outcome: Outcome, batch: PreferenceBatch) -> Outcome:
        """Multiply the loss of each prompt by the weight of its row, unless the objective reads it itself."""
        weights = batch.columns.get(WEIGHT)
        if not isinstance(weights, Tensor) or WEIGHT in self.objective.needs.columns:
            return outcome
        weights = weights.nan_to_num(nan=1.0).to(outcome.loss)  # a row without a weight counts once
        return dataclasses.replace(outcome, loss=outcome.loss * weights)

    def _score_view(
        self, batch: PreferenceBatch, name: str, prefix_cache: PrefixCache | None
    ) -> ViewLogProbs:
        tree = batch.trees[name]
        present = tree.response_mask.any(dim=-1) & batch.present.any(dim=-1, keepdim=True)
        references = batch.references.get(name, batch.scores.new_empty((0, *present.shape)))
        if name in self.needs.trained_views:
            log_probs, outputs = self._read_view(batch, name, None)  # a prefix cache has no gradient
        else:
            with torch.no_grad(), evaluating(self.policy):  # an offset should not depend on dropout
                log_probs, outputs = self._read_view(batch, name, prefix_cache)
        return ViewLogProbs(policy=log_probs, references=references, present=present, outputs=outputs)

    def _read_view(
        self, batch: PreferenceBatch, name: str, prefix_cache: PrefixCache | None
    ) -> tuple[ResponseLogProbs, dict[str, Tensor]]:
        """Return a second view's log-probs, NaN where they aren't read, and the outputs of heads on it."""
        tree, readouts = batch.trees[name], self.head_readouts()
        first: list[Readout] = [LogProbs()] if self.reads_log_probs else []
        found = self.scorer.read(self.policy, tree, [*first, *readouts.values()], prefix_cache)
        outputs = self.head_outputs(batch, name, dict(zip(readouts, found[len(first) :], strict=True)))
        return summed(found[0], tree) if first else unknown_log_probs(tree), outputs

    def _log_metrics(self, stage: str, others: Mapping[str, Tensor] = _NOTHING) -> None:
        """Log the metrics' values, leaving out NaN: where values were counted, with a warning."""
        values: dict[str, Tensor] = dict(others)
        for suite in self._suites(stage):
            values |= suite.compute()
        suites = self._suites(stage)
        counts = {name: getattr(metric, "count", 0) for suite in suites for name, metric in suite.items()}
        self._forget_metrics(stage)
        shown = {f"{stage}/{info.name}" for info in self.metric_info if info.progress_bar}
        # Lightning reads the progress bar's values at every step, even when they haven't changed. On a GPU it
        # would synchronise each time, so all values are copied to the CPU here, at once.
        numbers = torch.stack([value.float() for value in values.values()]).cpu()
        for name, number in zip(values, numbers, strict=True):
            if not torch.isnan(number):
                self.log(name, number, prog_bar=name in shown, batch_size=1)
            elif counts.get(name, 0) > 0:
                warn_undefined(name)

    def _take_found_lr(self) -> None:
        if self._found_lr is not None:
            optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
            set_base_rate(optimizer, scheduler, self._found_lr)
            self._found_lr = None

    def _forget_metrics(self, stage: str) -> None:
        for suite in self._suites(stage):
            suite.reset()

    def logged_in(self, stage: str) -> list[str]:
        """Return the names of the metrics of a stage, with those of its named sets."""
        return [name for suite in self._suites(stage) for name in suite]

    def _suites(self, stage: str) -> list[Any]:
        """Return the metrics of all rows of a stage, and those of its named sets."""
        of_sets = (suite for key, suite in self.set_suites.items() if key.startswith(f"{_key(stage)}_"))
        return [self.suites[_key(stage)], *of_sets]

    def _look_into(self, path: Path) -> None:
        """Refuse an incompatible checkpoint before Lightning loads it into sharded weights by itself."""
        if self.device_mesh is None:
            refuse_shards(path)
            return
        head = read_head(path)
        self._check(head.rest, head.shapes)

    def _check(self, checkpoint: dict[str, Any], shapes: Mapping[str, torch.Size]) -> None:
        needed = self._needed_weights()
        known = self._own_weights | needed.keys()
        description = self._description()
        if self._is_fitting:
            description |= describe_optimizer(self._try_optimizer())
        check_fits(checkpoint, shapes, description, needed=needed, known=known)

    def _needed_weights(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, by name: trained weights, and the buffers of reward heads."""
        buffers = {
            f"{place}.{name}": buffer
            for place, part in self.named_modules()
            if isinstance(part, Head)
            for name, buffer in part.state_dict().items()
        }
        return {**buffers, **trained_weights(self)}

    def _try_optimizer(self) -> torch.optim.Optimizer:
        """Create the optimiser for a dummy weight, so that wrong settings fail before a model is loaded."""
        try:
            return self.make_optimizer([nn.Parameter(torch.zeros(1, 1))])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.init_args.optimizer refuses its settings: {error}") from error

    @property
    def _is_fitting(self) -> bool:
        """Whether the optimiser is needed: to validate or predict, weights suffice."""
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _description(self) -> dict[str, str]:
        identity = (self._base_identity, self._adapter_identity)
        return describe(type(self.objective).__name__, self.policy_spec, *identity)


def _with_fast_layers(make: Make) -> Make:
    return lambda spec: with_fast_layers(make(spec), spec)


def _key(stage: str) -> str:
    """Return the key of a suite, given ``train``, or ``val/helpful`` for a named set."""
    # nn.ModuleDict refuses the key "train", which is a method's name.
    stage, slash, name = stage.partition("/")
    return f"{stage}_stage_{name}" if slash else f"{stage}_stage"
