"""Heads whose rewards depend on the user: ideal points and directions (PAL), and groups (MaxMin-RLHF)."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pl_prefopt.checks import at_least, non_negative
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.functional.ideal_points import direction_reward, distance_reward
from pl_prefopt.functional.user_groups import best_groups, first_groups, log_likelihoods, reseed_empty
from pl_prefopt.heads.base import Head, StatePairs
from pl_prefopt.heads.layers import linear, projection
from pl_prefopt.heads.users import Users, pairs_in, user_of
from pl_prefopt.pairing import ALL_PAIRS
from pl_prefopt.requests import REWARD
from pl_prefopt.rows import PreferenceRow
from pl_prefopt.types import Column, ScoredBatch

_log = logging.getLogger(__name__)
_NEVER = -1e30
"""The log-weight of a group that is not the user's: a probability of 0, as a number that JSON can hold."""

PrototypeSpace: TypeAlias = Literal["projected", "hidden", "mixed"]
"""Where PAL-A's prototypes lie: see ``IdealPointHead``."""


class UserHead(Head):
    """A head that reads each row's user from a column, by a text or a whole number.

    The users are those of the training rows. Rows of others are refused before a model loads; should one get
    to ``forward``, its outputs are NaN.

    Args:
        column: the column that names the user.
        kinds: the number of prototypes or groups, at most that of the users.
        min_pairs: the number of pairs that a user must have in the training rows.
    """

    def __init__(self, *, column: str, kinds: int, min_pairs: int) -> None:
        super().__init__()
        self.column, self.min_pairs = column, at_least("min_pairs", min_pairs, 1)
        self.columns = (column,)
        self._kinds = kinds
        self.users = Users(column)

    def learn(self, rows: Sequence[PreferenceRow]) -> None:
        """Take the users of the training rows.

        Raises:
            DataError: if a row has no user, or a user fewer than ``min_pairs`` pairs.
            ContractError: if there are fewer users than prototypes or groups.
        """
        self.users = Users.of(self.column, rows)
        if len(self.users) < self._kinds:
            raise ContractError(
                f"{type(self).__name__} has {self._kinds} {self.kinds_are}, but the train rows have only "
                f"{len(self.users)} users in the column '{self.column}': set `{self.kinds_are}` to "
                f"{len(self.users)} or less."
            )
        self.users.check_pairs(rows, self.min_pairs)

    @property
    @abstractmethod
    def kinds_are(self) -> str:
        """The name of the setting for the number of prototypes or groups."""

    @property
    def learned(self) -> dict[str, Any]:
        """The users."""
        return {"users": list(self.users.known)}

    @learned.setter
    def learned(self, values: Mapping[str, Any]) -> None:
        self.users = Users(self.column, values["users"])

    def check_rows(self, split: str, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows without a user, or with one who wasn't in the training rows."""
        self.users.check(split, rows)

    def encode(self, column: str, texts: Sequence[str | None]) -> Tensor:
        """Return the users' numbers, −1 for one who isn't known."""
        del column
        return self.users.encode(texts)

    def with_new_user(self, user: str | int, pairs: int) -> Users:
        """Return the users together with a new one who has this number of pairs.

        Raises:
            DataError: if the user is known already, or has fewer than ``min_pairs`` pairs.
        """
        users = self.users.with_user(user)
        if pairs < self.min_pairs:
            raise DataError(
                f"expected at least {self.min_pairs} pairs of the new user {user!r}, got {pairs}: give more "
                "pairs, or set `min_pairs` to 1."
            )
        return users

    def check_adaptable(self, rows: Sequence[PreferenceRow], step: float | None) -> None:
        """Refuse users who are known already or have too few pairs, and rows without a user.

        Raises:
            DataError: naming one.
            ConfigError: if there is a step, which a head of users doesn't take.
        """
        if step is not None:
            raise ConfigError(f"--step is that of a router, and {type(self).__name__} has none: remove it.")
        counts: Counter[str | int] = Counter()
        for row in rows:
            counts[user_of(self.column, "adapt", row)] += pairs_in(row)
        for user, count in counts.items():
            self.with_new_user(user, count)

    def adapt(self, pairs: StatePairs, step: float | None) -> list[str]:
        """Add the users of the pairs' rows."""
        del step
        places: dict[str | int, list[int]] = {}
        for place, row in enumerate(pairs.rows):
            places.setdefault(user_of(self.column, "adapt", row), []).append(place)
        return [f"user {user!r}: {self.add_user(user, pairs.part(own))}" for user, own in places.items()]

    @abstractmethod
    def add_user(self, user: str | int, pairs: StatePairs) -> str:
        """Fit a new user, and return what was found."""

    def numbers_of(self, column: Column) -> Tensor:
        """Return the users' numbers for a batch's column, int64 [B], −1 for one who isn't known."""
        if isinstance(column, Tensor):
            return self.users.numbers(column)
        return self.users.encode([value if isinstance(value, str) else None for value in column])

    def known_users(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the users' numbers [N], 0 where not known, and bool [N], which are known."""
        numbers = self.users.numbers(columns[self.column])
        return numbers.clamp(min=0), numbers >= 0


class PrototypeHead(UserHead):
    """A head with K prototypes of users, and for each user weights w_u = softmax(logits) on them.

    Args:
        column: the column that names the user.
        prototypes: K.
        min_pairs: the number of pairs that a user must have in the training rows.
    """

    kinds_are = "prototypes"
    outputs = 1

    def __init__(self, *, column: str, prototypes: int, min_pairs: int) -> None:
        super().__init__(column=column, kinds=at_least("prototypes", prototypes, 1), min_pairs=min_pairs)
        self.prototypes = prototypes

    def build(self, hidden_size: int) -> None:
        """Create the users' logits [U, K], all weights nearly equal, and what ``build_rewards`` does."""
        self.user_logits = nn.Parameter(0.1 * torch.randn(len(self.users), self.prototypes))
        self.build_rewards(hidden_size)

    @abstractmethod
    def build_rewards(self, hidden_size: int) -> None:
        """Create the weights that are not the users'."""

    @abstractmethod
    def rewards(self, last: Tensor, prompt: Tensor, weights: Tensor) -> Tensor:
        """Return the reward of N responses for users with ``weights`` [N, K] on the prototypes, [N]."""

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return rewards [N, 1]."""
        numbers, known = self.known_users(columns)
        rewards = self.rewards(last, prompt, self.user_logits[numbers].softmax(dim=-1))
        return torch.where(known, rewards, torch.nan).unsqueeze(-1)

    def fit_user(
        self,
        user: str | int,
        chosen: Tensor,
        rejected: Tensor,
        prompt: Tensor | None = None,
        *,
        ridge: float = 0.01,
    ) -> Tensor:
        """Add a user, with the weights w that fit a few pairs best; everything else stays as it is.

        Minimises the mean of −log σ(r_w − r_l) plus ρ times the mean square of the logits, which keeps w
        finite where one prototype explains all pairs.

        Args:
            user: the new user.
            chosen: hidden states of N chosen responses, [N, H].
            rejected: of the rejected ones, [N, H].
            prompt: of the prompts, [N, H], for heads that read them.
            ridge: ρ ≥ 0, our choice.

        Returns:
            w, [K].

        Raises:
            DataError: if the user is known already, or has fewer than ``min_pairs`` pairs.
        """
        users = self.with_new_user(user, len(chosen))
        prompt = chosen.new_empty(len(chosen), 0) if prompt is None else prompt
        logits = torch.zeros(self.prototypes, dtype=chosen.dtype, device=chosen.device, requires_grad=True)
        self._minimise(logits, (chosen, rejected, prompt), non_negative("ridge", ridge))
        found = logits.detach()
        rows = torch.cat([self.user_logits.detach(), found.to(self.user_logits).unsqueeze(0)])
        self.user_logits = nn.Parameter(rows, requires_grad=self.user_logits.requires_grad)
        self.users = users
        return found.softmax(dim=-1)

    def add_user(self, user: str | int, pairs: StatePairs) -> str:
        """Fit a new user's weights on the prototypes."""
        weights = self.fit_user(user, pairs.chosen, pairs.rejected, pairs.prompt)
        return f"weights {', '.join(f'{weight:.3f}' for weight in weights.tolist())} on the prototypes"

    def _minimise(self, logits: Tensor, pairs: tuple[Tensor, Tensor, Tensor], ridge: float) -> None:
        chosen, rejected, prompt = pairs
        search: Any = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            weights = logits.softmax(dim=-1).expand(len(chosen), -1)
            margins = self.rewards(chosen, prompt, weights) - self.rewards(rejected, prompt, weights)
            value = -logsigmoid(margins).mean() + ridge * logits.square().mean()
            (logits.grad,) = torch.autograd.grad(value, logits)
            return value

        search.step(loss)


class IdealPointHead(PrototypeHead):
    """A reward that falls with the distance from the user's ideal point: r = −‖f(h) − a_u‖, PAL-A.

    Chen et al., arXiv 2406.08469. f projects the hidden state h at the response's last token, and a_u is the
    user's mixture of K prototypes P, weighted by w_u. ``pl_prefopt.objectives.BradleyTerry`` trains it by the
    logistic loss of the authors' ``dist``; a hinge with margin 1 is a ``Compose``. The authors also take the
    loss at every position of a response; here it is that of the last token (their ``only_last``).

    Args:
        prototypes: K, at most the number of users.
        dimensions: D, of the space of ideal points.
        column: the column that names the user.
        prototype_space: ``projected`` for a_u = P w, ``hidden`` for f(P) w and ``mixed`` for f(P w). With a
            linear f the last two are the same.
        hidden_layers: of f; 0 for a linear map.
        squared: whether to take the square of the distance.
        min_pairs: the number of pairs that a user must have in the training rows.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        *,
        prototypes: int,
        dimensions: int,
        column: str = "user",
        prototype_space: PrototypeSpace = "projected",
        hidden_layers: int = 0,
        squared: bool = False,
        min_pairs: int = 2,
    ) -> None:
        super().__init__(column=column, prototypes=prototypes, min_pairs=min_pairs)
        if prototype_space not in get_args(PrototypeSpace):
            raise ConfigError(
                f"prototype_space must be one of {', '.join(get_args(PrototypeSpace))}, but is "
                f"{prototype_space!r}."
            )
        self.dimensions = at_least("dimensions", dimensions, 1)
        self.hidden_layers = at_least("hidden_layers", hidden_layers, 0)
        self.prototype_space, self.squared = prototype_space, squared

    def build_rewards(self, hidden_size: int) -> None:
        """Create f and the prototypes."""
        self.project = projection(hidden_size, self.dimensions, self.hidden_layers)
        size = self.dimensions if self.prototype_space == "projected" else hidden_size
        self.points = nn.Parameter(torch.randn(self.prototypes, size))

    def ideal_points(self, weights: Tensor) -> Tensor:
        """Return a_u of users with ``weights`` [N, K], [N, D]."""
        if self.prototype_space == "mixed":
            mixed: Tensor = self.project(weights @ self.points)
            return mixed
        points = self.points if self.prototype_space == "projected" else self.project(self.points)
        return weights @ points

    def rewards(self, last: Tensor, prompt: Tensor, weights: Tensor) -> Tensor:
        """Return −‖f(h) − a_u‖, [N]."""
        del prompt
        return distance_reward(self.project(last), self.ideal_points(weights), squared=self.squared)


class DirectionHead(PrototypeHead):
    """A reward along the user's direction for the prompt: r = s cos(f(h), Σ_k w_uk g_k(h_x)), PAL-B.

    Chen et al., arXiv 2406.08469: g_k map the hidden state h_x at the prompt's last token. The scale s is
    trained; it starts at 1/0.07 and is at most 100, as in the authors' code. Without ``angle`` it is the
    inner product, with s = 1. ``pl_prefopt.objectives.BradleyTerry`` trains it.

    Args:
        prototypes: K, at most the number of users.
        dimensions: D, of the space that f and g_k map to.
        column: the column that names the user.
        hidden_layers: of f; 0 for a linear map.
        angle: whether the reward is the cosine of the angle.
        min_pairs: the number of pairs that a user must have in the training rows.

    Raises:
        ConfigError: if a setting is out of range.
    """

    reads_prompt = True

    def __init__(
        self,
        *,
        prototypes: int,
        dimensions: int,
        column: str = "user",
        hidden_layers: int = 0,
        angle: bool = True,
        min_pairs: int = 2,
    ) -> None:
        super().__init__(column=column, prototypes=prototypes, min_pairs=min_pairs)
        self.dimensions = at_least("dimensions", dimensions, 1)
        self.hidden_layers = at_least("hidden_layers", hidden_layers, 0)
        self.angle = angle

    def build_rewards(self, hidden_size: int) -> None:
        """Create f, the maps g_k [KD, H], and the scale."""
        self.project = projection(hidden_size, self.dimensions, self.hidden_layers)
        self.directions = linear(hidden_size, self.prototypes * self.dimensions)
        if self.angle:
            self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def rewards(self, last: Tensor, prompt: Tensor, weights: Tensor) -> Tensor:
        """Return the rewards, [N]."""
        each = self.directions(prompt).view(len(prompt), self.prototypes, self.dimensions)
        directions = (weights.unsqueeze(-1) * each).sum(dim=1)
        rewards = direction_reward(self.project(last), directions, angle=self.angle)
        return rewards * self.log_scale.exp().clamp(max=100.0) if self.angle else rewards


class GroupHead(UserHead):
    """C rewards per response, one per group of users, of which a user's group decides: MaxMin-RLHF.

    Chakraborty et al., arXiv 2402.08925. The outputs are those of a mixture whose router knows the user:
    rewards, and log-weights that are 0 for the user's group and −1e30 for the others.
    ``pl_prefopt.objectives.RewardMixture`` on them is Bradley-Terry within each group (the M-step). Before
    each epoch but the first, users move to the groups that explain their pairs best (the E-step). The
    assignment is part of the head's state.

    Args:
        groups: C, at most the number of users.
        column: the column that names the user.
        min_pairs: the number of pairs that a user must have in the training rows.

    Raises:
        ConfigError: if a setting is out of range.
    """

    gives = "mixture"
    kinds_are = "groups"
    assigned: Tensor

    def __init__(self, *, groups: int, column: str = "user", min_pairs: int = 2) -> None:
        super().__init__(column=column, kinds=at_least("groups", groups, 1), min_pairs=min_pairs)
        self.groups = groups

    @property
    def outputs(self) -> int:
        """2C: rewards, then log-weights."""
        return 2 * self.groups

    def build(self, hidden_size: int) -> None:
        """Create the weights [C, H], and the assignment in which user u is in group u mod C."""
        self.score = linear(hidden_size, self.groups)
        self.register_buffer("assigned", first_groups(len(self.users), self.groups))

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return rewards and log-weights, [N, 2C]."""
        del prompt
        rewards: Tensor = self.score(last)
        numbers, known = self.known_users(columns)
        own = self.assigned[numbers].unsqueeze(-1) == torch.arange(self.groups, device=rewards.device)
        log_weights = torch.where(own, 0.0, _NEVER).to(rewards)
        return torch.cat([rewards, torch.where(known.unsqueeze(-1), log_weights, torch.nan)], dim=-1)

    def update(self, batches: Iterable[ScoredBatch]) -> None:
        """Take the E-step on the training rows, of all ranks.

        Each pair of responses with different scores counts, as in ``RewardMixture``'s default pairing.
        """
        # As the buffer, which is no DTensor where the weights are sharded.
        sums = self.assigned.new_zeros((len(self.users), self.groups), dtype=torch.float64)
        counts = sums.new_zeros(len(self.users), dtype=torch.long)
        for batch in batches:
            rewards = batch.outputs[REWARD][..., : self.groups]
            row, winner, loser = ALL_PAIRS(batch.scores, batch.present).nonzero(as_tuple=True)
            users = self.numbers_of(batch.columns[self.column]).to(row.device)[row]
            margins = (rewards[row, winner] - rewards[row, loser]).double()
            sums += log_likelihoods(margins, users, len(self.users))
            counts += users.bincount(minlength=len(self.users))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        moved = self.assign(sums, counts)
        sizes = self.assigned.bincount(minlength=self.groups).tolist()
        _log.info("E-step: %d of %d users moved, users per group: %s", moved, len(self.users), sizes)

    def fit_user(self, user: str | int, chosen: Tensor, rejected: Tensor) -> int:
        """Add a user to the group that explains a few pairs best, and return its number.

        Args:
            user: the new user.
            chosen: hidden states of N chosen responses, [N, H].
            rejected: of the rejected ones, [N, H].

        Raises:
            DataError: if the user is known already, or has fewer than ``min_pairs`` pairs.
        """
        users = self.with_new_user(user, len(chosen))
        with torch.no_grad():
            margins = self.score(chosen) - self.score(rejected)
        group = best_groups(logsigmoid(margins).sum(dim=0, keepdim=True))
        self.assigned = torch.cat([self.assigned, group.to(self.assigned)])
        self.users = users
        return int(group)

    def add_user(self, user: str | int, pairs: StatePairs) -> str:
        """Add a new user to a group."""
        return f"group {self.fit_user(user, pairs.chosen, pairs.rejected)} of {self.groups}, from 0"

    def assign(self, likelihoods: Tensor, pairs: Tensor) -> int:
        """Move each user to the group with the highest log-likelihood, and seed empty groups: the E-step.

        A user without pairs stays.

        Args:
            likelihoods: Σ log σ(r_c(y_w) − r_c(y_l)) over each user's pairs, [U, C].
            pairs: int64 [U], their number.

        Returns:
            How many users have moved.
        """
        best = torch.where(pairs > 0, best_groups(likelihoods), self.assigned)
        best = reseed_empty(best, likelihoods, pairs)
        moved = int((best != self.assigned).sum())
        self.assigned.copy_(best)
        return moved
