"""A reference that is a model of its own, perhaps with another architecture and tokeniser."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pl_prefopt.data import Renderer
from pl_prefopt.errors import ContractError
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.references.base import Datasets, PolicyHost, Reference
from pl_prefopt.scoring import Scorer
from pl_prefopt.types import PreferenceBatch, TokenTree


class FrozenModel(Reference):
    """A frozen causal language model.

    Where its tokeniser and template are the policy's, the policy's tokens are reused; otherwise each row's
    text is rendered and tokenised anew. Only sums over a response compare between tokenisers.

    Args:
        model: the model.
        template: how its prompts are rendered, as ``data.template``.
        max_prompt_length: in its own tokens.
        max_response_length: in its own tokens.
    """

    def __init__(
        self,
        model: PolicySpec,
        template: Literal["auto", "chat", "plain", "none"] = "auto",
        max_prompt_length: int | None = None,
        max_response_length: int | None = None,
    ) -> None:
        self.spec = model
        self.template = template
        self.max_prompt_length = max_prompt_length
        self.max_response_length = max_response_length
        self.scorer = Scorer()
        self.model: nn.Module | None = None
        self._datasets: Datasets = {}
        self._renderer: Renderer | None = None

    @property
    def renderer(self) -> Renderer:
        """How this model reads a row."""
        if self._renderer is None:
            self._renderer = Renderer(
                self.spec.load_tokenizer(),
                template=self.template,
                max_prompt_length=self.max_prompt_length,
                max_response_length=self.max_response_length,
            )
        return self._renderer

    def fingerprint(self, policy: PolicySpec) -> str:
        """The weights' and the renderer's."""
        return f"model-{self.spec.fingerprint}-{self.renderer.fingerprint[:16]}"

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the model onto the policy's device."""
        self._datasets = datasets
        if self.model is None:
            self.model = build_frozen(self.spec)
        if self.spec.four_bit is None:
            self.model.to(host.device)

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        if self.model is None:
            raise ContractError("FrozenModel.prepare must run before log_probs.")
        return self.scorer(self.model, self._tree(host.device, batch, view)).sum

    def release(self) -> None:
        """Free the model."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tree(self, device: torch.device, batch: PreferenceBatch, view: str) -> TokenTree:
        dataset = self._datasets.get(batch.split)
        if dataset is None:
            raise ContractError(
                f"FrozenModel reads its rows from the datamodule, which has no split '{batch.split}': "
                "train with PreferenceDataModule."
            )
        if dataset.renderer.fingerprint == self.renderer.fingerprint:
            return batch.trees[view]
        own = dataset.batch(batch.index.tolist(), renderer=self.renderer, views=[view])
        return own.trees[view].to(device)
