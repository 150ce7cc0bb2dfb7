"""The base classes of all metrics, whose states stay exact across ranks and precisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics.arrays import taking_arrays


def all_present(scores: Tensor, present: Tensor | None) -> Tensor:
    """Return ``present``, by default true for every response of ``scores``."""
    return torch.ones_like(scores, dtype=torch.bool) if present is None else present


def keep(values: list[Tensor], new: Tensor) -> None:
    """Append to a list of tensors, joining its last ones so that it stays short.

    A tensor per batch would take hundreds of bytes each. Each value is copied O(log n) times.
    """
    values.append(new)
    while len(values) > 1 and len(values[-1]) >= len(values[-2]):
        last = values.pop()
        values[-1] = torch.cat([values[-1], last])


class PreferenceMetric(Metric):
    """The base of all metrics: states stay float32 and int64 whatever the module around it is cast to.

    One of your own says what it is in ``info``, adds its states and names what it reads, of
    ``pl_prefopt.metrics.INPUTS``, as parameters of ``update``. ``model.init_args.metrics`` adds it to a run.
    ``Mean``, ``Share`` and ``Correlation`` have the states of most metrics. Lists and NumPy arrays arrive in
    ``update`` as tensors.

    Half-precision plugins call ``module.to(torch.bfloat16)``, in which a counter stops at 256, and
    ``set_dtype(torch.float32)`` would turn counters into floats that stop at 2²⁴. Here both only move.

    Subclasses replace their states and never add to them in place: ``Trainer.validate`` runs in inference
    mode, and what is reset there may not be changed in place in the next ``fit``.
    """

    full_state_update = False
    columns: ClassVar[tuple[str, ...]] = ()
    """Extra columns that every row must have; ``update`` gets them as ``columns``, by name."""
    page: ClassVar[str] = "metrics.md"
    info: MetricInfo
    """The description of the metric. Metrics of the registry have theirs there."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update" in cls.__dict__:
            cls.update = taking_arrays(cls.__dict__["update"])  # type: ignore[method-assign]

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(move, exclude_state)
        return self


class Mean(PreferenceMetric):
    """A mean over what its subclass counts; NaN if nothing was counted.

    Examples:
        >>> class LongestResponse(Mean):
        ...     def update(self, policy, present):
        ...         self.add(policy.length.amax(dim=-1), present.any(dim=-1))
    """

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values: Tensor, where: Tensor) -> None:
        """Count ``values`` where ``where`` is true; both of one shape, or broadcastable to ``where``'s."""
        self.total = self.total + torch.where(where, values.float(), 0.0).sum()
        self.count = self.count + where.sum()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count


class Share(PreferenceMetric):
    """The share of correct comparisons; ties count as 0.5. NaN if there were none, or if a margin is NaN."""

    half_points: Tensor
    count: Tensor
    undefined: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Half points are whole numbers: a float32 sum would stop growing after 2**24 comparisons.
        self.add_state("half_points", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("undefined", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, margins: Tensor, where: Tensor) -> None:
        """Count ``margins``, positive where right, where ``where`` is true."""
        points = torch.where(margins > 0, 2, torch.where(margins == 0, 1, 0))
        self.half_points = self.half_points + torch.where(where, points, 0).sum()
        self.count = self.count + where.sum()
        self.undefined = self.undefined + (margins.isnan() & where).sum()

    def compute(self) -> Tensor:
        """Return the share."""
        share = self.half_points / (2 * self.count)
        return torch.where(self.undefined > 0, torch.nan, share)


class Correlation(PreferenceMetric, ABC):
    """A correlation of two values over what its subclass counts.

    All values are kept, in float32, since rank correlations cannot be added up; ranks are concatenated
    before the one computation, so that the result is that of a single process. NaN where fewer than
    two values came or where one side is constant.
    """

    first: list[Tensor]
    second: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("first", [], dist_reduce_fx="cat")
        self.add_state("second", [], dist_reduce_fx="cat")

    def add(self, first: Tensor, second: Tensor, where: Tensor) -> None:
        """Count the values where ``where`` is true; all three of one shape."""
        keep(self.first, first[where].float())
        keep(self.second, second[where].float())

    def compute(self) -> Tensor:
        """Return the correlation."""
        # After a sync the states are tensors and not lists; a rank without updates has an empty list.
        if isinstance(self.first, list) and not self.first:
            return torch.tensor(torch.nan, device=self.device)
        first, second = dim_zero_cat(self.first), dim_zero_cat(self.second)
        if len(first) < 2 or (first == first[0]).all() or (second == second[0]).all():
            return first.new_tensor(torch.nan)
        return self.correlate(first, second)

    @abstractmethod
    def correlate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the correlation of two float32 vectors, neither of them constant."""
