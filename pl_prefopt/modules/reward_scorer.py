"""A trained reward model as a scorer of rows: for judges, best-of-n and labelling."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.data import Renderer, collate
from pl_prefopt.errors import ContractError
from pl_prefopt.heads import Head
from pl_prefopt.modules.reward import RewardModule
from pl_prefopt.modules.reward_folders import read_head_of
from pl_prefopt.modules.reward_outputs import read_outputs
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.policies.spec import Dtype
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.scoring import LayoutName, Scorer, evaluating


class RewardScorer:
    """Gives each response of a row its reward; each prompt is computed once for all its responses.

    Args:
        policy: the model under the head.
        head: a head with its weights.
        renderer: turns rows into tokens.
        layout: how prompts and their responses are laid out, see ``Scorer``.

    Examples:
        An exported reward model as a scorer:

        ```python
        scorer = RewardScorer.load("runs/rm/model")
        row = PreferenceRow(prompt=(Message("user", "2 + 2?"),), responses=((Message("assistant", "4"),),))
        scorer.rewards([row])  # [[1.73]]
        ```
    """

    def __init__(
        self, policy: nn.Module, head: Head, renderer: Renderer, layout: LayoutName = "auto"
    ) -> None:
        self.policy, self.head, self.renderer = policy, head, renderer
        self._scorer = Scorer(layout)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: Dtype = "auto"
    ) -> RewardScorer:
        """Load a folder that `prefopt export` wrote of a reward model.

        Args:
            folder: the folder.
            device: where to compute.
            dtype: of the model's weights; the saved ones' by default.

        Raises:
            ConfigError: if it is no such folder.
        """
        spec = PolicySpec(name=str(folder), dtype=dtype)
        loading = logging.getLogger("transformers.modeling_utils")
        level = loading.level
        loading.setLevel(logging.ERROR)  # a classifier has no output embeddings, and none are used
        try:
            policy: Any = build_frozen(spec, logits=False)
        finally:
            loading.setLevel(level)
        head, settings = read_head_of(Path(folder), policy.config.get_text_config().hidden_size)
        settings.pop("end_token_id")
        arguments = settings.pop("template_arguments", None)
        renderer = Renderer(spec.load_tokenizer(), arguments=arguments, **settings)
        return cls(policy.to(device), head.to(device).eval(), renderer)

    @classmethod
    def of(cls, module: RewardModule, renderer: Renderer) -> RewardScorer:
        """Return a scorer with a module's policy and head, which may be in training.

        Args:
            module: the module, with its policy loaded.
            renderer: such as a dataset's.
        """
        return cls(module.policy, module.reward_head, renderer)

    def rewards(self, rows: Sequence[PreferenceRow], *, batch_size: int = 8) -> list[list[float]]:
        """Return the reward of each response of each row.

        Args:
            rows: the rows, with at least one response each.
            batch_size: rows per forward pass.

        Raises:
            ContractError: if the head has several outputs; see ``outputs``.
        """
        if self.head.outputs != 1:
            raise ContractError(
                f"{type(self.head).__name__} has {self.head.outputs} outputs per response, so that there is "
                "no single reward: call RewardScorer.outputs."
            )
        return [values.squeeze(-1).tolist() for values in self.outputs(rows, batch_size=batch_size)]

    @torch.no_grad()
    def outputs(self, rows: Sequence[PreferenceRow], *, batch_size: int = 8) -> list[Tensor]:
        """Return the head's outputs for each row, float32 [R, J], on the CPU."""
        found: list[Tensor] = []
        with evaluating(self.policy):
            for start in range(0, len(rows), batch_size):
                found += self._score(rows[start : start + batch_size])
        return found

    def _score(self, rows: Sequence[PreferenceRow]) -> list[Tensor]:
        device = next(self.policy.parameters()).device
        tree = collate([self.renderer.encode(row) for row in rows]).to(device)
        responses = tree.response_mask.shape[1]
        columns = {name: self._column(rows, name, responses, device) for name in self.head.columns}
        outputs = read_outputs(self._scorer, self.policy, self.head, tree, columns).cpu()
        return [values[: len(row.responses)] for values, row in zip(outputs, rows, strict=True)]

    def _column(
        self, rows: Sequence[PreferenceRow], name: str, responses: int, device: torch.device
    ) -> Tensor | tuple[Any, ...]:
        """Return a column of the rows, as ``PreferenceBatch.columns`` has it."""
        missing = [row for row in rows if row.columns.get(name) is None]
        if missing:
            raise ContractError(
                f"{type(self.head).__name__} needs the column '{name}', but {missing[0].origin or 'a row'} "
                "has no value: add it to PreferenceRow.columns."
            )
        values = [row.columns[name] for row in rows]
        wide: list[Any] = [
            (*value, *[value[0]] * (responses - len(value))) if isinstance(value, tuple) else value
            for value in values
        ]
        first = wide[0][0] if isinstance(wide[0], tuple) else wide[0]
        return tuple(wide) if isinstance(first, str) else torch.tensor(wide, device=device)
