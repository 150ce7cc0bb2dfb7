"""LightningCLI with references, a run folder, and readable errors."""

from __future__ import annotations

import sys
import traceback
import warnings
from argparse import SUPPRESS
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger

from pl_prefopt.callbacks import (
    BestCheckpoint,
    EarlyStop,
    FirstValidation,
    LastCheckpoint,
    MetricsFile,
    PairedTensorBoard,
    ParameterCount,
    PredictionWriter,
    ReferenceEnsemble,
    ResultsTable,
    RunFacts,
)
from pl_prefopt.cli.config_diagnostics import failed_import
from pl_prefopt.cli.config_files import example_rows
from pl_prefopt.cli.default_settings import BEST, SETTINGS
from pl_prefopt.cli.defaults import (
    CALLBACKS,
    callbacks_of_run,
    check_chosen,
    has_progress_bar,
    listed,
)
from pl_prefopt.cli.failures import failure_behind
from pl_prefopt.cli.given_settings import given_settings, origin_of
from pl_prefopt.cli.next_steps import next_steps
from pl_prefopt.cli.parser import Parser, RefusedError
from pl_prefopt.cli.run_config import RunConfig
from pl_prefopt.cli.run_folder import (
    choose_run_folder,
    find_checkpoint,
    is_first_process,
    keep_earlier_metrics,
    refuse_second_run,
    require_run_folder,
)
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.cli.run_start import Start
from pl_prefopt.cli.trainer import PrefOptTrainer
from pl_prefopt.data import SPLITS_OF_STAGE, PreferenceDataModule
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import PreferenceModule, SafeCheckpointIO
from pl_prefopt.saved_settings import ORIGINS


class PrefOptCLI(LightningCLI):
    """``prefopt fit | validate | test | predict``."""

    trained_by: ClassVar[type[PrefOptTrainer]] = PrefOptTrainer

    def __init__(self, args: list[str] | None = None) -> None:
        self.keeps = False  # whether the command writes a run's files
        self.entered = False
        self.asked = next(iter(sys.argv[1:] if args is None else args), "")
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the stages, each with the arguments that the command line does not expose.

        If the arguments name a stage, it is the only one: building the parser of a stage takes time.
        """
        stages = self.stages()
        return {self.asked: stages[self.asked]} if self.asked in stages else stages

    @staticmethod
    def stages() -> dict[str, set[str]]:
        """Return all stages."""
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
        parser.set_defaults(BEST)
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.set_defaults(SETTINGS)
        parser.add_argument(
            "--early_stop",
            type=EarlyStop | None,
            default=None,
            help="End the run after `patience` validations without a better best.monitor: {patience: 3}.",
        )
        parser.add_argument(
            "--validate_first",
            type=bool,
            default=False,
            help="Validate before the first step of `fit`, too: the report's row 'before training'.",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run folder: config, metrics, events, checkpoints. Default: runs/<objective>-<time>.",
        )
        parser.add_argument(
            "--default_callbacks",
            type=bool | dict[str, bool],
            default=True,
            help=f"Which default callbacks to use in addition to trainer.callbacks: {', '.join(CALLBACKS)}. "
            "`--default_callbacks.Generations false` disables one, `false` all.",
        )
        # In a run's config.yaml: the folder that its relative paths are relative to.
        parser.add_argument(f"--{ORIGINS}", type=list[str] | None, default=None, help=SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; errors name the file and the key of the rejected value."""
        try:
            with warnings.catch_warnings():
                # A notebook has arguments of its own in sys.argv.
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except RefusedError as refused:
            command, *words = sys.argv[1:] if args is None else args
            origin = origin_of(list(given_settings(words)), refused.key) if refused.key else ""
            raise ConfigError(failed_import(command, words) or f"{origin}{refused}") from refused
        _find_example_rows(self.config[self.config.subcommand].data)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let settings in the checkpoint override the configuration."""

    def before_instantiate_classes(self) -> None:
        """Choose the run folder before anything is built or loaded."""
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
        # Only training writes to the top folder, so that later evaluations don't mix with its curves.
        self.logs = self.run_folder if training else self.run_folder / str(self.subcommand)
        self.keeps = not (config.trainer.fast_dev_run or (training and config.trainer.barebones))
        if not self.keeps:
            self._say_that_nothing_is_kept(config.trainer)
        elif training:
            refuse_second_run(self.run_folder, asked)
            if self.run_folder.is_dir():
                self._enter_run_folder()
        config.ckpt_path = find_checkpoint(asked, self.run_folder, may_be_missing=training)
        config.run_dir = str(self.run_folder)
        if training and not _validates(config):
            # Without validation there is no best checkpoint, and Lightning would fail on the monitor.
            config.best.monitor, config.best.save_top_k = None, 0
        writers = (MetricsFile, PredictionWriter, RunFacts)
        files = [writer(config.run_dir) for writer in writers] if self.keeps else []
        # `true` prints Lightning's table, and `barebones` allows neither.
        counts = config.trainer.enable_model_summary is None and not config.trainer.barebones
        summary = [ParameterCount()] if counts else []
        self.trainer_defaults["callbacks"] = [*files, ResultsTable(), *summary]

    def _say_that_nothing_is_kept(self, trainer: Any) -> None:
        self.save_config_callback = None
        if trainer.barebones and is_first_process():
            print("`trainer.barebones`: this run writes neither checkpoints nor metrics.")

    def _prepare_precompute(self, config: Any) -> None:
        """Disable all output but the tables."""
        config.references.precompute = True
        config.trainer.logger = False
        config.trainer.num_sanity_val_steps = 0
        config.trainer.enable_model_summary = False
        config.best.monitor, config.best.save_top_k = None, 0
        self.save_config_callback = None
        self.run_folder = self.logs = Path(config.run_dir or config.references.cache_dir)

    def instantiate_classes(self) -> None:
        """Build the configured classes; failures are reported as errors in the settings."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if failure_behind(error) is not None:
                raise
            missing = _missing_package(error)
            if missing is not None:
                raise ConfigError(
                    f"The configuration names a class that needs a missing package: {missing}. The packages "
                    "of loggers are installed by `pip install 'pl-prefopt[loggers]'`."
                ) from error
            raise ConfigError(
                f"the settings of {_being_built(error)} don't work: {error or type(error).__name__}"
            ) from error

    def after_instantiate_classes(self) -> None:
        """Pass the checkpoint's path to the module, which checks it once the policy is loaded."""
        self.model.restored_from = self.config[self.subcommand].get("ckpt_path")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with its files in the run folder."""
        for key in ("best", "last"):
            checkpoint = self._get(self.config_init, key)
            checkpoint.dirpath = checkpoint.dirpath or str(self.run_folder / "checkpoints")
        asked = self._get(self.config_init, "trainer")
        self._enter_run_folder()  # created only now, so that errors in the settings leave no folder
        callbacks = self._callbacks(asked)
        if not has_progress_bar(callbacks):
            kwargs["enable_progress_bar"] = False  # otherwise Lightning adds its own
        if asked["barebones"]:
            kwargs["log_every_n_steps"] = 0
        trainer: Any = super().instantiate_trainer(
            callbacks=callbacks,
            logger=_loggers(asked, self.logs, keep=self.keeps),
            default_root_dir=asked["default_root_dir"] or str(self.run_folder),
            **kwargs,
        )
        self.model.run_folder = self.run_folder
        if self.keeps:
            trainer.logs = self.logs
        # Only the default is replaced, not a plugin that was configured.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return cast(Trainer, trainer)

    def _callbacks(self, asked: Any) -> list[Callback]:
        """Return the run's callbacks but those of ``best``, ``last`` and ``references``."""
        callbacks = callbacks_of_run(
            asked["callbacks"], self._get(self.config_init, "default_callbacks"), asked
        )
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_folder / "checkpoints")
        early: EarlyStop | None = self._get(self.config_init, "early_stop")
        if early is not None and self.subcommand == "fit":
            best = self._get(self.config_init, "best")
            callbacks.append(early.callback(best.monitor, best.mode))
        if self._get(self.config_init, "validate_first") and self.subcommand == "fit":
            if not _validates(self.config[self.subcommand]):
                raise ConfigError(
                    "`validate_first` needs rows to validate on: set data.val or data.held_out, and "
                    "trainer.limit_val_batches above 0, or remove validate_first."
                )
            callbacks.append(FirstValidation())  # the last one: all others have seen the start by then
        return callbacks

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the trainer, without the two checkpoint callbacks where Lightning forbids them."""
        if config["barebones"]:
            callbacks = [one for one in callbacks if not isinstance(one, Checkpoint)]
        return super()._instantiate_trainer(config, callbacks)

    def _enter_run_folder(self) -> None:
        """Lock the run folder while training, and clean it up if the command fails before its first step."""
        if self.entered or not self.keeps:
            return
        start = Start(self.logs)
        if self.subcommand == "fit":
            self.held.enter_context(alone_in(self.run_folder))
        self.held.callback(start.undo_unless, self._has_begun)
        self.entered = True

    def _has_begun(self) -> bool:
        trainer: Any = getattr(self, "trainer", None)
        callbacks = [] if trainer is None else trainer.callbacks
        return any(isinstance(one, RunConfig) and one.already_saved for one in callbacks)

    def validate(self, **kwargs: Any) -> None:
        """Run ``Trainer.validate`` without Lightning's results table."""
        self.trainer.validate(verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Run ``Trainer.test`` without Lightning's results table."""
        self.trainer.test(verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Run ``Trainer.predict``; the predictions go to ``predictions.jsonl``."""
        self.trainer.predict(return_predictions=False, **kwargs)

    def after_fit(self) -> None:
        """Print the run folder and the next commands."""
        if not (self.keeps and self.trainer.is_global_zero):
            return
        config, spec = self.config[self.subcommand], self.model.policy_spec
        best, last = self._get(self.config_init, "best"), self._get(self.config_init, "last")
        paths = [Path(best.best_model_path or "."), Path(last.dirpath) / "last.ckpt"]
        for checkpoint in paths:
            if checkpoint.suffix == ".ckpt" and checkpoint.exists():
                print(next_steps(self.run_folder, checkpoint, config, is_adapter=spec.has_adapter))
                return

    def after_precompute(self) -> None:
        """Print the folder of the tables."""
        if self.trainer.is_global_zero:
            for folder in self._get(self.config_init, "references").tables:
                print(f"Log-probs are in {folder}")

    def before_validate(self) -> None:
        """Print a note if the untrained policy is validated."""
        self._say_untrained()

    def before_test(self) -> None:
        """Print a note if the untrained policy is tested."""
        self._say_untrained()

    def _say_untrained(self) -> None:
        if self.trainer.is_global_zero and self.config[self.subcommand].get("ckpt_path") is None:
            print("No --ckpt_path given: evaluating the policy before training.")


def _check_sections(config: Any) -> None:
    """Raise a ``ConfigError`` for invalid values that the parser accepts, such as a scalar for a section."""
    for name in ("trainer", "data", "references", "best", "last", "model", "model.init_args.objective"):
        if not isinstance(config.get(name), Namespace):
            raise ConfigError(f"expected `{name}` to be a section of settings, got {config.get(name)!r}.")
    if config.trainer.enable_checkpointing is False:
        raise ConfigError(
            "`trainer.enable_checkpointing: false` would discard the trained policy: remove it. "
            "`--best.save_top_k 0` saves no best checkpoint, and `--trainer.fast_dev_run true` runs one step "
            "and writes nothing."
        )
    check_chosen(config.default_callbacks)
    batches = config.trainer.accumulate_grad_batches
    if batches < 1:  # Lightning would divide by it
        raise ConfigError(f"expected `trainer.accumulate_grad_batches` to be at least 1, got {batches}.")


def _find_example_rows(data: Any) -> None:
    for split in SPLITS_OF_STAGE[None]:
        if isinstance(data, Namespace) and data.get(split) is not None:
            data[split] = _with_example_rows(data[split])


def _with_example_rows(given: Any) -> Any:
    if isinstance(given, str):
        return example_rows(given)
    if isinstance(given, list):
        return [_with_example_rows(one) for one in given]
    if isinstance(given, dict) and "path" not in given:
        return {name: _with_example_rows(one) for name, one in given.items()}
    return given


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
    """Return the ``ModuleNotFoundError`` in the chain of causes of ``error``, if any."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    return error


def _loggers(trainer: Any, folder: Path, *, keep: bool) -> list[Logger] | bool:
    """Return the configured loggers, TensorBoard by default, and always a CSV logger in ``folder``."""
    asked = trainer["logger"]
    if asked is False or (trainer["barebones"] and asked is None):
        return False
    own: dict[str, Any] = {"save_dir": str(folder), "name": "", "version": ""}
    chosen = [PairedTensorBoard(**own)] if asked is None or asked is True else listed(asked)
    if keep:
        keep_earlier_metrics(folder)
    if any(isinstance(one, CSVLogger) and Path(one.log_dir).resolve() == folder.resolve() for one in chosen):
        return chosen
    return [*chosen, CSVLogger(**own)]
