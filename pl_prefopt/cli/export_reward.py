"""The part of `prefopt export` for reward models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pl_prefopt.cli.export_check import compare, trial_rows, unit_of
from pl_prefopt.data import Renderer
from pl_prefopt.data.renderer import TEMPLATE_NAMES
from pl_prefopt.errors import ConfigError
from pl_prefopt.heads import Head, ScalarHead
from pl_prefopt.modules.reward import LEARNED
from pl_prefopt.modules.reward_folders import made_head, unbuilt_head, write_folder
from pl_prefopt.policies import PolicySpec, merged

_RENDERED_BY = ("template", "template_arguments", "max_prompt_length", "max_response_length")


class Source(Protocol):
    """The source of the exported model; see ``export``."""

    @property
    def spec(self) -> PolicySpec: ...
    def load(self) -> Any:
        """Return the trained policy."""

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Return the trained weights with a prefix, without it."""


def described_head(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the description of a checkpoint's reward head, ``None`` if it has none."""
    found: str | None = checkpoint.get("pl_prefopt", {}).get("model.reward_head")
    return found


def is_classifier(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether transformers has a class for the reward model of a checkpoint.

    Raises:
        ConfigError: if there is no such head as the checkpoint's.
    """
    head = unbuilt_head(described_head(checkpoint) or "", checkpoint.get(LEARNED) or {})
    return isinstance(head, ScalarHead)


def export_reward(
    draft: Path,
    source: Source,
    checkpoint: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Any,
    *,
    dtype: str | None,
) -> None:
    """Write the reward model of a checkpoint, with its adapter merged.

    Args:
        draft: an existing folder.
        source: the policy and its trained weights.
        checkpoint: its contents without weights.
        config: the run's configuration.
        tokenizer: the policy's, with the chat template of the run.
        dtype: of the written model; the policy's by default.

    Raises:
        ConfigError: if the written model gives other rewards than the trained one.
    """
    spec, data = source.spec, config.get("data") or {}
    policy = source.load()
    size = policy.get_input_embeddings().weight.shape[1]
    described, learned = described_head(checkpoint) or "", checkpoint.get(LEARNED) or {}
    head = made_head(described, learned, source.weights("heads.reward."), size).eval()
    settings = {name: data[name] for name in _RENDERED_BY if name in data}
    if settings.get("template", "auto") not in TEMPLATE_NAMES:
        settings["template"] = "chat"  # the file's template is the tokeniser's own now
    end = Renderer(tokenizer, template=settings.get("template", "auto")).end_token_id
    rows = [[*row, end] for row in trial_rows(spec, data)]
    expected, unit = _scores(policy, head, rows), unit_of(policy, spec)
    model = merged(policy) if spec.has_adapter else policy
    if dtype is not None and dtype != "auto":
        model = model.to(getattr(torch, dtype))
    copied = not spec.has_adapter and dtype in (None, spec.dtype)
    write_folder(draft, model, head, tokenizer, {**settings, "end_token_id": end})
    del policy, model
    reloaded = _reload(draft, head)
    gap = compare(
        reloaded,
        rows,
        expected,
        max(unit, unit_of(reloaded, spec)),
        lambda made, ids: _scores(made, head, ids),
    )
    if not gap.is_rounding(copied=copied):
        raise ConfigError(
            f"Nothing was exported: the reloaded model's rewards differ from the trained one's by up to "
            f"{gap.most:.2g} (RMS {gap.mean:.2g}, of which rounding explains {gap.rounding:.2g})."
        )


def _reload(folder: Path, head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if isinstance(head, ScalarHead) else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype="auto")


def _scores(model: nn.Module, head: Head, rows: list[list[int]]) -> Tensor:
    """Return rewards of a classifier or of a ``ScalarHead``, or hidden states for other heads, in float64."""
    model.eval()
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            if hasattr(base, "score"):
                found.append(base(input_ids=ids).logits[0])
                continue
            last = base.base_model(input_ids=ids).last_hidden_state[:, -1].float()
            found.append((head(last, last[:, :0], {}) if isinstance(head, ScalarHead) else last)[0])
    return torch.cat(found).double()
