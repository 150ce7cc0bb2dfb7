"""Sample generations of the policy, before training and now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from pl_prefopt.callbacks.publishing import TextTable, publish_table
from pl_prefopt.data import PreferenceDataModule, datamodule_of
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.generation import end_token_ids, room
from pl_prefopt.rows import Message
from pl_prefopt.scoring import evaluating

COLUMNS = ("prompt", "before", "now")
_SHARDING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


class Generations(Callback):
    """Logs greedy answers to fixed prompts at each validation of a ``fit``, next to those before training.

    The answers from before training are saved in checkpoints, so that a resumed run still has them. Training
    isn't affected: random numbers and the mode of every submodule are restored. With several ranks, rank 0
    generates while the others wait. With sharded weights (FSDP, DeepSpeed, tensor parallelism) nothing is
    generated, and a message says so once.

    Args:
        prompts: the texts of a user turn; by default the first prompts of the validation rows.
        held_out: the number of prompts to take from the validation rows where ``prompts`` is not set.
        max_new_tokens: the maximum number of tokens per answer.

    Raises:
        ConfigError: if a number is below 1.
    """

    def __init__(
        self, prompts: list[str] | None = None, *, held_out: int = 3, max_new_tokens: int = 64
    ) -> None:
        for name, value in (("held_out", held_out), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(
                    f"Expected Generations.{name} to be at least 1, got {value}: to generate nothing, "
                    "add `--default_callbacks.Generations false`."
                )
        self.prompts, self.held_out, self.max_new_tokens = prompts, held_out, max_new_tokens
        self._before: dict[str, str] = {}
        self._writes = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check for a data module and whole weights before any model loads."""
        if stage != "fit":
            return
        if not isinstance(_datamodule(trainer), PreferenceDataModule):
            raise ContractError(
                "Generations takes its prompts and its tokeniser from a PreferenceDataModule: pass one to "
                "`Trainer.fit(..., datamodule=...)`, or take Generations out of trainer.callbacks."
            )
        sharded = isinstance(trainer.strategy, _SHARDING)
        if sharded and trainer.is_global_zero:
            print(
                f"There will be no sample generations: under {type(trainer.strategy).__name__} no process "
                "has all the weights."
            )
        self._writes = trainer.is_global_zero and not sharded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate the answers before training, unless they were loaded from a checkpoint."""
        if not self._writes or not trainer.enable_validation or "val" not in _datamodule(trainer).datasets:
            return
        dialogues = self._dialogues(trainer)
        missing = {shown: prompt for shown, prompt in dialogues.items() if shown not in self._before}
        if missing and trainer.global_step:
            print(
                f"The checkpoint has no texts from before training: 'before' is step {trainer.global_step}."
            )
        self._before |= self._answers(trainer, pl_module, missing)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate and log the current answers."""
        if not self._writes or trainer.state.fn != "fit" or not trainer.global_step:
            return  # before the first step they are those from before training
        now = self._answers(trainer, pl_module, self._dialogues(trainer))
        table = TextTable(COLUMNS, [(shown, self._before[shown], text) for shown, text in now.items()])
        for logger in trainer.loggers:
            publish_table(logger, "generations", table, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the answers from before training, by prompt."""
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the answers from before training."""
        self._before = dict(state_dict["before"])

    def _dialogues(self, trainer: Trainer) -> dict[str, tuple[Message, ...]]:
        """Return the prompts by how they are shown."""
        if self.prompts is not None:
            return {prompt: (Message("user", prompt),) for prompt in self.prompts}
        found: dict[str, tuple[Message, ...]] = {}
        for row in _datamodule(trainer).datasets["val"].rows:
            found.setdefault(_shown(row.prompt), row.prompt)
            if len(found) == self.held_out:
                break
        return found

    def _answers(
        self, trainer: Trainer, module: LightningModule, dialogues: dict[str, tuple[Message, ...]]
    ) -> dict[str, str]:
        policy: Any = module.policy
        renderer = _datamodule(trainer).renderer
        answers = {}
        # Lightning enters the precision context around a step only, not around its hooks.
        with _undisturbed(policy, module.device), trainer.precision_plugin.forward_context():
            for shown, dialogue in dialogues.items():
                prompt = renderer.encode_prompt(dialogue)[-room(policy, self.max_new_tokens) :]
                ids = torch.tensor([prompt], device=module.device)
                output = policy.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=self._settings(policy, renderer.end_token_id),
                )
                answers[shown] = renderer.decode(output[0, len(prompt) :].tolist())
        return answers

    def _settings(self, policy: Any, end: int) -> Any:
        """Return greedy decoding that ends where the policy's own or the template's end token is."""
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=end_token_ids(policy, end),
            pad_token_id=end,
        )


def _datamodule(trainer: Trainer) -> Any:
    return datamodule_of(trainer)


def _shown(prompt: Sequence[Message]) -> str:
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


@contextmanager
def _undisturbed(policy: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore modes and random number states on exit."""
    own = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=own), evaluating(policy):
        yield
