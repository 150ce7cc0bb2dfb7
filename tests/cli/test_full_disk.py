"""A disk that is full, or can't be written, costs a sentence and nothing that was there."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from pl_prefopt.callbacks.publishing import TextTable, publish_table
from pl_prefopt.data import Cache
from pl_prefopt.data import store as store_module
from tests.cli.test_commands import axes
from tests.data.support import pair, stored, write_jsonl
from tests.disks import Disk, on_disk
from tests.runs import scored_rows, write_rows


@pytest.fixture
def commands(tiny_model, tmp_path):
    """Each command that writes, with one of its places on the disk ``small`` and the others elsewhere."""
    rows, others = (
        write_rows(tmp_path / f"{name}.jsonl", scored_rows(6, source=name)) for name in ("a", "b")
    )
    policy = ("--model.init_args.policy.name", tiny_model)
    policy += ("--trainer.callbacks+", "Generations", "--trainer.callbacks.max_new_tokens", 2)
    known = (*axes(), *policy, "--data.train", rows, "--data.held_out", 2, "--data.cache_dir", "cache")
    unknown = (*axes(), *policy, "--data.train", others, "--data.held_out", 2)
    run = ("--run_dir", "small/run")
    trained = ("-c", "small/run/config.yaml", *run, "--ckpt_path", "last")
    elsewhere = ("--run_dir", "elsewhere")
    return {
        "fit": ("fit", *known, *run, "--last.minutes", 0, "--ckpt_path", "last", "--trainer.max_epochs", 9),
        "predict": ("predict", *trained, "--data.predict", rows),
        "export": ("export", "small/run/checkpoints/last.ckpt", "--out", "small/exported"),
        "report": ("report", "small/run"),
        "cache": ("fit", *unknown, *elsewhere, "--data.cache_dir", "small/cache"),
        "tables": ("precompute", *unknown, "--references.cache_dir", "small/tables"),
    }


def test_a_full_and_then_read_only_disk_loses_nothing(prefopt, commands, tmp_path):
    disk = Disk(tmp_path / "small", mebibytes=16)

    def work():
        os.chdir(tmp_path)
        prefopt(*commands["fit"], "--trainer.max_epochs", 1)
        for name in ("predict", "report"):
            prefopt(*commands[name])
        before = disk.contents()
        disk.fill(kibibytes=48)
        nearly = prefopt.run(*commands["fit"], "--trainer.logger", "false")
        disk.fill(kibibytes=0)
        full = {name: prefopt.run(*command) for name, command in commands.items()}
        after = disk.contents()
        disk.refuse()
        refused = {name: prefopt.run(*command) for name, command in commands.items()}
        return nearly, full, refused, before, after, disk.contents()

    nearly, full, refused, before, *left = on_disk(disk, work)
    assert nearly[0] == 1
    assert "last.ckpt can't be written (No space left on device)" in nearly[1]
    for name in commands:
        for status, printed in (full[name], refused[name]):
            assert status in (1, 2), (name, printed)
            assert "Traceback" not in printed, (name, printed)
        assert any(words in full[name][1] for words in ("disk is full", "No space left")), (name, full[name])
        # The writers of TensorBoard's events and of exported weights don't say where.
        assert "small/" in full[name][1] or name not in ("report", "cache", "tables")
        assert any(words in refused[name][1] for words in ("read-only", "Read-only")), (name, refused[name])
    for contents in left:
        # A new run has new settings, whole ones.
        before["run/config.yaml"] = contents["run/config.yaml"]
        before["run/run.json"] = contents["run/run.json"]
        assert yaml.safe_load(bytes.fromhex(before["run/config.yaml"]))["trainer"]["max_epochs"] == 9
        assert json.loads(bytes.fromhex(before["run/run.json"]))["steps"] >= 0
        # A new evaluation takes the place of an earlier one of the same rows and checkpoint.
        counts = [
            len(json.loads(bytes.fromhex(found["run/metrics.json"]))["evaluations"])
            for found in (before, contents)
        ]
        assert 0 < counts[0] <= counts[1]
        before["run/metrics.json"] = contents["run/metrics.json"]
        for name, content in before.items():
            # Logs may be longer than before, and that of the run before has another name.
            assert any(found.startswith(content) for found in contents.values()), name
        assert not any(name.startswith("exported") for name in contents)


def test_a_table_that_grows_keeps_what_it_had(tmp_path):
    disk = Disk(tmp_path / "small", mebibytes=1)

    def work():
        logger = CSVLogger(disk.folder, name="", version="")
        table = TextTable(("prompt", "now"), [("Who?", "A fox. " * 900)])
        publish_table(logger, "generations", table, 1)
        before = disk.contents()
        disk.fill(kibibytes=0)
        with pytest.raises(OSError, match="No space left") as raised:
            publish_table(logger, "generations", table, 2)
        return before, disk.contents(), raised.value.filename

    before, after, named = on_disk(disk, work)
    assert named.endswith("generations.csv")
    assert after["generations.csv"].startswith(before["generations.csv"])


def test_a_choice_of_rows_that_does_not_fit_is_the_disks_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "hold_out", lambda *_: np.ones(10**5, dtype=bool))
    store = stored(write_jsonl(tmp_path / "rows.jsonl", [pair(i) for i in range(5)]), tmp_path / "cache")
    disk = Disk(tmp_path / "small", mebibytes=1)

    def work():
        disk.fill(kibibytes=8)
        with pytest.raises(OSError, match="No space left") as raised:
            store_module.split_rows(Cache(disk.folder), store, 2, 0)
        return raised.value.errno, [name for name in disk.contents() if not name.startswith(".locks/")]

    assert on_disk(disk, work) == [errno.ENOSPC, []]
