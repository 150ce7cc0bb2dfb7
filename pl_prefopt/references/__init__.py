"""Frozen models that a policy is compared with."""
