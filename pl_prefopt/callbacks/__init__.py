"""Lightning callbacks."""

from pl_prefopt.callbacks.best_checkpoint import BestCheckpoint
from pl_prefopt.callbacks.dashboard_layout import DashboardLayout
from pl_prefopt.callbacks.early_stop import EarlyStop
from pl_prefopt.callbacks.first_validation import FirstValidation
from pl_prefopt.callbacks.generations import Generations
from pl_prefopt.callbacks.last_checkpoint import LastCheckpoint
from pl_prefopt.callbacks.margin_histogram import MarginHistogram
from pl_prefopt.callbacks.metrics_file import MetricsFile
from pl_prefopt.callbacks.parameter_count import ParameterCount
from pl_prefopt.callbacks.prediction_writer import PredictionWriter
from pl_prefopt.callbacks.progress_bar import ProgressBar
from pl_prefopt.callbacks.reference_ensemble import ReferenceEnsemble
from pl_prefopt.callbacks.results_table import ResultsTable
from pl_prefopt.callbacks.run_facts import RunFacts
from pl_prefopt.callbacks.tensorboard import PairedTensorBoard
from pl_prefopt.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "DashboardLayout",
    "EarlyStop",
    "FirstValidation",
    "Generations",
    "LastCheckpoint",
    "MarginHistogram",
    "MetricsFile",
    "PairedTensorBoard",
    "ParameterCount",
    "PredictionWriter",
    "ProgressBar",
    "ReferenceEnsemble",
    "ResultsTable",
    "RunFacts",
    "Throughput",
]
