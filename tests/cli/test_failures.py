"""What ends a run is one sentence, and costs nothing that was saved before."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import save

from pl_prefopt.callbacks import LastCheckpoint
from pl_prefopt.cli.failures import failure_behind
from pl_prefopt.cli.run_config import RunConfig
from pl_prefopt.cli.run_folder import find_checkpoint
from pl_prefopt.data import Cache, PreferenceDataset, Renderer
from pl_prefopt.data.store import split_rows
from pl_prefopt.errors import ConfigError, ContractError, DataError, RunError
from pl_prefopt.files import atomic_write, discard, publish_folder
from pl_prefopt.modules import DPOModule, FSDP2Strategy, SafeCheckpointIO, read_checkpoint
from pl_prefopt.modules.checkpoint_files import read_weights
from pl_prefopt.modules.checkpoints import check_fits, describe, refuse_shards
from pl_prefopt.modules.shard_files import check_shards
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.scoring import Scorer
from tests.cli.test_commands import axes
from tests.data.support import pair, read, stored, write_jsonl
from tests.runs import pair_rows, write_rows
from tests.support import tiny_tokenizer


@pytest.fixture
def settings(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(6))
    return [*axes(), "--data.train", rows, "--model.init_args.policy.name", tiny_model, "--run_dir", "run"]


def status_and_sentence(prefopt, *arguments):
    status, printed = prefopt.run("fit", *arguments)
    assert "Traceback" not in printed
    return status, printed


# -- a loss that is no number


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(prefopt, settings, tmp_path):
    explode = ("--model.init_args.optimizer.lr", "1e30", "--data.batch_size", "2", "--last.minutes", "0")
    flat = ("--model.init_args.schedule.name", "constant", "--model.init_args.schedule.warmup", "0")
    elsewhere = ("--trainer.default_root_dir", "elsewhere")
    status, printed = status_and_sentence(prefopt, *settings, *explode, *flat, *elsewhere)
    assert status == 1
    assert "non-finite loss (NaN or inf) at step 1 for rows.jsonl, row " in printed
    # The batch can be fed back as it was.
    bad = read(str(tmp_path / "run" / "bad_batch.jsonl"), tmp_path / "other-cache")
    whole = {
        row.prompt: row.responses for row in read(str(tmp_path / "rows.jsonl"), tmp_path / "other-cache")
    }
    assert len(bad) == 2
    assert all(whole[row.prompt] == row.responses and row.scores == (1, 0) for row in bad)
    # The step was not taken, and the checkpoint of the one before is whole.
    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert kept["global_step"] == 1
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())


def test_weights_that_are_no_numbers_do_not_replace_good_ones(tmp_path):
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}, "global_step": 3}, path)
    with pytest.raises(RunError, match="weight 'a' is not finite at step 4"):
        io.save_checkpoint({"state_dict": {"a": torch.tensor([1.0, torch.nan])}, "global_step": 4}, path)
    assert io.load_checkpoint(path)["global_step"] == 3


# -- memory and disk

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError(CPU)]
)
def test_no_memory_is_a_sentence_that_names_the_settings(prefopt, settings, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Scorer, "__call__", fail)
    status, printed = status_and_sentence(prefopt, *settings)
    assert status == 1
    assert "out of memory" in printed
    assert "data.batch_size" in printed


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST]
)
def test_what_cannot_be_written_is_named(number):
    failed = failure_behind(ValueError("wrapped").with_traceback(None))
    assert failed is None
    try:
        try:
            raise OSError(number, "the system's words", "run/metrics.csv")
        except OSError as error:
            raise RuntimeError("what a library makes of it") from error
    except RuntimeError as error:
        failed = failure_behind(error)
    assert isinstance(failed, RunError)
    assert "run/metrics.csv" in str(failed)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["--trainer.val_check_interval", "99"], "`val_check_interval` (99) must be less than or equal to"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/los"],
            "Early stopping conditioned on metric `val/los` which is not available.",
        ),
    ],
)
def test_what_lightning_finds_out_with_the_rows_is_a_sentence(prefopt, tiny_model, tmp_path, settings, told):
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(6))
    given = [*axes(), "--data.train", rows, "--model.init_args.policy.name", tiny_model]
    said = prefopt.fails("fit", *given, *settings, "--run_dir", "run")
    assert f"Lightning rejects the trainer's settings: {told}" in said


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(f"{GLOO}Read error [127.0.0.1]:8411: Connection reset by peer. GLHF!"),
            "reset by peer",
        ),
        (RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:8411"), "closed by peer"),
        (
            RuntimeError(f"{GLOO}Timed out waiting 1800000ms for recv operation"),
            "Timed out waiting 1800000ms",
        ),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes: Broken pipe"), "Broken pipe"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."), "was aborted"),
    ],
)
def test_a_lost_rank_is_a_sentence_of_the_others(error, told):
    failed = failure_behind(error)
    assert isinstance(failed, RunError)
    assert told in str(failed)
    assert "another rank of this run has exited" in str(failed)


def test_what_is_no_lost_rank_is_not_told_as_one():
    for error in (RuntimeError("Connection reset by peer"), torch.distributed.DistNetworkError("EADDRINUSE")):
        assert failure_behind(error) is None


def test_a_defect_keeps_its_traceback(prefopt, settings, monkeypatch):
    monkeypatch.setattr(Scorer, "__call__", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prefopt.run("fit", *settings)


@pytest.fixture
def small_files_only():
    """Let the system refuse to write more than a kilobyte to any file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(tmp_path, request):
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    request.getfixturevalue("small_files_only")
    with pytest.raises(RunError, match=r"can't be written \(File too large\)"):
        io.save_checkpoint({"state_dict": {"a": torch.ones(20000)}}, path)
    assert io.load_checkpoint(path)["state_dict"]["a"].tolist() == [1, 1]
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"

    def write(text, error=None):
        with atomic_write(path) as draft:
            draft.write_text(text)
            if error is not None:
                raise error

    write("first")
    with pytest.raises(KeyboardInterrupt):
        write("sec", KeyboardInterrupt())
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all_wherever_a_kill_comes(tmp_path, monkeypatch):
    path, draft = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / ".last.ckpt.tmp"

    def replace(number, killed_at=0):
        draft.mkdir(parents=True)
        (draft / "shard").write_text(str(number))
        child = os.fork()
        if child == 0:
            calls = []
            for owner, name in ((Path, "rename"), (shutil, "rmtree")):
                monkeypatch.setattr(owner, name, killing(getattr(owner, name), calls, killed_at))
            publish_folder(draft, path)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def killing(work, calls, at):
        def killed(*arguments):
            calls.append(work)
            return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == at else work(*arguments)

        return killed

    assert replace(0) == 0
    # Before the earlier one is set aside, before the new one takes its place, before the earlier is removed.
    for killed_at, found in ((1, "0"), (2, "0"), (3, "3")):
        assert replace(killed_at, killed_at) == -signal.SIGKILL
        last = find_checkpoint("last", tmp_path, may_be_missing=False)
        assert (Path(last) / "shard").read_text() == found
        discard(draft)  # as the next to save does
    assert replace(4) == 0
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_settings_that_cannot_be_written_leave_the_earlier_ones(tmp_path, small_files_only):
    class Parser:
        def dump(self, config, **options):
            return json.dumps({"run_dir": str(tmp_path), **config})

    def write(**config):
        trainer = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True)
        RunConfig(Parser(), config).on_train_start(trainer, None)

    write(first=1)
    earlier = (tmp_path / "config.yaml").read_text()
    with pytest.raises(OSError, match="File too large"):
        write(second="a" * 2000)
    assert (tmp_path / "config.yaml").read_text() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


# -- damaged files


@pytest.mark.parametrize("name", ["rows.arrow", "tokens.arrow", "notes.json", "held_out.npy"])
@pytest.mark.parametrize("content", [b"", b"half of what was ther"], ids=["empty", "cut"])
def test_a_damaged_cache_says_what_to_delete(tmp_path, name, content):
    cache = Cache(tmp_path / "cache")

    def load():
        store = stored(path, tmp_path / "cache")
        numbers = split_rows(cache, store, 2, 0)[False]
        data = PreferenceDataset.tokenised(store, Renderer(tiny_tokenizer()), cache=cache, numbers=numbers)
        return data.batch([0])

    path = write_jsonl(tmp_path / "rows.jsonl", [pair(i) for i in range(5)])
    load()
    file = next((tmp_path / "cache").rglob(name))
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is corrupt .* delete the folder"):
        load()
    for left in file.parent.iterdir():
        left.unlink()
    file.parent.rmdir()
    assert len(load()) == 1


CHECKPOINTS = {
    "missing": (None, "is missing"),
    "empty": (b"", "can't be read|is damaged"),
    "cut": (b"PK\x03\x04 the beginning of a zip file", "can't be read|is damaged"),
    "text": (b"This is no checkpoint.", "can't be read|is damaged"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, kind):
    content, sentence = CHECKPOINTS[kind]
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        SafeCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "meta.pt"])
@pytest.mark.parametrize("content", [None, b"", b"half of what was ther"], ids=["missing", "empty", "cut"])
def test_damaged_shards_are_one_sentence(tmp_path, file, content):
    path = tmp_path / "last.ckpt"
    save({"state_dict": {"a": torch.ones(2)}, "rate": 0.1}, checkpoint_id=path, no_dist=True)
    torch.save({}, path / "meta.pt")
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{re.escape(file)} (can't be read|is damaged)"):
        check_shards(path)
    if file == "__0_0.distcp":
        with pytest.raises(ConfigError, match="can't be read"):
            read_weights(path)


def test_half_a_checkpoint_is_one_sentence(prefopt, settings, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    status, printed = status_and_sentence(prefopt, *settings, "--ckpt_path", "last")
    assert status == 2
    assert "last.ckpt" in printed


def test_a_damaged_weight_is_one_sentence(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "last.ckpt")
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 500] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    for reader in (read_checkpoint, FSDP2Strategy(1, 1)._load_file):
        with pytest.raises(ConfigError, match=r"last\.ckpt can't be read .*checksum"):
            reader(tmp_path / "last.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ConfigError, match="is no checkpoint of a run"):
        read_checkpoint(tmp_path / "list.ckpt")


# -- a checkpoint of another run


def test_a_checkpoint_with_other_weights_is_refused():
    trained = {"a": torch.zeros(2), "b": torch.zeros(2)}

    def check(held):
        shapes = {name: torch.Size([2]) for name in held}
        check_fits({}, shapes, {}, needed=trained, known={"a", "b", "frozen"})

    check("ab")
    check(["a", "b", "frozen"])  # with policy.full_checkpoints
    with pytest.raises(ConfigError, match="lacks 1 of the 2 weights"):
        check("a")
    # One that a renamed adapter left: nothing of it would be loaded, and Lightning would not mind.
    with pytest.raises(ConfigError, match="holds 2 weights that this run has no place for, such as 'x'"):
        check("xy")
    with pytest.raises(ConfigError, match="holds 1 weights that this run has no place for, such as 'c'"):
        check("abc")


def test_a_checkpoint_of_another_base_or_scale_is_refused():
    def description(base="base", identity="1", **lora):
        return describe("DPO", PolicySpec(name=base, lora={"r": 4, "lora_alpha": 8, **lora}), identity)

    def check(wanted):
        check_fits({"pl_prefopt": description()}, {}, wanted, needed={}, known=())

    check(description(lora_dropout=0.5))
    check(description(base="where it was moved to"))
    for other, message in (
        (description(base="other", identity="2"), "base 'base', whose weights are not those of .* 'other'"),
        (description(lora_alpha=16), "policy.lora"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(other)


def test_shards_say_how_a_run_that_is_not_split_gets_at_them(tmp_path):
    (tmp_path / "meta.pt").touch()
    said = f"`prefopt export {re.escape(str(tmp_path))} --out FOLDER` .* `--merge true --dtype float32`"
    with pytest.raises(ConfigError, match=said):
        refuse_shards(tmp_path)


def test_last_needs_the_name_of_the_run(prefopt, settings):
    said = prefopt.fails("fit", *settings[:-2], "--ckpt_path", "last")
    assert "--run_dir" in said


def test_minutes_below_zero_are_refused():
    with pytest.raises(ConfigError, match=r"last\.minutes"):
        LastCheckpoint(minutes=-1)


def test_a_strategy_that_saves_over_what_it_saved_before_is_warned_of(tiny_model):
    module = DPOModule(PolicySpec(name=str(tiny_model)), DPO())
    module.trainer = SimpleNamespace(strategy=ModelParallelStrategy(), callbacks=[])
    with pytest.warns(UserWarning, match=r"pl_prefopt\.modules\.FSDP2Strategy"), pytest.raises(ContractError):
        module.setup("fit")  # which then finds no references
