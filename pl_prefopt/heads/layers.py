"""Layers that several heads have."""

from __future__ import annotations

from torch import nn


def linear(hidden_size: int, outputs: int) -> nn.Linear:
    """Return a linear map without bias whose weights have a standard deviation of 1/√(H + 1).

    Outputs then start at about 1 in size where hidden states have about 1 per coordinate.
    """
    layer = nn.Linear(hidden_size, outputs, bias=False)
    nn.init.normal_(layer.weight, std=(hidden_size + 1) ** -0.5)
    return layer


def projection(hidden_size: int, outputs: int, hidden_layers: int) -> nn.Module:
    """Return a linear map from hidden states, after ``hidden_layers`` of their own size with GELU."""
    layers: list[nn.Module] = []
    for _ in range(hidden_layers):
        layers += [nn.Linear(hidden_size, hidden_size), nn.GELU()]
    return nn.Sequential(*layers, linear(hidden_size, outputs))
