"""An interrupted and resumed run sees the rows of an uninterrupted one, in the same order."""

from __future__ import annotations

import functools
import operator
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_prefopt.data import PreferenceDataModule
from tests.data.support import Recorder, pair, trainer, write_jsonl
from tests.support import tiny_tokenizer

EPOCHS = 3


@pytest.fixture
def make(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(i, words=i % 5) for i in range(22)])

    def make_module(**options) -> PreferenceDataModule:
        settings = {
            "tokenizer": str(tmp_path / "tokenizer"),
            "cache_dir": str(tmp_path / "cache"),
            "batch_size": 4,
        }
        return PreferenceDataModule(**{"train": rows, **settings, **options})

    return make_module


def checkpoints(folder: Path, **options) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_top_k=-1, filename="{step}", **options)


def uninterrupted(make, tmp_path: Path, checkpoint: ModelCheckpoint | None = None, **options):
    module = Recorder()
    callbacks = [checkpoint] if checkpoint else []
    run = trainer(
        tmp_path, max_epochs=EPOCHS, callbacks=callbacks, enable_checkpointing=bool(checkpoint), **options
    )
    run.fit(module, make())
    return module.seen


def resumed(make, tmp_path: Path, checkpoint: Path, **options):
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer(tmp_path, max_epochs=EPOCHS, **options).fit(module, make(), ckpt_path=checkpoint)
    return module.seen


def test_each_epoch_has_all_rows_in_its_own_order(make, tmp_path: Path):
    seen = uninterrupted(make, tmp_path)
    epochs = [[batch for epoch, batch in seen if epoch == e] for e in range(EPOCHS)]
    assert [sorted(functools.reduce(operator.iadd, batches, [])) for batches in epochs] == [
        list(range(22))
    ] * EPOCHS
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_after_any_batch_continues_exactly(make, tmp_path: Path, num_workers: int):
    whole = uninterrupted(make, tmp_path, checkpoints(tmp_path / "c", every_n_train_steps=1))
    steps = range(1, len(whole)) if num_workers == 0 else (4,)
    for step in steps:
        checkpoint = tmp_path / "c" / f"step={step}.ckpt"
        rest = resumed(lambda: make(num_workers=num_workers), tmp_path, checkpoint)
        assert [batch for _, batch in rest] == [batch for _, batch in whole[step:]], step


def test_resuming_a_mixture_continues_exactly(make, tmp_path: Path):
    def mixed() -> PreferenceDataModule:
        few = write_jsonl(tmp_path / "few.jsonl", [pair(i) for i in range(30, 35)])
        many = {"path": str(tmp_path / "rows.jsonl"), "passes": 0.4}
        return make(train={"many": many, "few": {"path": few, "rows_per_epoch": 7}})

    whole = uninterrupted(mixed, tmp_path, checkpoints(tmp_path / "c", every_n_train_steps=1))
    assert len(whole) == EPOCHS * 4  # 9 of 22 rows and 7 of 5 rows, in batches of 4
    for step in (1, 6, 11):
        assert resumed(mixed, tmp_path, tmp_path / "c" / f"step={step}.ckpt") == whole[step:]


def test_resuming_from_the_end_of_an_epoch(make, tmp_path: Path):
    at_end = checkpoints(tmp_path / "c", every_n_epochs=1, save_on_train_epoch_end=True)
    whole = uninterrupted(make, tmp_path, at_end)
    for step in (6, 12):
        assert resumed(make, tmp_path, tmp_path / "c" / f"step={step}.ckpt") == whole[step:]


def test_resuming_after_validation(make, tmp_path: Path):
    def with_val() -> PreferenceDataModule:
        return make(held_out=4)

    after_val = checkpoints(tmp_path / "c", every_n_epochs=1, save_on_train_epoch_end=False)
    whole = uninterrupted(with_val, tmp_path, after_val, val_check_interval=2)
    for checkpoint in (tmp_path / "c").iterdir():
        step = int(checkpoint.stem.split("=")[1].split("-")[0])
        rest = resumed(with_val, tmp_path, checkpoint, val_check_interval=2)
        assert [batch for _, batch in rest] == [batch for _, batch in whole[step:]], checkpoint


def test_resuming_twice(make, tmp_path: Path):
    whole = uninterrupted(make, tmp_path, checkpoints(tmp_path / "c", every_n_train_steps=1))
    middle = Recorder(fail_at=4)
    again = checkpoints(tmp_path / "d", every_n_train_steps=1)
    with pytest.raises(InterruptedError):
        trainer(tmp_path, max_epochs=EPOCHS, callbacks=[again], enable_checkpointing=True).fit(
            middle, make(), ckpt_path=tmp_path / "c" / "step=4.ckpt"
        )
    assert middle.seen == whole[4:8]
    assert resumed(make, tmp_path, tmp_path / "d" / "step=8.ckpt") == whole[8:]


def test_resuming_with_a_limit_of_batches(make, tmp_path: Path):
    limited = {"limit_train_batches": 4}
    whole = uninterrupted(make, tmp_path, checkpoints(tmp_path / "c", every_n_train_steps=1), **limited)
    assert resumed(make, tmp_path, tmp_path / "c" / "step=6.ckpt", **limited) == whole[6:]


def test_resuming_with_other_batches_warns(make, tmp_path: Path):
    uninterrupted(make, tmp_path, checkpoints(tmp_path / "c", every_n_train_steps=1))
    with pytest.warns(UserWarning, match=r"data\.batch_size"):
        resumed(lambda: make(batch_size=2), tmp_path, tmp_path / "c" / "step=2.ckpt")


def test_a_second_fit_of_a_fresh_trainer_starts_anew(make, tmp_path: Path):
    data = make()
    first, second = Recorder(), Recorder()
    trainer(tmp_path, max_steps=4).fit(first, data)
    trainer(tmp_path, max_steps=4).fit(second, data)
    assert first.seen == second.seen


def test_overfitting_repeats_the_same_batches(make, tmp_path: Path):
    overfit = {"overfit_batches": 2, "limit_val_batches": 1.0}
    module, data = Recorder(), make(held_out=12)
    saved = checkpoints(tmp_path / "c", every_n_train_steps=1)
    trainer(tmp_path, max_epochs=3, callbacks=[saved], enable_checkpointing=True, **overfit).fit(module, data)
    batches = [batch for _, batch in module.seen]
    assert len(batches) == 6
    assert batches[:2] == batches[2:4] == batches[4:]
    assert batches[0] != batches[1]
    # The validation repeats its own first batches, the longest rows.
    longest = sorted(data.datasets["val"].lengths, reverse=True)[:8]
    validated = [data.datasets["val"].lengths[row] for row in module.evaluated]
    assert validated == longest * 3
    for step in (1, 2, 3):
        rest = Recorder()
        trainer(tmp_path, max_epochs=3, **overfit).fit(
            rest, make(held_out=12), ckpt_path=tmp_path / "c" / f"step={step}.ckpt"
        )
        assert [batch for _, batch in rest.seen] == batches[step:], step
