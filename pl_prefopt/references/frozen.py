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
    text is rendered and tokenised anew, whole: a response that is cut for the policy, or too long for this
    model, is an error, since sums over different texts do not compare.

    Args:
        model: the model.
        template: how its prompts are rendered, as ``data.template``.
        device: where it lives, such as ``cuda:1``; the policy's device by default.
        offload: keep it in main memory between batches, which is slow and saves the device's memory.
    """

    def __init__(
        self,
        model: PolicySpec,
        template: Literal["auto", "chat", "plain", "none"] = "auto",
        device: str | None = None,
        offload: bool = False,
    ) -> None:
        self.spec = model
        self.template = template
        self.device = device
        self.offload = offload
        self.scorer = Scorer()
        self.model: nn.Module | None = None
        self._datasets: Datasets = {}
        self._shared: dict[str, bool] = {}
        self._renderer: Renderer | None = None

    @property
    def renderer(self) -> Renderer:
        """How this model reads a row."""
        if self._renderer is None:
            self._renderer = Renderer(self.spec.load_tokenizer(), template=self.template)
        return self._renderer

    def fingerprint(self, policy: PolicySpec) -> str:
        """The weights' and the renderer's."""
        return f"model-{self.spec.fingerprint}-{self.renderer.fingerprint[:16]}"

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Load the model onto its device."""
        self._datasets = datasets
        self._shared = {split: self._reads_as(rows.renderer) for split, rows in datasets.items()}
        self._refuse_cut_responses()
        if self.model is None:
            self.model = build_frozen(self.spec)
        if not self.offload:
            self._move(self._place(host))

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        if self.model is None:
            raise ContractError("FrozenModel.prepare must run before log_probs.")
        place = self._place(host)
        tree = self._tree(batch, view).to(place)
        if self.offload:
            self._move(place)
        log_probs = self.scorer(self.model, tree).sum
        if self.offload:
            self._move(torch.device("cpu"))
        return log_probs.to(host.device)

    def release(self) -> None:
        """Free the model."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _place(self, host: PolicyHost) -> torch.device:
        return host.device if self.device is None else torch.device(self.device)

    def _move(self, place: torch.device) -> None:
        # bitsandbytes places 4-bit weights itself.
        if self.model is not None and self.spec.four_bit is None:
            self.model.to(place)

    def _tree(self, batch: PreferenceBatch, view: str) -> TokenTree:
        dataset = self._datasets.get(batch.split)
        if dataset is None:
            raise ContractError(
                f"FrozenModel reads its rows from the datamodule, which has no split '{batch.split}': "
                "train with PreferenceDataModule."
            )
        if self._shared[batch.split]:
            return batch.trees[view]
        return dataset.batch(batch.index.tolist(), renderer=self.renderer, views=[view]).trees[view]

    def _refuse_cut_responses(self) -> None:
        for split, rows in self._datasets.items():
            cut = rows.summary.truncated_responses
            if cut and not self._shared[split]:
                raise ContractError(
                    f"The reference '{self.spec.name}' has its own tokeniser and reads whole responses, but "
                    f"{cut} of the {split} responses are cut for the policy: raise data.max_response_length."
                )

    def _reads_as(self, renderer: Renderer) -> bool:
        """Whether the policy's tokens are this model's too; the length limits are the policy's alone."""
        limited = Renderer(
            self.renderer.tokenizer,
            template=self.template,
            max_prompt_length=renderer.max_prompt_length,
            max_response_length=renderer.max_response_length,
        )
        return limited.fingerprint == renderer.fingerprint
