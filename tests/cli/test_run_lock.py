"""Of two runs in one folder the second is refused, whatever becomes of the first."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from pl_prefopt.cli import run_lock
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.errors import RunError
from tests.cli.test_commands import axes
from tests.runs import pair_rows, write_rows

HOLD = """
import sys
from pathlib import Path
from pl_prefopt.cli.run_lock import alone_in
with alone_in(Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another process that holds the folder `run`."""
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0)
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_killed(other, prefopt, tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(6))
    settings = [*axes(), "--data.train", rows, "--model.init_args.policy.name", tiny_model]
    settings += ["--data.held_out", "0", "--run_dir", "run", "--ckpt_path", "last"]
    status, printed = prefopt.run("fit", *settings)
    assert status == 1
    assert "Another process is training in the folder run: wait until" in printed
    assert "Traceback" not in printed
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    other.send_signal(signal.SIGKILL)
    other.wait()
    prefopt("fit", *settings)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    # The lock ends with the command, not with the process only.
    prefopt("fit", *settings, "--trainer.max_epochs", "2")


FIRST = {
    "Lightning's": {"LOCAL_RANK": "0"},
    "of a shell of SLURM": {"SLURM_PROCID": "0"},
    "torchrun's in another task": {"SLURM_PROCID": "1", "RANK": "0", "LOCAL_RANK": "0"},
}
LATER = {
    "Lightning's": {"LOCAL_RANK": "1"},
    "Lightning's in a shell of SLURM": {"SLURM_PROCID": "0", "LOCAL_RANK": "1"},
    "first of a second machine": {"NODE_RANK": "1", "LOCAL_RANK": "0"},
    "torchrun's": {"SLURM_PROCID": "0", "RANK": "1", "LOCAL_RANK": "0"},
    "srun's": {"SLURM_PROCID": "1"},
}


@pytest.mark.parametrize("environment", FIRST.values(), ids=FIRST)
def test_the_first_process_of_a_run_holds_its_folder(other, tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError), alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("environment", LATER.values(), ids=LATER)
def test_the_others_leave_it_to_the_first(other, tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_stops_no_run(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # neither holds up the next
        with alone_in(tmp_path / "run"):
            pass
        assert "doesn't support locks: don't start a second run in that folder" in capsys.readouterr().out
    if (tmp_path / "run" / ".lock").exists():  # a lock of filelock's own, without the system's, would name us
        assert (tmp_path / "run" / ".lock").read_text() == ""


def test_what_else_is_refused_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), alone_in(tmp_path / "run"):
        pass
