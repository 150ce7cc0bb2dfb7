"""Heads for given features of responses, and for several attributes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.heads.base import Head
from pl_prefopt.rows import PreferenceRow


class FeatureHead(Head):
    """A reward linear in features that the data gives for each response: r = Σ_j w_j (x_j − m_j)/s_j.

    As in arXiv 2402.15473, where seven scores of a summary, such as its coherence, and fewer than a thousand
    pairs suffice. The model's hidden states aren't used. m and s are mean and standard deviation over the
    training rows' responses; w starts at 0.

    Args:
        features: the columns, each with one number per response.

    Raises:
        ConfigError: if there are none, or one is named twice.

    Examples:
        >>> head = FeatureHead(features=["coherence", "length"])
        >>> rows = [PreferenceRow(prompt=(), responses=((), ()),
        ...                       columns={"coherence": (4.0, 2.0), "length": (30, 10)})]
        >>> head.learn(rows)
        >>> head.learned
        {'mean': [3.0, 20.0], 'std': [1.0, 10.0]}
    """

    outputs = 1

    def __init__(self, *, features: list[str]) -> None:
        super().__init__()
        self.features = _names("features", features)
        self.columns = tuple(features)
        self._mean, self._std = [0.0] * len(features), [1.0] * len(features)

    def learn(self, rows: Sequence[PreferenceRow]) -> None:
        """Take each feature's mean and standard deviation over all responses."""
        self.check_rows("train", rows)
        values = [[_features_of(row, name) for name in self.features] for row in rows]
        table = torch.cat([torch.tensor(each, dtype=torch.float64) for each in values], dim=1)
        self._mean = table.mean(dim=1).tolist()
        # A feature that never varies cancels in every comparison.
        self._std = [std or 1.0 for std in table.std(dim=1, correction=0).tolist()]

    @property
    def learned(self) -> dict[str, Any]:
        """Means and standard deviations."""
        return {"mean": self._mean, "std": self._std}

    @learned.setter
    def learned(self, values: Mapping[str, Any]) -> None:
        self._mean, self._std = list(values["mean"]), list(values["std"])

    def check_rows(self, split: str, rows: Sequence[PreferenceRow]) -> None:
        """Refuse rows without one finite number per feature and response.

        Raises:
            DataError: naming the row.
        """
        for row in rows:
            for name in self.features:
                values = row.columns.get(name)
                place = f"{row.origin or 'a row'} ({split})"
                if not isinstance(values, tuple) or len(values) != len(row.responses):
                    found = f"{len(values)} values" if isinstance(values, tuple) else repr(values)
                    raise DataError(
                        f"expected one number per response, {len(row.responses)}, in the column '{name}', "
                        f"got {found} in {place}: give a list with one number per response."
                    )
                for value in values:
                    if not isinstance(value, int | float) or not math.isfinite(value):
                        raise DataError(
                            f"expected finite numbers in the column '{name}', got {value!r} in {place}: "
                            "correct the data, or remove the row or the feature."
                        )

    def build(self, hidden_size: int) -> None:
        """Create the weights [1, F]."""
        del hidden_size
        self.weights = nn.Linear(len(self.features), 1, bias=False)
        nn.init.zeros_(self.weights.weight)

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return rewards [N, 1]."""
        del prompt
        values = torch.stack([columns[name].double() for name in self.features], dim=-1)
        scaled = (values - values.new_tensor(self._mean)) / values.new_tensor(self._std)
        rewards: Tensor = self.weights(scaled.to(self.weights.weight))
        return rewards


class AttributeHead(Head):
    """One rating per attribute of a response, such as helpfulness and verbosity: a linear map with a bias.

    As HelpSteer2's regression models, arXiv 2410.01257. ``pl_prefopt.objectives.AttributeRegression`` trains
    it.

    Args:
        attributes: their names; the objective reads the ratings from columns of these names.

    Raises:
        ConfigError: if there are none, or one is named twice.
    """

    def __init__(self, *, attributes: list[str]) -> None:
        super().__init__()
        self.attributes = _names("attributes", attributes)

    @property
    def outputs(self) -> int:
        """The number of attributes."""
        return len(self.attributes)

    def build(self, hidden_size: int) -> None:
        """Create weights [A, H] and a bias of 0."""
        self.ratings = nn.Linear(hidden_size, self.outputs)
        nn.init.normal_(self.ratings.weight, std=(hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.ratings.bias)

    def forward(self, last: Tensor, prompt: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Return ratings [N, A]."""
        del prompt, columns
        ratings: Tensor = self.ratings(last)
        return ratings


def _names(setting: str, names: Sequence[str]) -> list[str]:
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{setting} must name at least one column, each once, but is {list(names)}.")
    return list(names)


def _features_of(row: PreferenceRow, name: str) -> list[float]:
    values = row.columns[name]
    assert isinstance(values, tuple)
    return [float(value) for value in values]  # type: ignore[arg-type]
