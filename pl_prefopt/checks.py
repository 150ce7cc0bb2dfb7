"""Range checks of settings, with one-sentence errors."""

from __future__ import annotations

from pl_prefopt.errors import ConfigError


def positive(name: str, value: float) -> float:
    """Return ``value``, or raise if it is not above 0.

    Raises:
        ConfigError: if ``value`` is 0, negative or NaN.
    """
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, but is {value}.")
    return value


def non_negative(name: str, value: float) -> float:
    """Return ``value``, or raise if it is below 0.

    Raises:
        ConfigError: if ``value`` is negative or NaN.
    """
    if not value >= 0:
        raise ConfigError(f"{name} must be 0 or more, but is {value}.")
    return value


def below_half(name: str, value: float) -> float:
    """Return ``value``, or raise if it lies outside [0, 0.5).

    Raises:
        ConfigError: if ``value`` is negative, 0.5 or more, or NaN.
    """
    if not 0 <= value < 0.5:
        raise ConfigError(f"{name} must be at least 0 and below 0.5, but is {value}.")
    return value


def at_least(name: str, value: int, lowest: int) -> int:
    """Return ``value``, or raise if it is below ``lowest``.

    Raises:
        ConfigError: if it is.
    """
    if value < lowest:
        raise ConfigError(f"{name} must be at least {lowest}, but is {value}.")
    return value
