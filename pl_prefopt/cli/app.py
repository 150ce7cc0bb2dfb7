"""LightningCLI with references, a run folder, and errors for people."""

from __future__ import annotations

import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pl_prefopt.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    MetricsFile,
    ParameterCount,
    PredictionWriter,
    ReferenceEnsemble,
    ResultsTable,
)
from pl_prefopt.cli.failures import failure_behind
from pl_prefopt.cli.mistakes import explain, origin_of
from pl_prefopt.cli.parser import Parser, RefusedError
from pl_prefopt.cli.run_config import RunConfig
from pl_prefopt.cli.run_folder import (
    choose_run_folder,
    find_checkpoint,
    keep_earlier_metrics,
    refuse_second_run,
    require_run_folder,
)
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.cli.trainer import PrefOptTrainer
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import PreferenceModule, SafeCheckpointIO


class PrefOptCLI(LightningCLI):
    """``prefopt fit | validate | test | predict``."""

    trained_by: ClassVar[type[PrefOptTrainer]] = PrefOptTrainer

    def __init__(self, args: list[str] | None = None) -> None:
        self.to_hold: Path | None = None
        with ExitStack() as self.held:  # until the command ends
            super().__init__(
                PreferenceModule,
                PreferenceDataModule,
                trainer_class=self.trained_by,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                save_config_callback=RunConfig,
                seed_everything_default=0,
                parser_kwargs={"description": "Preference optimisation of language models."},
                parser_class=Parser,
                args=args,
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The stages, and the arguments of each that the command line does not offer."""
        stages = LightningCLI.subcommands()
        # Predictions go to a file; keeping them in memory as well would not scale.
        stages["predict"] = stages["predict"] | {"return_predictions"}
        for stage in ("validate", "test"):
            stages[stage] = stages[stage] | {"verbose"}  # the ResultsTable is printed instead
        stages["precompute"] = {"model", "datamodule"}
        return stages

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``references``, ``best``, ``last`` and ``run_dir``."""
        parser.add_lightning_class_args(ReferenceEnsemble, "references")
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.set_defaults({"best.filename": "best", "best.enable_version_counter": False})
        parser.set_defaults({"best.monitor": "val/accuracy", "best.mode": "max"})
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder: config, metrics, events, checkpoints. Default: runs/<objective>-<time>.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; of what the parser refuses, say in which file and under which key it stands."""
        try:
            super().parse_arguments(parser, args)
        except RefusedError as refused:
            given = sys.argv[1:] if args is None else args
            if refused.key:
                raise ConfigError(f"{origin_of(given, refused.key)}{refused}") from refused
            raise ConfigError(explain(given) or str(refused)) from refused

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let a checkpoint's own settings override it."""

    def before_instantiate_classes(self) -> None:
        """Decide on the run's folder before anything is built or loaded."""
        config = self.config[self.subcommand]
        _check_sections(config)
        method = str(config.model.init_args.objective.class_path).rsplit(".", 1)[-1]
        if self.subcommand == "precompute":
            self._prepare_precompute(config)
            return
        training = self.subcommand == "fit"
        asked = config.get("ckpt_path")
        if asked in ("last", "best"):
            require_run_folder(asked, config.run_dir)
        self.run_folder = choose_run_folder(asked=config.run_dir, ckpt_path=asked, method=method)
        if training and not config.trainer.fast_dev_run:
            refuse_second_run(self.run_folder, asked)
            self.to_hold = self.run_folder
            if self.run_folder.is_dir():
                self._hold_run_folder()
        config.ckpt_path = find_checkpoint(asked, self.run_folder, may_be_missing=training)
        config.run_dir = str(self.run_folder)
        if training and not _validates(config):
            # Without validation there is no best; with a monitor Lightning would stop at the epoch's end.
            config.best.monitor, config.best.save_top_k = None, 0
        self.trainer_defaults["callbacks"] = [
            MetricsFile(config.run_dir),
            PredictionWriter(config.run_dir),
            ResultsTable(),
        ]
        if config.trainer.enable_model_summary is None:  # with `true` there is Lightning's table
            self.trainer_defaults["callbacks"].append(ParameterCount())

    def _prepare_precompute(self, config: Any) -> None:
        """Leave nothing behind but the tables."""
        config.references.precompute = True
        config.trainer.logger = False
        config.trainer.num_sanity_val_steps = 0
        config.trainer.enable_model_summary = False
        config.best.monitor, config.best.save_top_k = None, 0
        self.save_config_callback = None
        self.run_folder = Path(config.run_dir or config.references.cache_dir)

    def instantiate_classes(self) -> None:
        """Build what the settings describe; what is missing or refused is a mistake in the settings."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if failure_behind(error) is not None:
                raise
            missing = _missing_package(error)
            if missing is not None:
                raise ConfigError(
                    f"The configuration names a class that needs a package: {missing}. Those of loggers "
                    "come with `pip install 'pl-prefopt[loggers]'`."
                ) from error
            raise ConfigError(
                f"the settings of {_being_built(error)} don't work: {error or type(error).__name__}"
            ) from error

    def after_instantiate_classes(self) -> None:
        """Name the checkpoint to the module, which looks into it once it has weights to compare with."""
        self.model.restored_from = self.config[self.subcommand].get("ckpt_path")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with its files in the run's folder."""
        for key in ("best", "last"):
            checkpoint = self._get(self.config_init, key)
            checkpoint.dirpath = checkpoint.dirpath or str(self.run_folder / "checkpoints")
        asked = self._get(self.config_init, "trainer")
        self._hold_run_folder()  # which makes a new one only now: a mistake in the settings leaves none
        # Only training writes at the top: evaluating later must not mix its curves into training's.
        logs = self.run_folder if self.subcommand == "fit" else self.run_folder / str(self.subcommand)
        if asked["enable_progress_bar"] is False:
            # Lightning refuses one that is configured, as in configs/base.yaml; the switch comes later.
            kwargs["callbacks"] = [
                one for one in _listed(asked["callbacks"]) if not isinstance(one, ProgressBar)
            ]
        trainer = super().instantiate_trainer(
            logger=_loggers(asked["logger"], logs),
            default_root_dir=asked["default_root_dir"] or str(self.run_folder),
            **kwargs,
        )
        # The default is replaced; who asked for another has it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    def _hold_run_folder(self) -> None:
        """Keep other runs out of the folder of one that trains, once."""
        if self.to_hold is not None:
            self.held.enter_context(alone_in(self.to_hold))
            self.to_hold = None

    def validate(self, **kwargs: Any) -> None:
        """Run ``Trainer.validate`` without its own table."""
        self.trainer.validate(verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Run ``Trainer.test`` without its own table."""
        self.trainer.test(verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Run ``Trainer.predict``; the predictions go to ``predictions.jsonl``."""
        self.trainer.predict(return_predictions=False, **kwargs)

    def after_precompute(self) -> None:
        """Say where the tables are."""
        if self.trainer.is_global_zero:
            for folder in self._get(self.config_init, "references").tables:
                print(f"Log-probs are in {folder}")

    def before_validate(self) -> None:
        """Say so if there is nothing trained to validate."""
        self._say_untrained()

    def before_test(self) -> None:
        """Say so if there is nothing trained to test."""
        self._say_untrained()

    def _say_untrained(self) -> None:
        if self.trainer.is_global_zero and self.config[self.subcommand].get("ckpt_path") is None:
            print("No --ckpt_path given: this measures the policy as it is before training.")


def _check_sections(config: Any) -> None:
    """Raise a ``ConfigError`` where a single value stands for a whole section, which the parser lets pass."""
    for name in ("trainer", "data", "references", "best", "last", "model", "model.init_args.objective"):
        if not isinstance(config.get(name), Namespace):
            raise ConfigError(f"expected `{name}` to be a section of settings, got {config.get(name)!r}.")
    if config.trainer.enable_checkpointing is False:
        raise ConfigError(
            "`trainer.enable_checkpointing: false` would leave nothing of a run: take it out. "
            "`--best.save_top_k 0` keeps no best checkpoint, and `--trainer.fast_dev_run true` tries a step "
            "and writes nothing."
        )
    batches = config.trainer.accumulate_grad_batches
    if batches < 1:  # which Lightning divides by
        raise ConfigError(f"expected `trainer.accumulate_grad_batches` to be at least 1, got {batches}.")


def _being_built(error: Exception) -> str:
    """Return the name of the class whose construction failed."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and not isinstance(made, LightningCLI):
            return type(made).__name__
    return "a class"


def _validates(config: Any) -> bool:
    return config.trainer.limit_val_batches != 0 and bool(config.data.val or config.data.held_out)


def _missing_package(error: BaseException | None) -> ModuleNotFoundError | None:
    """Return the error behind ``error`` that a package is missing: the parser wraps what it meets."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    return error


def _loggers(asked: Any, folder: Path) -> list[Logger] | bool:
    """Return the loggers asked for and always a CSV; without a wish, TensorBoard and CSV."""
    if asked is False:
        return False
    keep_earlier_metrics(folder)
    csv = CSVLogger(save_dir=str(folder), name="", version="")
    if asked is None or asked is True:
        return [TensorBoardLogger(save_dir=str(folder), name="", version=""), csv]
    chosen = _listed(asked)
    return chosen if any(isinstance(logger, CSVLogger) for logger in chosen) else [*chosen, csv]


def _listed(asked: Any) -> list[Any]:
    """Return the objects that a setting asks for: none, one or several."""
    if asked is None:
        return []
    return list(asked) if isinstance(asked, list | tuple) else [asked]
