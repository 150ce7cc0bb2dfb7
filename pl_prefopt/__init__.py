"""Preference optimisation of language models on PyTorch Lightning."""
