"""How many of a model's parameters are trained, in one line."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary


class ParameterCount(ModelSummary):
    """Print what Lightning's table of layers says of use here."""

    @staticmethod
    def summarize(
        summary_data: Any, total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        """Print the line; the arguments are Lightning's."""
        print(f"{trainable_parameters:,} of {total_parameters:,} parameters are trained")
