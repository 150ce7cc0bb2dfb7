"""What the benchmark of training measures, every contender of a GPU's cases with a tiny model on the CPU."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import pytest
import yaml
from transformers import AutoModelForCausalLM

from scripts.benchmarks import contenders, run
from scripts.benchmarks.rows import RandomRows, write_outline
from scripts.site import benchmarks

CONFIG = yaml.safe_load((run.HERE / "cases.yaml").read_text(encoding="utf-8"))
HEAD = {"date": "2026-11-28", "commit": "abc", "card": "a card", "versions": "torch 9"}


KINDS = ("kind", "references", "precompute", "hardware", "module", "trainer")


def distinct():
    """Every kind of contender on a GPU, shrunk; `run.py --device cuda --dry-run` runs all of them."""
    found = {}
    for job in run.jobs(CONFIG, "cuda", None):
        settings = run.shrunk(job.settings, CONFIG["shapes"]["tiny"])
        rows = settings["data"].keys() if settings["kind"] == "ours" else ()
        kind = [*(settings.get(key) for key in KINDS), *sorted(rows)]
        found.setdefault(json.dumps(kind), (f"{job.case}, {job.contender}", settings))
    return list(found.values())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=pytest.mark.oracle if settings["kind"] == "trl" else ())
        for name, settings in distinct()
    ],
)
def test_every_contender_of_a_gpu_runs(settings, monkeypatch):
    if settings["kind"] == "trl":
        pytest.importorskip("trl")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", AutoModelForCausalLM.from_pretrained)
    result = contenders.measure(settings)
    (seconds,) = result["seconds"]
    assert seconds > 0
    assert result["peak_gib"] > 0
    assert result["prompts"] == settings["batch_size"]
    data = settings["data"]
    if "lengths" not in data:
        tokens = data["prompt_tokens"] + data["responses"] * data["response_tokens"]
        assert result["tokens"] == settings["batch_size"] * tokens


def test_the_targets_come_first_and_every_comparison_is_measured():
    jobs = list(run.jobs(CONFIG, "cuda", None))
    ranks = [job.settings.get("rank", 1) for job in jobs]
    assert ranks == sorted(ranks)
    for device in ("cpu", "cuda"):
        of_device = CONFIG[device]
        for case in of_device["cases"].values():
            case = {**of_device["defaults"], **case}
            for settings in case["contenders"].values():
                assert settings.get("against", case["peer"]) in case["contenders"]


class Processes:
    """Stands for processes of contenders, each of which takes a script."""

    def __init__(self, monkeypatch, scripts):
        self.scripts, self.started = iter(scripts), []
        monkeypatch.setattr(run, "start", self.start)

    def start(self):
        command = [
            sys.executable,
            "-S",
            "-c",
            f"import sys, time; sys.stdin.readline(); {next(self.scripts)}",
        ]
        pipe = subprocess.PIPE
        self.started.append(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        )
        return self.started[-1]


def test_a_contender_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    good = {"seconds": [2.0, 4.0, 3.0], "peak_gib": 1.25, "prompts": 12, "tokens": 900, "mfu": 0.4}
    good["attention"] = "sdpa"
    processes = Processes(
        monkeypatch,
        [
            "raise RuntimeError('torch.OutOfMemoryError: CUDA out of memory')",
            "time.sleep(60)",
            "sys.exit('no such setting')",
            f"print('RESULT ' + {json.dumps(good)!r})",
            "time.sleep(60)",
        ],
    )
    queue = [run.Job("case", name, {"limit": 1.0 if name == "slow" else 60.0}) for name in "abcd"]
    queue[1] = run.Job("case", "slow", {"limit": 0.3})
    monkeypatch.setattr(run, "_SHORTEST", 0)
    session = run.Session(time.monotonic() + 60, tmp_path / "results.csv", HEAD, ahead=True)
    assert session.run(queue) == []
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == [
        "out of memory",
        "stopped after 0 s",
        "failed: no such setting",
        "",
    ]
    assert rows[3] == {
        **HEAD,
        "case": "case",
        "contender": "d",
        "prompts": "4",
        "steps": "3",
        "step_s": "3",
        "tokens_per_s": "100",
        "peak_gib": "1.2",
        "mfu": "0.400",
        "spread": "0.67",
        "note": "",
        "attention": "sdpa",
    }
    assert not rows[0]["step_s"]
    # Without time, nothing is started, and what is left is returned.
    late = run.Session(time.monotonic(), tmp_path / "late.csv", HEAD, ahead=True)
    monkeypatch.setattr(run, "_SHORTEST", 1)
    assert late.run(queue[:1]) == queue[:1]
    assert not (tmp_path / "late.csv").exists()
    assert all(process.poll() is not None for process in processes.started)


def test_the_pages_show_the_results():
    for page in benchmarks.PAGES:
        text = page.read_text(encoding="utf-8")
        assert benchmarks.filled(text) == text, "run `python -m scripts.site.benchmarks`"


def test_a_table_compares_with_the_peer_and_a_target_says_whether_it_is_met():
    def row(contender, step, tokens, peak, date="2026-11-28", **more):
        numbers = {"prompts": "8", "step_s": step, "tokens_per_s": tokens, "peak_gib": peak}
        return {**dict.fromkeys(run.COLUMNS, ""), **HEAD, "case": "1b_pairs", **numbers, **more} | {
            "contender": contender,
            "date": date,
        }

    rows = [
        row("ours", "9", "1", "90", date="2026-11-27"),  # of an earlier run
        row("ours", "0.05", "123456", "5.0", mfu="0.41"),
        row("TRL", "0.2", "30000", "10.0"),
        row("ours, sdpa", "", "", "", note="out of memory"),
    ]
    table = benchmarks.table("1b_pairs", rows)
    assert table.splitlines()[2:] == [
        "| ours | 160 | 123,456 | 5.0 | 41% | 4.0 | 0.50 | TRL |",
        "| TRL | 40 | 30,000 | 10.0 |  |  |  |  |",
        "| ours, sdpa | out of memory |  |  |  |  |  |  |",
        "",
        "2026-11-28, commit abc, a card; torch 9.",
    ]
    repeated = [*rows, row("ours", "0.1", "1", "6.0"), row("ours", "0.4", "1", "4.0")]
    assert benchmarks.last_run("1b_pairs", repeated)["ours"]["step_s"] == "0.1"
    assert table in benchmarks.tables("cuda", rows)
    targets = benchmarks.targets(rows)
    assert "| `1b_pairs` | ours | TRL | at least 2.0 times the speed | 4.0 times the speed |" in targets
    assert "| `1b_pairs` | ours | TRL | at most 0.85 of the memory | 0.50 of the memory |" in targets
    assert "| `8b_best` | ours |  | at least 45% MFU | not measured |" in targets


def test_flops_count_each_prompt_once_and_references_where_they_are_computed(tmp_path):
    shape = CONFIG["shapes"]["tiny"]
    settings = {"kind": "ours", "lora": None, "model": write_outline(shape, tmp_path / "model")}
    tree = RandomRows([(8, [3, 2])], shape["vocab_size"]).batch([0]).trees["plain"]
    trained = contenders.flops(settings, [tree])
    # Layers of 16,384 + 24,576 weights and two norms of 64, a last norm, and the head at 5 responses' tokens.
    layers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
    pairs = sum(range(1, 9)) + sum(range(9, 12)) + sum(range(9, 11))
    assert trained == 6 * 13 * layers + 6 * 5 * 512 * 64 + 3 * 2 * 4 * 64 * pairs
    for with_reference in ({"references": "adapter_off"}, {"kind": "trl"}):
        assert contenders.flops({**settings, **with_reference}, [tree]) > trained
    assert contenders.flops({**settings, "kind": "trl", "precompute": True}, [tree]) == trained
