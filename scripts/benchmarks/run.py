"""What training costs, measured with contenders that take turns on one machine.

    python scripts/benchmarks/run.py [--case hh_pairs] [--repeats 2]
    python scripts/benchmarks/run.py --device cuda --minutes 8

Each contender of a case runs in a process of its own, with a time limit. On a GPU models and tokens are
random, and the most important contenders come first: after `--minutes` no more are started, and what was not
run is printed. A contender that runs out of memory or time is a row that says so.

Rows are appended to `--out` as they are measured; `python -m scripts.site.benchmarks` makes the tables of
docs/benchmarks.md from them. `--dry-run` runs everything with a tiny model on the CPU and keeps nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "docs" / "benchmarks" / "results.csv"
COLUMNS = (
    *("date", "commit", "card", "versions", "case", "contender", "prompts", "steps", "step_s"),
    *("tokens_per_s", "peak_gib", "mfu", "spread", "note", "attention"),
)
"""`prompts` are those of a step, `step_s` is the median, and `spread` the range of steps over the median.
`attention` is that of our prefix trees, or `rows` where there is one row per response."""
_PACKAGES = ("torch", "transformers", "trl", "liger-kernel")
_SHORTEST = 20
"""A contender is not started with fewer seconds left than this."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One contender of one case, once."""

    case: str
    contender: str
    settings: Settings


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=HERE / "cases.yaml")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", action="append", help="a case's name; all by default")
    parser.add_argument("--contender", action="append", help="a contender's name; all by default")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="the commit measured, where there is no git")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on the CPU, no results")
    given = parser.parse_args()
    config = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    queue = [
        replace(job, settings=shrunk(job.settings, config["shapes"]["tiny"])) if given.dry_run else job
        for job in jobs(config, given.device, given.case, given.repeats)
        if given.contender is None or job.contender in given.contender
    ]
    on_gpu = given.device == "cuda" and not given.dry_run
    head = {
        "date": f"{date.today():%Y-%m-%d}",
        "commit": given.commit or _commit(),
        "card": card() if on_gpu else f"{os.cpu_count()} CPU cores",
        "versions": versions(),
    }
    session = Session(
        until=time.monotonic() + 60 * given.minutes,
        out=None if given.dry_run else given.out,
        head=head,
        ahead=on_gpu,
    )
    for job in session.run(queue):
        print(f"not run, the time was up: {job.case}, {job.contender}", flush=True)


def jobs(config: Settings, device: str, names: list[str] | None, repeats: int = 1) -> Iterator[Job]:
    """Yield what is to be run: by rank, then by case, in turn."""
    of_device = config[device]
    every = [
        (settings.get("rank", 1), Job(name, contender, settings))
        for name in names or of_device["cases"]
        for case in [{**of_device["defaults"], **of_device["cases"][name]}]
        for _ in range(repeats)
        for contender in case["contenders"]
        for settings in [resolved(case, contender, config["shapes"], device)]
    ]
    yield from (job for _, job in sorted(every, key=lambda item: item[0]))


def resolved(case: Settings, contender: str, shapes: Settings, device: str) -> Settings:
    """Return a contender's settings over its case's."""
    shared = {key: value for key, value in case.items() if key not in ("contenders", "peer", "about")}
    settings = {**shared, **case["contenders"][contender], "device": device}
    if "shape" in settings:
        settings["shape"] = shapes[settings["shape"]]
    return settings


def shrunk(settings: Settings, shape: Settings) -> Settings:
    """Return the same contender at a size that a CPU runs in a second, without what needs a GPU."""
    data = settings["data"]
    if isinstance(data, dict) and "prompt_tokens" in data:
        data = {**data, "prompt_tokens": 24, "response_tokens": 8}
    on_cpu = {"kernels", "compile"}
    policy = {key: value for key, value in settings.get("policy", {}).items() if key not in on_cpu}
    if policy.get("attn_implementation") == "flex_attention":
        del policy["attn_implementation"]  # it has no gradient on a CPU
    module = {key: value for key, value in settings.get("module", {}).items() if value != "fused"}
    small = {
        "batch_size": 2,
        "warmup": 1,
        "steps": 1,
        "max_prompt_length": 24,
        "max_response_length": 8,
        "limit": 1200,
    }
    return {
        **settings,
        **small,
        **({"shape": shape} if "shape" in settings else {}),
        "device": "cpu",
        "data": data,
        "policy": policy,
        "module": module,
    }


@dataclass
class Session:
    """Runs jobs one after another until the time is up.

    Attributes:
        until: when to stop, by ``time.monotonic``.
        out: the file to append to; ``None`` for none.
        head: what all rows have in common.
        ahead: whether the next process imports its packages while one measures.
    """

    until: float
    out: Path | None
    head: Settings
    ahead: bool = False

    def run(self, queue: list[Job]) -> list[Job]:
        """Run jobs; return those that there was no time for."""
        waiting: subprocess.Popen[str] | None = None
        try:
            for number, job in enumerate(queue):
                seconds = self.until - time.monotonic()
                if seconds < _SHORTEST:
                    return queue[number:]
                process = waiting or start()
                waiting = start() if self.ahead and number + 1 < len(queue) else None
                limit = min(job.settings["limit"], seconds)
                result = finish(process, job.settings, limit)
                if result.get("note", "").startswith("stopped") and limit < job.settings["limit"]:
                    return queue[number:]
                self._keep(job, row_of(job, result, self.head))
        finally:
            if waiting is not None:
                waiting.kill()
                waiting.communicate()
        return []

    def _keep(self, job: Job, row: Settings) -> None:
        numbers = f"{row['step_s']} s per step, {row['tokens_per_s']} tokens/s, {row['peak_gib']} GiB"
        print(f"{job.case}, {job.contender}: {row['note'] or numbers}", flush=True)
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        new = not self.out.exists()
        with self.out.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def start() -> subprocess.Popen[str]:
    """Start a process that waits for a contender's settings."""
    command = [sys.executable, "-m", "scripts.benchmarks.contenders"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], settings: Settings, limit: float) -> Settings:
    """Let a waiting process measure a contender; where it fails, return a ``note`` that says why."""
    try:
        printed, _ = process.communicate(json.dumps(settings) + "\n", timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"note": f"stopped after {limit:.0f} s"}
    for line in printed.splitlines():
        if line.startswith("RESULT "):
            result: Settings = json.loads(line.removeprefix("RESULT "))
            return result
    print(printed[-4000:], file=sys.stderr, flush=True)
    if "OutOfMemoryError" in printed:
        return {"note": "out of memory"}
    last = (printed.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    return {"note": f"failed: {last[:150]}"}


def row_of(job: Job, result: Settings, head: Settings) -> Settings:
    """Return a result as a row of the file."""
    row = {**dict.fromkeys(COLUMNS, ""), **head, "case": job.case, "contender": job.contender}
    if "note" in result:
        return {**row, "note": result["note"]}
    seconds = result["seconds"]
    median = statistics.median(seconds)
    measured = {
        "prompts": f"{result['prompts'] / len(seconds):g}",
        "steps": len(seconds),
        "step_s": f"{median:.4g}",
        "tokens_per_s": f"{result['tokens'] / sum(seconds):.0f}",
        "peak_gib": f"{result['peak_gib']:.1f}",
        "mfu": f"{result['mfu']:.3f}" if "mfu" in result else "",
        "spread": f"{(max(seconds) - min(seconds)) / median:.2f}",
        "attention": result.get("attention", ""),
    }
    return {**row, **measured}


def card() -> str:
    """Return the GPU's name."""
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.splitlines()[0].strip()


def versions() -> str:
    """Return the versions of the packages that matter, of those that are installed."""
    found = []
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return asked.stdout.strip()


if __name__ == "__main__":
    main()
