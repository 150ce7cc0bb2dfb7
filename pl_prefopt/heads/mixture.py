"""The mixture head: K rewards and a router that reads the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.checks import at_least, positive
from pl_prefopt.errors import ConfigError
from pl_prefopt.functional.router_mixtures import context_weights
from pl_prefopt.heads.base import Head, StatePairs
from pl_prefopt.heads.layers import linear
from pl_prefopt.rows import PreferenceRow


class MixtureHead(Head):
    """K rewards r_k per response, and log-weights log f_k(x) from a router that reads the prompt: MiCRo.

    The first stage of Shen et al., arXiv 2505.24846: f = softmax of a linear map of the hidden state at the
    prompt's last token, each response's own prompt. (The authors' code reads the first row of a batch for all
    of them, at the first *response* token of its chosen side.) ``pl_prefopt.objectives.RewardMixture`` trains
    it. The router starts at 0, all weights equal; the rewards start different.

    In the second stage, ``adapt``, the weights of one context replace the router's for all prompts.

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
        self._context: list[float] | None = None  # log-weights that replace the router's

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
        rewards, log_weights = self.score(last), self.router(prompt).log_softmax(dim=-1)
        if self._context is not None:
            log_weights = log_weights.new_tensor(self._context).expand_as(log_weights)
        return torch.cat([rewards, log_weights], dim=-1)

    @property
    def learned(self) -> dict[str, Any]:
        """The log-weights of a context, after ``adapt``."""
        return {} if self._context is None else {"context": list(self._context)}

    @learned.setter
    def learned(self, values: Mapping[str, Any]) -> None:
        self._context = list(values["context"]) if "context" in values else None

    def check_trainable(self) -> None:
        """Refuse to train with the weights of a context, which would leave the router without gradient.

        Raises:
            ConfigError: after ``adapt``.
        """
        if self._context is not None:
            raise ConfigError(
                f"The {type(self).__name__} has the weights of a context in place of its router's, so that "
                "the router would not be trained: start from the checkpoint that was adapted."
            )

    def check_adaptable(self, rows: Sequence[PreferenceRow], step: float | None) -> None:
        """Refuse to choose the step.

        Raises:
            ConfigError: if there is none, or it isn't positive.
        """
        del rows
        if step is None:
            raise ConfigError(
                f"{type(self).__name__} finds the weights of a context by Hedge, whose step was not "
                "published: set --step, for instance 1, with which it is Bayes' rule."
            )
        positive("--step", step)

    @torch.no_grad()
    def adapt(self, pairs: StatePairs, step: float | None) -> list[str]:
        """Take the weights that Hedge finds from the pairs of one context, for all prompts from now on.

        It starts from the mean of the router's weights over the pairs, where a prompt counts once for each of
        its pairs, and a second time from where the first one ended.
        """
        assert step is not None
        chosen, rejected = (self(each, pairs.prompt, {}).double() for each in (pairs.chosen, pairs.rejected))
        margins = chosen[:, : self.parts] - rejected[:, : self.parts]
        found = context_weights(chosen[:, self.parts :], margins, step=step)
        self._context = found.tolist()
        shares = ", ".join(f"{share:.3f}" for share in found.exp().tolist())
        return [f"weights of the {self.parts} parts in this context: {shares}"]
