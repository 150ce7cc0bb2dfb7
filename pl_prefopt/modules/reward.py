"""Reward models: a head on the policy's hidden states."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_prefopt.data import row_source
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.heads import Head, ScalarHead
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.checkpoint_files import read_head
from pl_prefopt.modules.head_updates import check_epochs, scored_anew
from pl_prefopt.modules.hidden_states import FOLDER, HiddenStateTables
from pl_prefopt.modules.output_heads import check_no_scalars
from pl_prefopt.modules.reward_folders import (
    check_same_head,
    check_same_model,
    check_same_rendering,
    describe_head,
    read_head_of,
)
from pl_prefopt.modules.reward_outputs import reward_outputs
from pl_prefopt.objectives import Needs, Objective
from pl_prefopt.policies import PolicySpec, build_frozen, build_policy, sketch_frozen, sketch_policy
from pl_prefopt.references import ReferenceAnswers
from pl_prefopt.requests import REWARD, HeadKind
from pl_prefopt.scoring import (
    EndStates,
    Readout,
    base_model,
    evaluating,
    unknown_log_probs,
)
from pl_prefopt.types import PLAIN, PreferenceBatch, ScoredBatch

_LAST, _PROMPT = "last states", "prompt states"
LEARNED = "pl_prefopt_reward_head"
Truncated: TypeAlias = Literal["warn", "refuse"]


class RewardModule(PreferenceModule):
    """Trains a reward model: a head that reads the hidden state at the last token of each response.

    The model computes no logits, unless a part of the objective reads log-probs. Output embeddings that the
    model doesn't share with its input are then not trained.

    Args:
        policy: the model under the head.
        objective: the loss, of rewards.
        reward_head: from hidden states to rewards; ``ScalarHead`` by default.
        truncated_responses: what to do where responses are truncated, so that they have no end token and the
            head reads another token in its place: ``warn`` counts them, ``refuse`` raises.
        freeze_policy: train the head alone, on hidden states that are computed once for all rows.
        states_dir: where these are kept, a folder per model.
        head_from: a folder that `prefopt export` wrote of a reward model, whose head training starts with;
            its model is named in ``policy.name``. ``None`` for a new head.
        options: the same for all families, see ``PreferenceModule``.

    Raises:
        ConfigError: if a setting is unknown.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        reward_head: Head | None = None,
        truncated_responses: Truncated = "warn",
        freeze_policy: bool = False,
        states_dir: str = FOLDER,
        head_from: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(policy, objective, **options)
        self.head_from = head_from
        self.freeze_policy = freeze_policy
        head = ScalarHead() if reward_head is None else reward_head
        self._unbuilt = (head,)  # a part of the module only when it has weights
        self.truncated_responses = truncated_responses
        self.needs = Needs.of_all(self.needs, Needs(columns=head.columns, log_probs=False))
        self._states = HiddenStateTables(states_dir, prompts=head.reads_prompt)
        if freeze_policy:
            _check_frozen(policy, objective)
            if self.router_aux_loss_coef is not None:
                raise ConfigError("`freeze_policy` trains no router: remove `router_aux_loss_coef`.")

    @property
    def reward_head(self) -> Head:
        """The head."""
        return self._unbuilt[0]

    @property
    def reward_outputs(self) -> int | None:  # type: ignore[override]
        """The number of the head's outputs."""
        return self.reward_head.outputs

    @property
    def reward_kind(self) -> HeadKind:  # type: ignore[override]
        """What the head's outputs are."""
        return self.reward_head.gives

    @property
    def _updates_head(self) -> bool:
        """Whether the head has an update between epochs."""
        return type(self.reward_head).update is not Head.update

    @property
    def reads_log_probs(self) -> bool:
        """Whether the objective reads the policy's log-probs."""
        return self.needs.log_probs or self.tokens is not None

    def needed_by(self, column: str) -> str:
        """Return the class that needs a column of the rows: the head's, the objective's, or a metric's."""
        head = self.reward_head
        return type(head).__name__ if column in head.columns else super().needed_by(column)

    def setup(self, stage: str) -> None:
        """Check that head and rows are compatible, too."""
        if stage == "fit" and self._updates_head:
            name = type(self.reward_head).__name__
            check_epochs(self.trainer, 1, f"{name} is updated before every epoch except the first")
        if stage == "fit":
            _check_temperature(self.reward_head, self.objective)
        super().setup(stage)
        if self.head_from is not None:
            check_same_head(Path(self.head_from), self.reward_head)
            check_same_model(Path(self.head_from), self.policy_spec)
        source = row_source(self.trainer)
        datasets = {} if source is None else source.datasets
        if self.head_from is not None and "train" in datasets:
            train = datasets["train"]
            check_same_rendering(Path(self.head_from), train.renderer, list(islice(train.rows, 8)))
        for split, dataset in datasets.items():
            summary = dataset.summary
            check_truncated(split, summary.truncated_responses, summary.responses, self.truncated_responses)
        self._learn({split: dataset.rows for split, dataset in datasets.items()}, fitting=stage == "fit")
        if self.device_mesh is not None and next(self.reward_head.parameters(), None) is None:
            trial = copy.deepcopy(self.reward_head)
            with torch.random.fork_rng(devices=[]):
                trial.build(1)  # whatever the model's hidden size, which isn't known yet
            check_no_scalars(trial)

    def load_policy(self) -> nn.Module:
        """Return the model under the head."""
        build = partial(build_frozen if self.freeze_policy else build_policy, logits=self.reads_log_probs)
        return self.load(self.policy_spec, build, sketch_frozen if self.freeze_policy else sketch_policy)

    def sketch_policy(self) -> nn.Module:
        """Return the model under the head on the meta device."""
        return sketch_frozen(self.policy_spec) if self.freeze_policy else super().sketch_policy()

    def score_with(self, batch: PreferenceBatch, answers: ReferenceAnswers) -> ScoredBatch:
        """Return the values that the objective needs: of a frozen policy's states, those that are kept."""
        if not self.freeze_policy:
            return super().score_with(batch, answers)
        last, prompt = self._frozen_states(batch)
        present = batch.trees[PLAIN].response_mask.any(dim=-1)
        outputs = reward_outputs(self.reward_head, present, last, prompt, batch.columns)
        return ScoredBatch(
            policy=unknown_log_probs(batch.trees[PLAIN]),
            references=batch.scores.new_empty((0, *batch.scores.shape)),
            scores=batch.scores,
            present=batch.present,
            graded=batch.graded,
            outputs={REWARD: outputs},
            columns={name: batch.columns[name] for name in self.needs.columns if name in batch.columns},
        )

    def _frozen_states(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor | None]:
        """Return kept states of a batch, or computed ones where the rows aren't known."""
        source = None if self._trainer is None else row_source(self.trainer)
        if source is None or batch.split not in source.datasets:
            states = self._read_states(batch)
            return (states[:, 1:], states[:, 0]) if self.reward_head.reads_prompt else (states, None)
        if not self._states.has(batch.split):
            precision = str(self.trainer.precision)
            suffix = "" if precision == "32-true" else f"-{precision}"
            model = f"{self.policy_spec.fingerprint}{suffix}"
            self._states.prepare(source.datasets[batch.split], model, self._states_to_keep, self.trainer)
        return self._states.of(batch)

    @torch.no_grad()
    def _read_states(self, batch: PreferenceBatch) -> Tensor:
        """Return [B, R, H] of the responses' ends, after the prompt's if the head reads it."""
        readouts = list(self.own_readouts().values())
        with evaluating(self.policy):
            last, *prompt = self.scorer.read(self.policy, batch.trees[PLAIN], readouts)
        return torch.cat([prompt[0].unsqueeze(1), last], dim=1) if prompt else last

    def _states_to_keep(self, batch: PreferenceBatch) -> Tensor:
        """Return the states as a table has them, float32, NaN where a response is absent."""
        states, absent = self._read_states(batch).float(), ~batch.trees[PLAIN].response_mask.any(dim=-1)
        if self.reward_head.reads_prompt:
            absent = torch.cat([absent.new_zeros(len(absent), 1), absent], dim=1)
        return states.masked_fill(absent.unsqueeze(-1), torch.nan)

    def build_heads(self, policy: nn.Module) -> nn.ModuleDict:
        """Return the heads on the policy's hidden states, the reward head among them."""
        if not self.reads_log_probs:
            freeze_output_embeddings(policy)
        heads = super().build_heads(policy)
        heads[REWARD] = self._built_head(policy)
        if self.head_from is not None:
            saved, _ = read_head_of(Path(self.head_from), _hidden_size(policy))
            self.reward_head.load_state_dict(saved.state_dict())
        return heads

    def _built_head(self, policy: nn.Module) -> Head:
        """Return the head with new weights, for what it has learned from rows."""
        head = self.reward_head
        head.build(_hidden_size(policy))
        if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in head.parameters()):
            head.float()  # Lightning's ``bf16-true`` creates weights in half precision
        return head.to(next(policy.parameters()).device)

    def head_readouts(self) -> dict[str, Readout]:
        """Return what heads read, by name."""
        return {**super().head_readouts(), **self.own_readouts()}

    def own_readouts(self) -> dict[str, Readout]:
        """Return what the reward head reads, responses first."""
        own: dict[str, Readout] = {_LAST: EndStates("response")}
        if self.reward_head.reads_prompt:
            own[_PROMPT] = EndStates("prompt")
        return own

    def head_outputs(
        self, batch: PreferenceBatch, view: str, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the heads' outputs, with those of the reward head for what it reads."""
        others = {name: values for name, values in found.items() if name not in (_LAST, _PROMPT)}
        present = batch.trees[view].response_mask.any(dim=-1)
        rewards = reward_outputs(self.reward_head, present, found[_LAST], found.get(_PROMPT), batch.columns)
        return {**others, REWARD: rewards}

    def on_train_epoch_start(self) -> None:
        """Let the head change what no gradient trains, from the second epoch on."""
        source, update = row_source(self.trainer), self.reward_head.update
        if self._updates_head and self.current_epoch and source is not None:
            size = max(1, round(source.prompts_per_batch))
            update(scored_anew(self, self.trainer, source.datasets["train"], size))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the head took from the training rows, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[LEARNED] = self.reward_head.learned

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the head for what it has learned in the checkpoint's run, if setup couldn't know that."""
        described = checkpoint.get("pl_prefopt", {}).get("model.reward_head")
        if described == describe_head(self.reward_head):  # another head is refused below
            self._adopt(checkpoint.get(LEARNED) or {})
        super().on_load_checkpoint(checkpoint)

    def _adopt(self, learned: Mapping[str, Any]) -> None:
        """Take what the head of a checkpoint has learned, and check the rows against it."""
        head = self.reward_head
        if learned == head.learned or not self._is_told(learned):
            return
        if self.device_mesh is not None:
            raise ConfigError(
                f"The {type(head).__name__} of the checkpoint has learned from other rows than this run's: "
                "use the same training rows, or start the run from the command line."
            )
        head.learned = learned
        self._built_head(self.policy)
        source = None if self._trainer is None else row_source(self.trainer)
        for split, dataset in ({} if source is None else source.datasets).items():
            head.check_rows(split, dataset.rows)

    def _learn(self, rows: Mapping[str, Sequence[Any]], *, fitting: bool) -> None:
        """Let the head see the rows, unless it has learned from those of the checkpoint's run."""
        head = self.reward_head
        path = self.restored_from or self.trainer.ckpt_path
        if type(head).learned is not Head.learned:
            held = read_head(Path(path)).rest.get(LEARNED) or {} if path else None
            if held is not None and self._is_told(held):
                head.learned = held
            elif fitting and "train" in rows:
                head.learn(rows["train"])
        if fitting:
            head.check_trainable()
        for split, some in rows.items():
            head.check_rows(split, some)

    def _is_told(self, learned: Mapping[str, Any]) -> bool:
        """Whether a checkpoint says what its head has learned, which may be nothing.

        A head that learns from rows always has something, but checkpoints of early versions don't say it.
        """
        return bool(learned) or type(self.reward_head).learn is Head.learn

    def _description(self) -> dict[str, str]:
        return super()._description() | {"model.reward_head": describe_head(self.reward_head)}


def check_truncated(split: str, truncated: int, responses: int, handling: Truncated) -> None:
    """Warn about truncated responses, or refuse them.

    Args:
        split: what responses they are.
        truncated: the number of truncated responses.
        responses: that of all.
        handling: ``truncated_responses`` of ``RewardModule``.

    Raises:
        DataError: if there are some and they are refused.
    """
    if not truncated:
        return
    found = (
        f"{truncated} of {responses} {split} responses are truncated by data.max_response_length and "
        "have no end token, so that the reward head reads another token"
    )
    if handling == "refuse":
        raise DataError(
            f"{found}: raise data.max_response_length, remove these rows, or set "
            "model.init_args.truncated_responses to 'warn'."
        )
    rank_zero_warn(f"{found}: raise data.max_response_length, or remove these rows.")


def _check_frozen(policy: PolicySpec, objective: Objective) -> None:
    """Refuse what a frozen policy can't do."""
    if policy.lora is not None:
        raise ConfigError(
            "model.init_args.freeze_policy trains the head alone, but policy.lora describes an adapter to "
            "train: set policy.lora to null."
        )
    needs = objective.needs
    if needs.log_probs or needs.tokens is not None or needs.views or needs.heads:
        raise ConfigError(
            f"model.init_args.freeze_policy keeps hidden states at the ends of responses, but "
            f"{type(objective).__name__} reads more: set freeze_policy to false."
        )


def _check_temperature(head: Head, objective: Objective) -> None:
    """Refuse to divide by a learned temperature and by the objective's own."""
    if not getattr(head, "learned_temperature", False):
        return
    for part in objective.modules():
        own = getattr(getattr(part, "score", None), "temperature", 1.0)
        if own != 1.0:
            raise ConfigError(
                f"The {type(head).__name__} learns a temperature, and {type(part).__name__} divides by its "
                f"own, {own:g}: set the objective's temperature to 1, or learned_temperature to false."
            )


def _hidden_size(policy: nn.Module) -> int:
    size: int = base_model(policy).config.get_text_config().hidden_size
    return size


def freeze_output_embeddings(policy: nn.Module) -> None:
    """Stop training weights that take no part: DDP would wait for their gradients in vain."""
    base: Any = base_model(policy)
    output, shared = base.get_output_embeddings(), {id(weight) for weight in base.base_model.parameters()}
    if output is None:
        return
    for weight in output.parameters():
        if id(weight) not in shared:
            weight.requires_grad_(requires_grad=False)
