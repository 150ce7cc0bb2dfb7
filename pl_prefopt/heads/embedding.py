"""The embedding head of general preference models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pl_prefopt.checks import at_least
from pl_prefopt.functional.embeddings import gate_blocks, unit_norm
from pl_prefopt.heads.base import Head
from pl_prefopt.heads.layers import linear

_START, _LOWEST = -2.25, 0.01
"""Of a learned temperature, as in the authors' code."""


class EmbeddingHead(Head):
    """An embedding v of 2k numbers per response, for preferences that may be cyclic: GPM.

    Zhang et al., arXiv 2410.02197. ``pl_prefopt.objectives.GPM`` compares embeddings by a skew-symmetric
    form. With the prompt gate the k blocks of two are weighted by λ(x) = k softmax(Gh_x), h_x the hidden
    state at the prompt's last token: v's blocks are multiplied by √λ, so that a form of two responses to the
    prompt has λ. (The authors' gate divides G h_x by the square root of the hidden size; with a trained G
    that is a matter of its scale, and here G starts at 0: all λ are 1.)

    With a learned temperature, an option of the authors' code, forms are divided by τ = max(softplus(ρ),
    0.01), with ρ trained from −2.25, τ = 0.1002: v is multiplied by √(1/τ) after all else. Below 0.01 the
    maximum has no gradient, so that the loss can't raise τ again. The objective's own temperature must be 1.

    Args:
        blocks: k; one block expresses a cycle of three, more express more kinds of them at once.
        unit_norm: whether v has length 1 before the gate, as in the paper. The authors' code leaves this out,
            and published checkpoints exist of both kinds.
        prompt_gate: whether the prompt weighs the blocks.
        learned_temperature: whether τ is trained.

    Raises:
        ConfigError: if ``blocks`` is below 1.

    Examples:
        >>> import torch
        >>> head = EmbeddingHead(blocks=1)
        >>> head.build(2)
        >>> _ = head.embedding.weight.data.copy_(torch.eye(2))
        >>> head(torch.tensor([[3.0, 4.0]]), torch.empty(1, 0), {})
        tensor([[0.6000, 0.8000]], grad_fn=<DivBackward0>)
    """

    gives = "embedding"

    def __init__(
        self,
        *,
        blocks: int = 3,
        unit_norm: bool = True,
        prompt_gate: bool = False,
        learned_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.learned_temperature = learned_temperature
        self.blocks = at_least("blocks", blocks, 1)
        self.unit_norm, self.prompt_gate = unit_norm, prompt_gate
        self.reads_prompt = prompt_gate

    @property
    def outputs(self) -> int:
        """2k."""
        return 2 * self.blocks

    def build(self, hidden_size: int) -> None:
        """Create the weights [2k, H], and the gate's [k, H]."""
        self.embedding = linear(hidden_size, self.outputs)
        if self.prompt_gate:
            self.gate = nn.Linear(hidden_size, self.blocks, bias=False)
            nn.init.zeros_(self.gate.weight)
        if self.learned_temperature:
            self.raw_temperature = nn.Parameter(torch.tensor([_START]))  # FSDP2 shards no scalars

    @property
    def temperature(self) -> Tensor:
        """τ, [1], where it is learned."""
        return softplus(self.raw_temperature).clamp(min=_LOWEST)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments; without a learned temperature as before there was one."""
        own = super().settings()
        if not self.learned_temperature:
            del own["learned_temperature"]
        return own

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings [N, 2k]."""
        del columns
        embeddings: Tensor = self.embedding(last)
        if self.unit_norm:
            embeddings = unit_norm(embeddings)
        if self.prompt_gate:
            log_shares = self.gate(prompt).log_softmax(dim=-1)
            embeddings = gate_blocks(embeddings, log_shares + log_shares.new_tensor(self.blocks).log())
        return embeddings / self.temperature.sqrt() if self.learned_temperature else embeddings
