"""The data module, the `data:` section of a configuration: from sources to batches."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from pl_prefopt.data.arrow import Parts
from pl_prefopt.data.cache import Cache
from pl_prefopt.data.contracts import RowReader, is_row_reader
from pl_prefopt.data.dataset import PreferenceDataset
from pl_prefopt.data.formats import WEIGHT, check_weights
from pl_prefopt.data.mixtures import Mixture, Sources, join, mixture_of
from pl_prefopt.data.names import Names
from pl_prefopt.data.order import RowOrder
from pl_prefopt.data.renderer import TEMPLATE_NAMES, Renderer, TemplateName, read_template
from pl_prefopt.data.report import OnBadRow
from pl_prefopt.data.required import require_columns, require_same_kinds
from pl_prefopt.data.sampler import LengthGroupedSampler, SameOrderSampler
from pl_prefopt.data.sources import Source, check_names
from pl_prefopt.data.store import RowStore, split_rows, store_rows
from pl_prefopt.data.transforms import RowTransform, transform_rows
from pl_prefopt.data.worst_case_batches import full_batch, largest_batch
from pl_prefopt.errors import ConfigError, first_line, printable
from pl_prefopt.types import PreferenceBatch
from pl_prefopt.views import View

SPLITS_OF_STAGE = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "val", "test", "predict"),
}
Given: TypeAlias = str | Source | list[str | Source] | dict[str, Any]
"""Sources of a split: one, several, or several by name."""


class PreferenceDataModule(LightningDataModule):
    """Preference data from files, folders or the hub, tokenised once and cached.

    Args:
        train: the training rows: a path, a pattern or a hub name, or a ``Source``; a list of such; or a
            mapping of such by name. From Python also rows in memory: a list of dictionaries, a pandas or
            polars frame, or a ``datasets.Dataset``. ``Source.passes`` and ``Source.rows_per_epoch`` weight
            several sources.
        val: the validation rows, likewise. Those of a mapping are also measured by name:
            ``val/helpful/accuracy`` in addition to ``val/accuracy`` of all rows.
        test: the test rows, likewise.
        predict: the rows to score, likewise.
        held_out: rows to hold out from ``train`` for validation if ``val`` is not set: a number of rows (int)
            or a fraction (float below 1). Rows with the same prompt stay together.
        batch_size: training prompts per batch and device.
        max_tokens_per_batch: maximum number of tokens per training batch and device, prompts counted once;
            ``None`` for no limit. With a limit, ``batch_size`` can be set large.
        eval_batch_size: prompts per batch and device in evaluation and prediction; ``batch_size`` by default.
        tokenizer: a tokeniser's folder or hub name; the policy's own by default.
        template: ``auto``, ``chat``, ``plain`` or ``none``, or a file with a chat template; see ``Renderer``.
        template_arguments: arguments of the chat template for all rows, such as ``{enable_thinking: false}``;
            a row's own ``chat_template_kwargs`` take precedence.
        max_prompt_length: maximum number of prompt tokens; prompts are truncated on the left. ``None`` for no
            limit.
        max_response_length: maximum number of response tokens; responses are truncated on the right. ``None``
            for no limit.
        on_bad_row: ``error`` stops at the first bad row, ``skip`` skips bad rows and counts them.
        max_rows: maximum number of rows to read from the start of each source; ``None`` for all.
        columns: maps our column names to those of the files, such as ``{prompt: question, annotator:
            rater}``. Ours are the columns of the layouts; any other name becomes an extra column of the rows.
        aspects: columns with one rating per response, and their weights, such as ``{helpfulness: 1, honesty:
            2}``. The weighted mean of the ratings takes the place of a row's scores; a row that lacks one of
            them is a bad row.
        order: the order of the training rows within an epoch, for a curriculum; random if ``None``.
        transforms: what is done to the training rows before they are tokenised, in order; rows that are held
            out stay as they are.
        seed: random seed of the training order and of ``held_out``.
        num_workers: number of worker processes that prepare batches.
        cache_dir: folder of the cache for rows and tokens.

    Attributes:
        names: the numbers of the names in the columns for which the objective wants numbers, by column: those
            of the training rows, in sorted order. They are in the checkpoint, and so stay the same when a run
            is resumed or evaluated.
        sampler_columns: the extra columns that every row must have for the sampler of a subclass, which
            reads them from ``PreferenceDataset.column``.
        curriculum: the numbers that ``reorder`` was given, ``None`` before.
    """

    sampler_columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        train: Given | None = None,
        val: Given | None = None,
        test: Given | None = None,
        predict: Given | None = None,
        *,
        held_out: int | float = 0,
        batch_size: int = 4,
        max_tokens_per_batch: int | None = None,
        eval_batch_size: int | None = None,
        tokenizer: str | None = None,
        template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        max_prompt_length: int | None = 1024,
        max_response_length: int | None = 1024,
        on_bad_row: OnBadRow = "error",
        max_rows: int | None = None,
        columns: dict[str, str] | None = None,
        aspects: dict[str, float] | None = None,
        order: RowOrder | None = None,
        transforms: list[RowTransform] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str = ".cache/pl_prefopt",
    ) -> None:
        super().__init__()
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self.sources = {split: Sources(split, one) for split, one in given.items() if one is not None}
        self.held_out = held_out if val is None else 0
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.tokenizer, self.template = tokenizer, template
        self.template_arguments = template_arguments or {}
        self.max_prompt_length, self.max_response_length = max_prompt_length, max_response_length
        self.on_bad_row, self.max_rows = on_bad_row, max_rows
        self.columns, self.aspects = columns or {}, aspects or {}
        self.order, self.transforms = order, list(transforms or ())
        self.curriculum: npt.NDArray[np.float64] | None = None
        self._train_sampler: LengthGroupedSampler | None = None
        self._keys: tuple[str, npt.NDArray[np.float64]] = ("", np.empty(0))
        self._mixed: tuple[str, Mixture | None] = ("", None)
        self.seed, self.num_workers = seed, num_workers
        self.datasets: dict[str, PreferenceDataset] = {}
        self.names: dict[str, Names] = {}
        self._cache = Cache(cache_dir)
        self._renderer: Renderer | None = None
        self._start = _Position()
        self._told: set[str] = set()  # lines already printed on unused columns, often equal between splits
        self._check_settings()

    def _check_settings(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("max_tokens_per_batch", self.max_tokens_per_batch, 1),
            ("max_rows", self.max_rows, 1),
            ("num_workers", self.num_workers, 0),
            ("held_out", self.held_out, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(
                    f"expected `data.{name}` to be at least {least}, got {value}; set a larger number"
                )
        if isinstance(self.held_out, float) and self.held_out >= 1:
            raise ConfigError(
                f"expected `data.held_out` to be a fraction below 1 or a number of rows, got "
                f"{self.held_out}; write {int(self.held_out)} for rows"
            )
        check_names(self.columns)
        check_weights(self.aspects)
        if self.template not in TEMPLATE_NAMES:
            read_template(self.template)  # refused before anything is loaded

    @property
    def renderer(self) -> Renderer:
        """The renderer, which turns rows into tokens.

        Raises:
            ConfigError: before ``setup``.
        """
        if self._renderer is None:
            raise ConfigError(
                "expected the data to be set up before its renderer is used; call `setup` first"
            )
        return self._renderer

    # -- preparation

    def prepare_data(self) -> None:
        """Read and tokenise what the run needs, on one process per node; the others read the cache."""
        stage = None if self.trainer is None else self.trainer.state.fn
        renderer = self._make_renderer()
        for split in self._splits(None if stage is None else stage.value):
            self._open(split, renderer)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits of a stage: ``fit``, ``validate``, ``test``, ``predict`` or all.

        Raises:
            ConfigError: if a split that the stage needs is not set.
            DataError: if a source cannot be read, or has bad rows and those are errors.
        """
        self._renderer = self._make_renderer()
        if stage in ("fit", None):
            self._start = _Position()
            self.curriculum = None  # of an earlier run
        for split in self._splits(stage):
            fresh = self._open(split, self._renderer)
            known = self.datasets.get(split)
            if known is None or known.fingerprint != fresh.fingerprint:
                new = [line for line in fresh.unused_columns if line not in self._told]
                _print_once("\n  ".join([fresh.report, *new]))
                self._told.update(new)
            self.datasets[split] = fresh
        if self._reader() is not None:
            require_same_kinds(self.datasets)
        if "train" in self.datasets:
            self._order_keys(self.datasets["train"])  # rows that can't be ordered are refused here
            self._check_mixture()
        self._number_names()

    def _number_names(self) -> None:
        """Give each dataset the tables of the names whose numbers its batches should have."""
        reader = self._reader()
        asked: tuple[str, ...] = () if reader is None else getattr(reader.needs, "names", ())
        tables = dict(self.names)
        for column in asked:
            if column not in tables:
                train = self.datasets.get("train")
                rows = train if train is not None else next(iter(self.datasets.values()))
                tables[column] = Names.of(rows.column(column), column)
                if train is not None:
                    self.names[column] = tables[column]
        for dataset in self.datasets.values():
            dataset.names = {column: tables[column] for column in asked}

    def _splits(self, stage: str | None) -> list[str]:
        """Return the splits to open for a stage; raise if one that it needs is not set."""
        available = set(self.sources)
        if self.held_out and "train" in available:
            available.add("val")
        needed = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}.get(stage or "")
        if needed and needed not in available:
            alternative = " or `data.held_out`" if needed == "val" else ""
            raise ConfigError(
                f"expected data to {stage} with, got none; set `data.{needed}`{alternative}, "
                f"for example `--data.{needed} rows.jsonl`"
            )
        return [split for split in SPLITS_OF_STAGE[stage] if split in available]

    def _open(self, split: str, renderer: Renderer) -> PreferenceDataset:
        held = split == "val" and "val" not in self.sources
        source = self.sources["train" if held else split]
        store = self._store(source)
        numbers: npt.NDArray[np.int64] | None = None
        if self.held_out and split in ("train", "val"):
            numbers = split_rows(self._cache, store, self.held_out, self.seed)[held]
        changes: list[str] = []
        if self.transforms and split == "train":
            store, changes = self._transformed(store, numbers, source.label)
            numbers = None
        reader = self._reader()
        asked = dict.fromkeys(self.sampler_columns, type(self).__name__)
        if self.order is not None and split == "train":
            asked |= dict.fromkeys(self.order.columns, "data.order")
        if reader is not None:
            asked |= {column: reader.needed_by(column) for column in reader.needs.columns}
        require_columns(store, numbers, asked, f"{split} ({source.label})")
        dataset = PreferenceDataset.tokenised(
            _without_problems(store) if held else store,
            renderer,
            cache=self._cache,
            split=split,
            title=f"{split} (held out from {source.label})" if held else f"{split} ({source.label})",
            numbers=numbers,
            views=self._views(),
            on_bad_row=self.on_bad_row,
            columns=None if reader is None else (*asked, WEIGHT),
        )
        dataset.report = "\n  ".join([dataset.report, *changes])
        return dataset

    def _store(self, sources: Sources) -> RowStore:
        """Return the rows of the sources of a split."""
        stores = [
            store_rows(
                self._cache,
                source,
                on_bad_row=self.on_bad_row,
                max_rows=self.max_rows,
                columns=self.columns,
                aspects=self.aspects,
            )
            for source in sources
        ]
        return join(stores, sources)

    def _transformed(
        self, store: RowStore, numbers: npt.NDArray[np.int64] | None, label: str
    ) -> tuple[RowStore, list[str]]:
        """Return the training rows after the transforms, and a line on what each of these did."""
        others = [self._store(self.sources[split]) for split in ("val", "test") if split in self.sources]
        held_out = [one.rows for one in others]
        if numbers is not None:
            held_out.append(store.rows.subset(np.setdiff1d(np.arange(len(store.rows)), numbers)))
        key = ([one.content for one in others], None if numbers is None else numbers.tobytes())
        found = transform_rows(
            self._cache,
            store,
            self.transforms,
            numbers=numbers,
            held_out=held_out,
            held_out_key=key,
            title=f"train ({label})",
        )
        rows, parts = found.store.rows, store.rows.part_numbers[found.parents]
        made = found.store._replace(rows=rows.with_parts(Parts(store.rows.part_names, parts)))
        return made, [str(change) for change in found.changes]

    def _reader(self) -> RowReader | None:
        """Return the module that reads the batches, if it is a ``RowReader``."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if is_row_reader(module) else None

    def _views(self) -> Mapping[str, View]:
        reader = self._reader()
        return {} if reader is None else reader.needs.views

    def _make_renderer(self) -> Renderer:
        return Renderer(
            self._load_tokenizer(),
            template=self.template,
            arguments=self.template_arguments,
            max_prompt_length=self.max_prompt_length,
            max_response_length=self.max_response_length,
        )

    def _load_tokenizer(self) -> Any:
        if self.tokenizer is None:
            reader = self._reader()
            if reader is None:
                raise ConfigError(
                    "expected a module that provides a tokeniser, got none; set `data.tokenizer` to a "
                    "tokeniser's folder or hub name"
                )
            return reader.load_tokenizer()
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"expected a tokeniser at `data.tokenizer: {self.tokenizer}`, got: {first_line(error)}; "
                "check the name"
            ) from error

    # -- batches

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Return the loader of the training rows, in a new order each epoch."""
        dataset = self.datasets["train"]
        sampler = self._sampler(dataset, self.batch_size, shuffle=True)
        sampler.resume(*self._position())
        if self.curriculum is not None:
            sampler.reorder(self.curriculum)
        self._train_sampler = sampler
        return self._loader(dataset, sampler)

    def reorder(self, keys: npt.NDArray[np.float64]) -> None:
        """Go through the training rows by ascending key from the next epoch on, in place of ``order``.

        Args:
            keys: float64 [rows], a number per training row.
        """
        self.curriculum = keys
        if self._train_sampler is not None:
            self._train_sampler.reorder(keys)

    def val_dataloader(self) -> DataLoader[PreferenceBatch] | dict[str, DataLoader[PreferenceBatch]]:
        """Return the loader of the validation rows, each row once, longest first; none without such rows."""
        if "val" in self.datasets:
            return self._eval_dataloader("val")
        # Intended where there are no validation rows, so Lightning's warning would mislead.
        warnings.filterwarnings("ignore", "Total length of `dict` across ranks is zero")
        return {}

    def test_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Return the loader of the test rows, each row once, longest first."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Return the loader of the rows to score, each row once, longest first."""
        return self._eval_dataloader("predict")

    def _eval_dataloader(self, split: str) -> DataLoader[PreferenceBatch]:
        dataset = self.datasets[split]
        return self._loader(dataset, self._sampler(dataset, self.eval_batch_size, shuffle=False))

    def _sampler(self, dataset: PreferenceDataset, batch_size: int, *, shuffle: bool) -> LengthGroupedSampler:
        ranks = {} if self.trainer is None else self.trainer.distributed_sampler_kwargs or {}
        limit = self.max_tokens_per_batch if shuffle else None
        overfits = bool(getattr(self.trainer, "overfit_batches", 0))
        keys = self._order_keys(dataset) if shuffle else None
        return (SameOrderSampler if overfits else LengthGroupedSampler)(
            dataset.lengths,
            batch_size,
            shuffle=shuffle,
            max_tokens=limit,
            seed=self.seed,
            keys=keys,
            mixture=self._mixture(dataset) if dataset.split == "train" else None,
            **ranks,
        )

    def _mixture(self, dataset: PreferenceDataset) -> Mixture | None:
        """Return which training rows each epoch has, computed once per dataset."""
        if self._mixed[0] != dataset.fingerprint:
            mixture = mixture_of(dataset.rows.part_numbers, self.sources["train"], self.seed)
            self._mixed = (dataset.fingerprint, mixture)
        return self._mixed[1]

    def _check_mixture(self) -> None:
        """Print the rows per epoch of each source, and refuse a token limit if they change by epoch."""
        dataset, sources = self.datasets["train"], self.sources["train"]
        mixture = self._mixture(dataset)
        if mixture is not None and self.max_tokens_per_batch is not None and not mixture.is_constant:
            raise ConfigError(
                "expected each epoch to have the same rows, since `data.max_tokens_per_batch` fixes the "
                "batches, but `passes` or `rows_per_epoch` of a source makes them differ: use whole numbers "
                "of passes, or remove `data.max_tokens_per_batch`"
            )
        counts = np.bincount(dataset.rows.part_numbers, minlength=len(sources)).tolist()
        if len(sources) == 1 and mixture is None:
            return
        quotas = counts if mixture is None else mixture.quotas
        lines = [
            f"  {label}: {count} rows, {quota} per epoch"
            for label, count, quota in zip(sources.labels, counts, quotas, strict=True)
        ]
        if lines[0] not in self._told:
            _print_once("\n".join(lines))
            self._told.update(lines)

    def _order_keys(self, dataset: PreferenceDataset) -> npt.NDArray[np.float64] | None:
        """Return the numbers by which the training rows are ordered, computed once per dataset."""
        if self.order is None:
            return None
        if self._keys[0] != dataset.fingerprint:
            self._keys = (dataset.fingerprint, self.order.keys(dataset))
        return self._keys[1]

    def _loader(self, dataset: Dataset[Any], sampler: LengthGroupedSampler) -> DataLoader[PreferenceBatch]:
        return _Loader(
            dataset,
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def prompts_per_batch(self) -> float:
        """The mean number of training prompts per batch and device."""
        if self.max_tokens_per_batch is None:
            return self.batch_size
        sampler = self._sampler(self.datasets["train"], self.batch_size, shuffle=True)
        return sampler.rows_per_epoch / (len(sampler) * sampler.num_replicas)

    # -- planning

    def largest_batch(self) -> PreferenceBatch:
        """Return the training batch with the most tokens that can occur in an epoch; call after ``setup``."""
        dataset, limited = self.datasets["train"], self.max_tokens_per_batch is not None
        # Without a token limit, batches change from epoch to epoch: at worst the longest rows share one.
        return largest_batch(dataset, self._sampler(dataset, self.batch_size, shuffle=limited))

    def full_batch(self, responses: int) -> PreferenceBatch:
        """Return a training batch with the longest prompts and responses that the limits allow.

        This needs no data.

        Args:
            responses: number of responses per prompt.

        Raises:
            ConfigError: if there is no limit on prompts or responses.
        """
        prompt, response = self.max_prompt_length, self.max_response_length
        if prompt is None or response is None:
            raise ConfigError(
                "expected `data.max_prompt_length` and `data.max_response_length` for a plan without data, "
                "got null; set them, or set `data.train`"
            )
        most = (self.max_tokens_per_batch or math.inf) // (prompt + responses * response)
        rows = max(1, int(min(self.batch_size, most)))
        return full_batch(
            rows=rows, responses=responses, prompt=prompt, response=response, views=self._views()
        )

    # -- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data and a description of the rows, for a checkpoint."""
        if "train" not in self.datasets or self.trainer is None:
            return {}
        epoch, batches_done = self._position()
        # Checkpoints don't have the accumulated gradients of an unfinished step: repeat its batches.
        again = batches_since_step(self.trainer)
        position = _Position(epoch, batches_done - again, self._batches_now() - again)
        state = {**position._asdict(), "order": self._order(), "splits": self._splits_described()}
        if self.names:
            state["names"] = {column: list(table.names) for column, table in self.names.items()}
        return state

    def _splits_described(self) -> dict[str, dict[str, Any]]:
        return {
            split: {"rows": len(rows), "skipped": rows.summary.skipped, "fingerprint": rows.fingerprint}
            for split, rows in self.datasets.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the position stored in a checkpoint, with its numbers of names."""
        self._load_names(state_dict.get("names", {}))
        if not state_dict or "train" not in self.datasets:
            return
        if state_dict["order"] != self._order():
            rank_zero_warn(
                "The training rows, rows per epoch, `data.batch_size`, `data.seed`, `data.order` or the "
                "number of devices differ from those of the checkpoint, so the rest of its epoch may repeat "
                "some rows and miss others."
            )
        self._start = _Position(**{field: state_dict[field] for field in _Position._fields})

    def _load_names(self, tables: Mapping[str, list[str]]) -> None:
        for column, names in tables.items():
            stored = Names(tuple(names))
            new = set(self.names[column].names).difference(names) if column in self.names else ()
            if new and "train" in self.datasets:
                rank_zero_warn(
                    f"The training rows have names in the column '{column}' that the checkpoint doesn't "
                    f"know, such as '{printable(min(new))}'; all {len(new)} of them get the number -1."
                )
            self.names[column] = stored
        self._number_names()

    def _order(self) -> list[Any]:
        """Return everything that the order of the training batches depends on."""
        dataset = self.datasets["train"]
        sampler = self._sampler(dataset, self.batch_size, shuffle=True)
        limits = [self.batch_size, self.max_tokens_per_batch]
        keys = self._order_keys(dataset)
        ordered = [] if keys is None else [hashlib.sha256(keys.tobytes()).hexdigest()]
        mixture = self._mixture(dataset)
        mixed = [] if mixture is None else [mixture.quotas]
        return [dataset.tokens_fingerprint, *limits, self.seed, sampler.num_replicas, *ordered, *mixed]

    def _position(self) -> tuple[int, int]:
        """Return the current epoch and the number of its batches that are done.

        It is derived from the total number of batches, since Lightning's counters for the current epoch mean
        different things in different hooks.
        """
        batches_now, batches_an_epoch = self._batches_now(), self._batches_an_epoch()
        # Until the loops have restored their state, their counters are 0.
        done = self._start.batches_done + max(0, batches_now - self._start.batches_before)
        if not batches_an_epoch:
            return self._start.epoch, done
        return self._start.epoch + done // batches_an_epoch, done % batches_an_epoch

    def _batches_now(self) -> int:
        """Return the number of batches that this trainer, or the run it resumes, has trained on."""
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        return int(progress["total"]["processed"])

    def _batches_an_epoch(self) -> int:
        """Return the number of batches per epoch, after ``limit_train_batches``; 0 while it is unknown."""
        batches = 0 if self.trainer is None else self.trainer.num_training_batches
        return 0 if batches == float("inf") else int(batches)


def batches_since_step(trainer: Trainer) -> int:
    """Return the number of training batches accumulated since the last optimiser step."""
    loop = trainer.fit_loop.epoch_loop
    if loop._num_ready_batches_reached():  # Lightning steps at an epoch's last batch
        return 0
    progress: Any = loop.batch_progress.current
    return int(progress.processed) % trainer.accumulate_grad_batches


class _Position(NamedTuple):
    """Where training started: the epoch, its batches already done, and the total number of batches then."""

    epoch: int = 0
    batches_done: int = 0
    batches_before: int = 0


class _Loader(DataLoader[PreferenceBatch]):
    """A loader that Lightning treats as resumable; the data module stores its state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        del state_dict


def _as_it_is(batch: Any) -> Any:
    return batch


def _without_problems(store: RowStore) -> RowStore:
    """Return the store without its bad and joined rows, which are counted once, with the training split."""
    return store._replace(skipped=0, problems=[], joined=())


@rank_zero_only
def _print_once(text: str) -> None:
    print(text, flush=True)
