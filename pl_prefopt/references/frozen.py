"""A reference with a model of its own, of the policy's or another architecture and tokeniser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pl_prefopt.data import PreferenceDataset, Renderer
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.policies import PolicySpec, build_frozen
from pl_prefopt.references.base import Datasets, Footprint, PolicyHost, Reference, Running
from pl_prefopt.scoring import Scorer
from pl_prefopt.types import PreferenceBatch, TokenTree

_SETTING = "references.members.init_args.template"
_NAMED = 5
"""The number of rows that a message names."""


class FrozenModel(Reference):
    """A frozen causal language model.

    Where its tokeniser and template are the policy's, the policy's tokens are reused; otherwise each row's
    text is rendered and tokenised anew, whole. A response that is cut for the policy, or a row that is too
    long for this model, is then an error before the model loads, since sums over different texts do not
    compare.

    Args:
        model: the model.
        template: how its prompts are rendered, as ``data.template``.
        device: its device, such as ``cuda:1``; the policy's device by default.
        offload: keep it in main memory between batches, which is slower and saves device memory.
    """

    live = True
    needs_rows: ClassVar[bool] = True

    def __init__(
        self,
        model: PolicySpec,
        template: Literal["auto", "chat", "plain", "none"] = "auto",
        device: str | None = None,
        offload: bool = False,
    ) -> None:
        if model.kernels is not None or model.compile is not None:
            raise ConfigError(
                "references.members.init_args.model takes no `kernels` and no `compile`: they are for the "
                "policy. Remove them."
            )
        self.spec = model
        self.template = template
        self.device = device
        self.offload = offload
        self.scorer = Scorer()
        self.model: nn.Module | None = None
        self._own: dict[str, PreferenceDataset | None] = {}
        self._renderer: Renderer | None = None

    @property
    def renderer(self) -> Renderer:
        """The renderer of this model's tokeniser and template."""
        if self._renderer is None:
            self._renderer = Renderer(self.spec.load_tokenizer(), template=self.template, setting=_SETTING)
        return self._renderer

    def fingerprint(self, policy: PolicySpec) -> str:
        """Return a fingerprint of weights and renderer."""
        return f"model-{self.spec.fingerprint}-{self.renderer.fingerprint[:16]}"

    def footprint(self, policy: PolicySpec) -> Footprint:
        """Return the footprint of the model, unless it is on a device of its own."""
        if self.device is not None:
            return Footprint(scores=False)
        return Footprint(model=self.spec, resident=not self.offload)

    def prepare(self, host: PolicyHost, datasets: Datasets) -> None:
        """Tokenise the rows, if this model needs its own tokens, and load the model onto its device."""
        if host.reference_tokens is not None and host.reference_tokens.kl and self.offload:
            raise ContractError(
                f"A KL divergence needs the reference '{self.spec.name}' resident on its device: set "
                "references.members.init_args.offload to false."
            )
        foreign = {split: rows for split, rows in datasets.items() if not self._reads_as(rows.renderer)}
        if foreign and host.reference_tokens is not None:
            raise ContractError(
                f"The objective asks for log-probs of the policy's tokens, but the reference "
                f"'{self.spec.name}' has a tokeniser or template of its own: use a model of the policy's "
                "family, or another objective."
            )
        self._own = {
            split: self._read(rows) if split in foreign else None for split, rows in datasets.items()
        }
        for split, rows in datasets.items():
            self.spec.check_token((self._own[split] or rows).largest_token, self.renderer.tokenizer)
        if self.model is None:
            self.model = build_frozen(self.spec)
        if not self.offload:
            self._move(self._place(host))

    def log_probs(self, host: PolicyHost, batch: PreferenceBatch, view: str) -> Tensor:
        """Return float32 [B, R] sums of log-probs."""
        with self.running(host) as (model, scorer):
            tree = self._tree(batch, view).to(self._place(host))
            return scorer(model, tree).sum.to(host.device)

    @contextmanager
    def running(self, host: PolicyHost) -> Iterator[Running]:
        """Move the model to its device within the context."""
        if self.model is None:
            raise ContractError("FrozenModel.prepare must run before log_probs.")
        if self.offload:
            self._move(self._place(host))
        try:
            yield Running(self.model, self.scorer)
        finally:
            if self.offload:
                self._move(torch.device("cpu"))

    def release(self) -> None:
        """Free the model."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _place(self, host: PolicyHost) -> torch.device:
        return host.device if self.device is None else torch.device(self.device)

    def _move(self, place: torch.device) -> None:
        if self.model is not None:
            self.model.to(place)

    def _tree(self, batch: PreferenceBatch, view: str) -> TokenTree:
        if batch.split not in self._own:
            raise ContractError(
                f"FrozenModel reads its rows from the datamodule, which has no split '{batch.split}': "
                "train with PreferenceDataModule."
            )
        own = self._own[batch.split]
        return batch.trees[view] if own is None else own.batch(batch.numbers, views=[view]).trees[view]

    def _read(self, rows: PreferenceDataset) -> PreferenceDataset:
        """Tokenise the rows for this model, or raise an error that names those that it can't take."""
        name, cut = self.spec.name, rows.summary.truncated_responses
        if cut:
            raise ContractError(
                f"The reference '{name}' has its own tokeniser and reads whole responses, but "
                f"{cut} of the {rows.split} responses are cut for the policy: raise data.max_response_length."
            )
        try:
            own = rows.read_by(self.renderer)
        except DataError as error:
            raise DataError(f"The reference '{name}' can't read {error}") from error
        limit = self.spec.context_length()
        long = [] if limit is None else own.longer_than(limit)
        if long:
            named = [own.rows[number].origin for number in long[:_NAMED]]
            raise DataError(
                f"The reference '{name}' takes at most {limit} tokens, but {len(long)} of the {len(own)} "
                f"{rows.split} rows have a prompt and a response of more, the first of them: "
                f"{'; '.join(named)}. Remove them from the data, or use another reference."
            )
        return own

    def _reads_as(self, renderer: Renderer) -> bool:
        """Whether this model reads the policy's tokens; length limits are the policy's only.

        ``data.template_arguments`` and a template file are for all models with the policy's tokeniser.
        """
        if renderer.adjusted and self.template == "auto":
            return self.renderer.same_tokenizer(renderer)
        return self.renderer.limited_as(renderer).fingerprint == renderer.fingerprint
