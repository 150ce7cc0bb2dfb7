"""Lightning callbacks."""

from pl_prefopt.callbacks.last_checkpoint import LastCheckpoint
from pl_prefopt.callbacks.metrics_file import MetricsFile
from pl_prefopt.callbacks.prediction_writer import PredictionWriter
from pl_prefopt.callbacks.reference_ensemble import ReferenceEnsemble

__all__ = ["LastCheckpoint", "MetricsFile", "PredictionWriter", "ReferenceEnsemble"]
