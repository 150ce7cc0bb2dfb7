"""Extrapolation of weights: further along the way from an initial model to a trained one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pl_prefopt.errors import ContractError


def extrapolate(
    initial: Mapping[str, Tensor], trained: Mapping[str, Tensor], *, factor: float
) -> dict[str, Tensor]:
    """Return θ_1 + α(θ_1 − θ_0) for each weight: ExPO, Zheng et al., arXiv 2404.16792.

    HelpSteer2-Preference (arXiv 2410.01257) trains scaled Bradley-Terry from its regression model and
    extrapolates between the two. α = 0 is the trained model and −1 the initial one. The difference is taken
    in float32 or better. Integers, such as a buffer's count, are those of the trained model. The weights are
    whole ones: an adapter has to be merged first, since its product B A is not linear in B and A together.

    Args:
        initial: θ_0, by name.
        trained: θ_1, by name.
        factor: α; it depends on the two models, and so has no default.

    Raises:
        ContractError: if the two don't have the same names and shapes.

    Examples:
        >>> extrapolate({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, factor=0.5)
        {'w': tensor([4.])}
    """
    shapes = ({name: value.shape for name, value in weights.items()} for weights in (initial, trained))
    first, second = shapes
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if different:
        raise ContractError(
            f"expected the weights of two models of the same shape, but {len(different)} differ, such as "
            f"'{different[0]}': give the model that training started from, with merged adapters."
        )
    return {name: _moved(initial[name], value, factor) for name, value in trained.items()}


def _moved(initial: Tensor, trained: Tensor, factor: float) -> Tensor:
    if not trained.is_floating_point():
        return trained.clone()
    exact = torch.promote_types(trained.dtype, torch.float32)
    end = trained.to(exact)
    return (end + factor * (end - initial.to(end))).to(trained.dtype)
