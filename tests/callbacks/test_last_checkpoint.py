"""Stopping at every possible moment, and going on from there."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_prefopt.callbacks import LastCheckpoint
from pl_prefopt.callbacks.stop_signals import StopSignals
from pl_prefopt.data import PreferenceDataModule
from pl_prefopt.errors import StoppedError
from tests.data.support import Recorder, pair, trainer, write_jsonl
from tests.support import tiny_tokenizer

TRAINED, BEGUN, VALIDATED, EPOCH = "trained", "validation begun", "validation done", "epoch"


@pytest.fixture(autouse=True)
def listening():
    """Let SIGINT be heard, which a shell tells its background processes to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Events(Callback):
    """Keeps what happens, and sends a signal after the event of that number."""

    def __init__(self, stop_after=None, number=signal.SIGTERM):
        self.seen, self.stop_after, self.number = [], stop_after, number

    def add(self, *event):
        self.seen.append(event)
        if len(self.seen) == self.stop_after:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.add(TRAINED, batch.index.tolist(), module.weight.item(), trainer.global_step)

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.add(BEGUN)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.add(VALIDATED, module.evaluated)
            module.evaluated = []

    def on_train_epoch_end(self, trainer, module):
        self.add(EPOCH)


@pytest.fixture
def fit(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(i, words=i % 5) for i in range(26)])
    data = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache"), "held_out": 6}

    def run(events, *, ckpt_path=None, more=(), **options):
        """Train for two epochs; return whether the run was stopped."""
        last = LastCheckpoint(str(tmp_path / "checkpoints"), minutes=99)
        callbacks = {"callbacks": [events, last, *more], "enable_checkpointing": True}
        module, datamodule = Recorder(), PreferenceDataModule(rows, batch_size=4, **data)
        try:
            trainer(tmp_path, max_epochs=2, **callbacks, **options).fit(
                module, datamodule, ckpt_path=ckpt_path
            )
        except StoppedError:
            return True
        return False

    return run


OFTEN = {"accumulate_grad_batches": 2, "val_check_interval": 2}
ODD = {"accumulate_grad_batches": 2, "val_check_interval": 3}


@pytest.mark.parametrize(
    ("options", "moments"), [({}, range(1, 16, 2)), (OFTEN, range(1, 12)), (ODD, range(3, 8, 2))]
)
def test_a_run_stopped_at_any_moment_goes_on_as_if_it_had_not_been(fit, tmp_path, options, moments):
    whole = Events()
    assert not fit(whole, **options)
    for moment in moments:
        stopped, rest = Events(stop_after=moment), Events()
        assert fit(stopped, **options), moment
        assert not fit(rest, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **options)
        seen = stopped.seen
        if seen[-1] == (BEGUN,):
            seen = seen[:-1]  # a validation that was stopped begins anew
        assert seen + rest.seen == whole.seen, moment


class Stopping(Events):
    """Stops training after a batch, as ``Timer`` does."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, trainer, *arguments):
        super().on_train_batch_end(trainer, *arguments)
        done = len([event for event in self.seen if event[0] == TRAINED])
        trainer.should_stop = trainer.should_stop or done >= self.batch


@pytest.mark.parametrize(
    "options", [{}, {"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}, OFTEN, ODD], ids=str
)
@pytest.mark.parametrize("batch", [2, 3])
def test_a_run_that_a_callback_stops_resumes_with_the_rest_of_its_epoch(fit, tmp_path, options, batch):
    whole, stopped = Events(), Stopping(batch)
    best = ModelCheckpoint(tmp_path / "c", filename="best", save_on_train_epoch_end=True)
    fit(whole, **options)
    fit(stopped, more=[best], **options)
    trained = [[event for event in events.seen if event[0] == TRAINED] for events in (whole, stopped)]
    assert len(trained[1]) < len(trained[0])
    for path in ("checkpoints/last.ckpt", "c/best.ckpt"):
        rest = Events()
        fit(rest, ckpt_path=tmp_path / path, **options)
        assert trained[1] + [event for event in rest.seen if event[0] == TRAINED] == trained[0], path


class Satisfied(Callback):
    """Stops training at a validation, as ``EarlyStopping`` does."""

    def on_validation_end(self, trainer, module):
        trainer.should_stop |= not trainer.sanity_checking


def test_a_stop_at_a_validation_within_the_first_step_waits_for_its_end(fit):
    events = Events()
    fit(events, more=[Satisfied()], accumulate_grad_batches=2, val_check_interval=1)
    assert [event[-1] for event in events.seen if event[0] == TRAINED] == [0, 1]


def test_signals_are_left_alone_after_a_run(fit):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(Events())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert fit(Events(stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_one_ctrl_c_stops_after_the_step_and_two_at_once(fit, monkeypatch):
    assert fit(Events(stop_after=3, number=signal.SIGINT))
    signals = StopSignals()
    signals.install(fake_trainer(None))
    try:
        signals.may_wait = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signals.remove()


def fake_trainer(environment):
    return SimpleNamespace(
        strategy=SimpleNamespace(launcher=None),
        _accelerator_connector=SimpleNamespace(cluster_environment=environment),
        is_global_zero=True,
    )


def test_outside_of_training_a_signal_stops_at_once_and_no_handler_of_errors_holds_it_up():
    signals = StopSignals()
    signals.install(fake_trainer(None))
    try:
        with (
            pytest.raises(StoppedError, match="SIGTERM: it was not training"),
            suppress(Exception),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signals.remove()


@pytest.mark.parametrize(("status", "said"), [(0, "SLURM runs it again"), (1, "refused to run it again")])
def test_slurms_warning_saves_and_asks_for_another_turn(monkeypatch, status, said):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    asked = []

    def scontrol(command, **kwargs):
        asked.append(command)
        return SimpleNamespace(returncode=status, stderr="")

    monkeypatch.setattr(subprocess, "run", scontrol)
    signals = StopSignals()
    signals.install(fake_trainer(SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)))
    try:
        signals.may_wait = True
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StoppedError, match=f"end of the allotted time: saved there; .*{said}"):
            signals.stop("saved there")
    finally:
        signals.remove()
    assert asked == [["scontrol", "requeue", "42"]]
