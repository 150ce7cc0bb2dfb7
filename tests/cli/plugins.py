"""Methods outside the repository, each one file that imports public names only, and its YAML."""

from __future__ import annotations

from typing import Any

PRO = '''
"""PRO: preference ranking optimisation with temperatures from score gaps (Song et al., arXiv 2306.17492)."""
import torch

from pl_prefopt.objectives import Needs, ReferenceFreeObjective
from pl_prefopt.types import Outcome


class PRO(ReferenceFreeObjective):
    """Each response against all below it; rewards are scaled by how far the scores are apart."""

    @property
    def needs(self):
        return Needs(min_responses=2)

    def forward(self, batch):
        present = batch.present & ~batch.scores.isnan()
        reward = torch.where(present, batch.policy.mean, 0.0)
        gap = batch.scores.unsqueeze(-1) - batch.scores.unsqueeze(-2)
        below = present.unsqueeze(-1) & present.unsqueeze(-2) & (gap > 0)
        gap = torch.where(below, gap, 0.0)
        own = gap.amax(dim=-1)
        logits = torch.where(below, reward.unsqueeze(-2) * gap, -torch.inf)
        winner = reward * own
        counted = below.any(dim=-1)
        everyone = torch.cat([winner.unsqueeze(-1), logits], dim=-1)
        losses = torch.where(counted, everyone.logsumexp(dim=-1) - winner, 0.0)
        return Outcome(loss=losses.sum(dim=-1), counted=counted.any(dim=-1), reward=reward.detach())
'''
PRO_YAML = """
model:
  class_path: pl_prefopt.modules.ReferenceFreeModule
  init_args:
    objective:
      class_path: my_pro.PRO
references:
  members: []
"""

TDPO2 = '''
"""TDPO2: token-level DPO with the sequential forward KL divergence (Zeng et al., arXiv 2404.11999)."""
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt.objectives import Needs, ReferenceObjective
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.requests import TokenRequest
from pl_prefopt.types import Outcome


class TDPO2(ReferenceObjective):
    """-log sigmoid(u - alpha delta): u the margin of log-ratios, delta that of the divergences."""

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__()
        self.beta, self.alpha = beta, alpha

    @property
    def needs(self):
        return Needs(
            min_references=1, max_references=1, min_responses=2, tokens=TokenRequest(kl=("forward",))
        )

    def forward(self, batch):
        kl = batch.tokens.kl["forward"][0].sum(dim=-1)
        ratio = (batch.tokens.policy - batch.tokens.references[0]).sum(dim=-1)
        u = self.beta * (ratio.unsqueeze(-1) - ratio.unsqueeze(-2))
        delta = self.beta * (kl.unsqueeze(-2) - kl.detach().unsqueeze(-1))  # the loser's minus the winner's
        pairs = ALL_PAIRS(batch.scores, batch.present)
        losses = torch.where(pairs, -logsigmoid(u - self.alpha * delta), 0.0)
        count = pairs.sum(dim=(-2, -1))
        reward = self.beta * (ratio + kl).detach()
        return Outcome(loss=losses.sum(dim=(-2, -1)) / count.clamp(min=1), counted=count > 0, reward=reward)
'''
TDPO2_YAML = """
model:
  class_path: pl_prefopt.modules.DPOModule
  init_args:
    objective:
      class_path: my_tdpo.TDPO2
      init_args: {alpha: 0.7}
references:
  members:
    - class_path: pl_prefopt.references.AdapterOff
"""

BRADLEY_TERRY = '''
"""A reward model: a linear head on the last token of each response, trained on pairs (Bradley and Terry)."""
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt.objectives import Needs, ReferenceFreeObjective
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.requests import LinearHead
from pl_prefopt.types import Outcome


class BradleyTerry(ReferenceFreeObjective):
    """-log sigmoid(r_w - r_l), r the head's output."""

    @property
    def needs(self):
        return Needs(min_responses=2, heads={"reward": LinearHead(outputs=1)})

    def forward(self, batch):
        reward = batch.outputs["reward"].squeeze(-1)
        pairs = ALL_PAIRS(batch.scores, batch.present)
        losses = torch.where(pairs, -logsigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2)), 0.0)
        count = pairs.sum(dim=(-2, -1))
        return Outcome(
            loss=losses.sum(dim=(-2, -1)) / count.clamp(min=1), counted=count > 0, reward=reward.detach()
        )
'''
BRADLEY_TERRY_YAML = """
model:
  class_path: pl_prefopt.modules.ReferenceFreeModule
  init_args:
    objective:
      class_path: my_reward.BradleyTerry
references:
  members: []
"""


def defined(code: str, name: str) -> Any:
    """The class of this name that a file with this text defines."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]
