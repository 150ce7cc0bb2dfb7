"""How many of a model's parameters are trained, in one line."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary


class ParameterCount(ModelSummary):
    """Prints one line in place of Lightning's table of layers."""

    @staticmethod
    def summarize(
        summary_data: Any, total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        """Print the line; the arguments are Lightning's."""
        print(f"{trainable_parameters:,} of {total_parameters:,} parameters are trained")
