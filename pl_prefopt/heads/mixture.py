"""The mixture head: K rewards and a router that reads the prompt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pl_prefopt.checks import at_least
from pl_prefopt.heads.base import Head
from pl_prefopt.heads.layers import linear


class MixtureHead(Head):
    """K rewards r_k per response, and log-weights log f_k(x) from a router that reads the prompt: MiCRo.

    The first stage of Shen et al., arXiv 2505.24846: f = softmax of a linear map of the hidden state at the
    prompt's last token, each response's own prompt. (The authors' code reads the first row of a batch for all
    of them, at the first *response* token of its chosen side.) ``pl_prefopt.objectives.RewardMixture`` trains
    it. The router starts at 0, all weights equal; the rewards start different.

    Args:
        parts: K. The published run has 10.

    Raises:
        ConfigError: if ``parts`` is below 1.
    """

    gives = "mixture"
    reads_prompt = True

    def __init__(self, *, parts: int = 10) -> None:
        super().__init__()
        self.parts = at_least("parts", parts, 1)

    @property
    def outputs(self) -> int:
        """2K: rewards, then log-weights."""
        return 2 * self.parts

    def build(self, hidden_size: int) -> None:
        """Create the weights of rewards and router, [K, H] each."""
        self.score = linear(hidden_size, self.parts)
        self.router = nn.Linear(hidden_size, self.parts, bias=False)
        nn.init.zeros_(self.router.weight)

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return rewards and log-weights, [N, 2K]."""
        del columns
        return torch.cat([self.score(last), self.router(prompt).log_softmax(dim=-1)], dim=-1)
