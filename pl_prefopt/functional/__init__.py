"""Losses as pure functions: no modules, no configuration, no models."""
