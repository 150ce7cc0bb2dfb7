"""Ending a run whose validations no longer improve."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch.callbacks import EarlyStopping

from pl_prefopt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """End the run after validations in a row without a better value of ``best.monitor``.

    Attributes:
        patience: the number of those validations.
        min_delta: an improvement of at most this much counts as none.
    """

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"expected `early_stop.patience` to be at least 1, got {self.patience}.")
        if self.min_delta < 0:
            raise ConfigError(f"expected `early_stop.min_delta` to be 0 or more, got {self.min_delta}.")

    def callback(self, monitor: str | None, mode: str) -> EarlyStopping:
        """Return Lightning's callback for the metric of the best checkpoint.

        Args:
            monitor: ``best.monitor``; ``None`` without validation.
            mode: ``best.mode``.

        Raises:
            ConfigError: if nothing is monitored.
        """
        if monitor is None:
            raise ConfigError(
                "`early_stop` needs validations and `best.monitor`: set data.val or data.held_out, or remove "
                "early_stop."
            )
        return EarlyStopping(
            monitor,
            patience=self.patience,
            min_delta=self.min_delta,
            mode=mode,
            strict=False,  # BestCheckpoint warns if the metric is missing
            verbose=True,
            check_on_train_epoch_end=False,  # otherwise once per epoch, whatever val_check_interval is
        )
