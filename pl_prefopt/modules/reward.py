"""Reward models: a head on the policy's hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_prefopt.data import row_source
from pl_prefopt.errors import ContractError, DataError
from pl_prefopt.heads import Head, ScalarHead
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.checkpoint_files import read_head
from pl_prefopt.modules.head_updates import scored_anew
from pl_prefopt.objectives import Needs, Objective
from pl_prefopt.policies import PolicySpec
from pl_prefopt.requests import REWARD
from pl_prefopt.scoring import (
    EndStates,
    LogProbs,
    PrefixCache,
    Readout,
    base_model,
    summed,
    unknown_log_probs,
)
from pl_prefopt.types import PreferenceBatch, ResponseLogProbs

_LAST, _PROMPT = "last states", "prompt states"
_LEARNED = "pl_prefopt_reward_head"


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
        options: the same for all families, see ``PreferenceModule``.

    Raises:
        ConfigError: if a setting is unknown.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        reward_head: Head | None = None,
        truncated_responses: Literal["warn", "refuse"] = "warn",
        **options: Any,
    ) -> None:
        super().__init__(policy, objective, **options)
        head = ScalarHead() if reward_head is None else reward_head
        self._unbuilt = (head,)  # a part of the module only when it has weights
        self.truncated_responses = truncated_responses
        self.needs = Needs.of_all(self.needs, Needs(columns=head.columns, log_probs=False))

    @property
    def reward_head(self) -> Head:
        """The head."""
        return self._unbuilt[0]

    @property
    def reward_outputs(self) -> int | None:  # type: ignore[override]
        """The number of the head's outputs."""
        return self.reward_head.outputs

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
        super().setup(stage)
        source = row_source(self.trainer)
        datasets = {} if source is None else source.datasets
        for split, dataset in datasets.items():
            summary = dataset.summary
            self._check_truncated(split, summary.truncated_responses, summary.responses)
        self._learn({split: dataset.rows for split, dataset in datasets.items()}, fitting=stage == "fit")

    def build_heads(self, policy: nn.Module) -> nn.ModuleDict:
        """Return the heads on the policy's hidden states, the reward head among them."""
        if not self.reads_log_probs:
            _freeze_output_embeddings(policy)
        heads = super().build_heads(policy)
        head = self.reward_head
        head.build(base_model(policy).config.get_text_config().hidden_size)
        if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in head.parameters()):
            head.float()  # Lightning's ``bf16-true`` creates weights in half precision
        heads[REWARD] = head.to(next(policy.parameters()).device)
        return heads

    def head_readouts(self) -> dict[str, Readout]:
        """Return what heads read, by name."""
        own: dict[str, Readout] = {_LAST: EndStates("response")}
        if self.reward_head.reads_prompt:
            own[_PROMPT] = EndStates("prompt")
        return {**super().head_readouts(), **own}

    def head_outputs(
        self, batch: PreferenceBatch, view: str, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the heads' outputs, with those of the reward head for what it reads."""
        others = {name: values for name, values in found.items() if name not in (_LAST, _PROMPT)}
        present = batch.trees[view].response_mask.any(dim=-1)
        return {**others, REWARD: self.rewards(batch, present, found[_LAST], found.get(_PROMPT))}

    def rewards(self, batch: PreferenceBatch, present: Tensor, last: Tensor, prompt: Tensor | None) -> Tensor:
        """Return the reward head's outputs, [B, R, J] in float32 or better, 0 where a response is absent.

        Args:
            batch: the batch.
            present: bool [B, R].
            last: [B, R, H], the hidden states at the responses' last tokens.
            prompt: [B, H], those at the prompts' last tokens, if the head reads them.
        """
        head, (rows, responses) = self.reward_head, present.shape
        dtype = next((weight.dtype for weight in head.parameters()), last.dtype)
        flat = last.flatten(0, 1).to(dtype)
        of_prompt = flat[:, :0] if prompt is None else prompt.to(dtype).repeat_interleave(responses, dim=0)
        columns = {name: self._column(batch, name, responses) for name in head.columns}
        with torch.autocast(last.device.type, enabled=False):
            outputs: Tensor = head(flat, of_prompt, columns)
        if outputs.shape != (rows * responses, head.outputs):
            raise ContractError(
                f"{type(head).__name__} gave outputs of the shape {list(outputs.shape)}, expected "
                f"{[rows * responses, head.outputs]}: correct its `outputs` or its `forward`."
            )
        return outputs.view(rows, responses, -1).masked_fill(~present.unsqueeze(-1), 0.0)

    def on_train_epoch_start(self) -> None:
        """Let the head change what no gradient trains, from the second epoch on."""
        source, update = row_source(self.trainer), self.reward_head.update
        if type(self.reward_head).update is not Head.update and self.current_epoch and source is not None:
            size = max(1, round(source.prompts_per_batch))
            update(scored_anew(self, self.trainer, source.datasets["train"], size))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the head took from the training rows, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_LEARNED] = self.reward_head.learned

    def _column(self, batch: PreferenceBatch, name: str, responses: int) -> Tensor:
        """Return a column's value for each response, [B · R]."""
        values = batch.columns[name]
        if isinstance(values, Tensor):
            return values.repeat_interleave(responses, dim=0) if values.dim() == 1 else values.flatten(0, 1)
        flat: list[str | None] = []
        for value in values:
            flat += value if isinstance(value, tuple) else [value] * responses
        return self.reward_head.encode(name, flat).to(batch.index.device)

    def _read_view(
        self, batch: PreferenceBatch, name: str, prefix_cache: PrefixCache | None
    ) -> tuple[ResponseLogProbs, dict[str, Tensor]]:
        tree, readouts = batch.trees[name], self.head_readouts()
        first: list[Readout] = [LogProbs()] if self.reads_log_probs else []
        found = self.scorer.read(self.policy, tree, [*first, *readouts.values()], prefix_cache)
        outputs = self.head_outputs(batch, name, dict(zip(readouts, found[len(first) :], strict=True)))
        return summed(found[0], tree) if first else unknown_log_probs(tree), outputs

    def _learn(self, rows: Mapping[str, Sequence[Any]], *, fitting: bool) -> None:
        """Let the head see the rows, unless it has learned from those of the checkpoint's run."""
        head = self.reward_head
        path = self.restored_from or self.trainer.ckpt_path
        if type(head).learn is not Head.learn:
            held = read_head(Path(path)).rest.get(_LEARNED) if path else None
            if held is not None:
                head.learned = held
            elif fitting and "train" in rows:
                head.learn(rows["train"])
        for split, some in rows.items():
            head.check_rows(split, some)

    def _check_truncated(self, split: str, truncated: int, responses: int) -> None:
        if not truncated:
            return
        found = (
            f"{truncated} of {responses} {split} responses are truncated by data.max_response_length and "
            "have no end token, so that the reward head reads another token"
        )
        if self.truncated_responses == "refuse":
            raise DataError(
                f"{found}: raise data.max_response_length, remove these rows, or set "
                "model.init_args.truncated_responses to 'warn'."
            )
        rank_zero_warn(f"{found}: raise data.max_response_length, or remove these rows.")

    def _description(self) -> dict[str, str]:
        return super()._description() | {"model.reward_head": describe_head(self.reward_head)}


def describe_head(head: Head) -> str:
    """Return a head's class and settings, as JSON."""
    kind = type(head)
    settings = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": head.settings()}
    return json.dumps(settings, sort_keys=True, default=str)


def _freeze_output_embeddings(policy: nn.Module) -> None:
    """Stop training weights that take no part: DDP would wait for their gradients in vain."""
    base: Any = base_model(policy)
    output, shared = base.get_output_embeddings(), {id(weight) for weight in base.base_model.parameters()}
    if output is None:
        return
    for weight in output.parameters():
        if id(weight) not in shared:
            weight.requires_grad_(requires_grad=False)
