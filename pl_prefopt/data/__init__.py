"""Preference data: reading, rendering, caching and batching.

``PreferenceDataModule`` implements the `data:` section of a configuration; the other names are its parts.
"""

from pl_prefopt.data.cache import Cache
from pl_prefopt.data.collate import collate
from pl_prefopt.data.contracts import RowReader, RowSource, datamodule_of, row_source
from pl_prefopt.data.datamodule import SPLITS_OF_STAGE, PreferenceDataModule, batches_since_step
from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.data.formats import WEIGHT
from pl_prefopt.data.mixtures import Sources
from pl_prefopt.data.names import Names
from pl_prefopt.data.order import ByColumn, ByColumnGap, ByScoreGap, RowOrder
from pl_prefopt.data.prompts import Prompts
from pl_prefopt.data.renderer import EncodedRow, Renderer
from pl_prefopt.data.report import RowsSummary
from pl_prefopt.data.sampler import LengthGroupedSampler
from pl_prefopt.data.sources import Source

__all__ = [
    "SPLITS_OF_STAGE",
    "WEIGHT",
    "ByColumn",
    "ByColumnGap",
    "ByScoreGap",
    "Cache",
    "EncodedRow",
    "LengthGroupedSampler",
    "Names",
    "PreferenceDataModule",
    "PreferenceDataset",
    "Prompts",
    "Renderer",
    "RowOrder",
    "RowReader",
    "RowSource",
    "RowsSummary",
    "Source",
    "Sources",
    "batches_since_step",
    "collate",
    "datamodule_of",
    "row_source",
]
