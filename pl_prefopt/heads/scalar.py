"""The scalar reward head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pl_prefopt.heads.base import Head


class ScalarHead(Head):
    """One reward per response: r = wᵀh, h the hidden state at the response's last token.

    There is no bias: it would cancel in every comparison, and ``AutoModelForSequenceClassification`` has
    none. The weights start with a standard deviation of 1/√(H + 1), so that rewards start at about 1 in size
    where h is about 1 per coordinate.

    Examples:
        >>> import torch
        >>> head = ScalarHead()
        >>> head.build(3)
        >>> _ = head.score.weight.data.copy_(torch.tensor([[1.0, 2.0, 0.0]]))
        >>> head(torch.tensor([[1.0, 1.0, 5.0]]), torch.empty(1, 0), {}).tolist()
        [[3.0]]
    """

    outputs = 1

    def build(self, hidden_size: int) -> None:
        """Create the weight [1, H]."""
        self.score = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=(hidden_size + 1) ** -0.5)

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return rewards [N, 1]."""
        del prompt, columns
        rewards: Tensor = self.score(last)
        return rewards
