"""What training costs, as ratios between contenders that take turns on one machine.

    python scripts/benchmarks/run.py [--case hh_pairs] [--repeats 2] [--out runs/benchmarks]

Each contender of a case runs in a process of its own, all of them in turn, `--repeats` times. A number is the
median over all measured steps; a ratio is of such medians, its spread over the repeats. Peak memory is the
process's. Results are appended to nothing: each case's table replaces the one before.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
Measured = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Run the cases and write a table each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "cases.yaml")
    parser.add_argument("--case", action="append", help="a case's name; all by default")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    given = parser.parse_args()
    config = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.case or config["cases"]:
        case = {**config["defaults"], **config["cases"][name]}
        table = report(name, case, measure(case, given.repeats))
        (given.out / f"{name}.md").write_text(table, encoding="utf-8")
        print(table, flush=True)


def measure(case: dict[str, Any], repeats: int) -> Measured:
    """Run every contender ``repeats`` times, in turn."""
    shared = {key: value for key, value in case.items() if key not in ("contenders", "peer", "about")}
    results: Measured = {name: [] for name in case["contenders"]}
    for repeat in range(repeats):
        for name, settings in case["contenders"].items():
            results[name].append(run({**shared, **settings}))
            seconds = statistics.median(results[name][-1]["seconds"])
            print(f"{name}, repeat {repeat + 1}: {seconds:.2f} s a step", file=sys.stderr, flush=True)
    return results


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    command = [sys.executable, str(HERE / "contenders.py"), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return result
    raise SystemExit(f"{settings['kind']} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def report(name: str, case: dict[str, Any], results: Measured) -> str:
    """Return a case's results as Markdown."""
    peer = [speed(result) for result in results[case["peer"]]]
    peer_memory = statistics.median(result["peak_gib"] for result in results[case["peer"]])
    lines = [
        f"### {name}: {case['about']}",
        "",
        f"{where()}; batch of {case['batch_size']} prompts, {len(peer)} repeats of {case['steps']} steps.",
        "",
        f"| contender | prompts/s | unique tokens/s | peak GiB | speed to {case['peer']} | memory to it |",
        "|---|---|---|---|---|---|",
    ]
    for contender, runs in results.items():
        speeds = [speed(result) for result in runs]
        tokens = statistics.median(result["tokens"] / sum(result["seconds"]) for result in runs)
        memory = statistics.median(result["peak_gib"] for result in runs)
        ratios = [mine / theirs for mine, theirs in zip(speeds, peer, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        numbers = f"{statistics.median(speeds):.3f} | {tokens:.0f} | {memory:.1f} | {spread}"
        lines.append(f"| {contender} | {numbers} | {memory / peer_memory:.2f} |")
    return "\n".join(lines) + "\n"


def speed(result: dict[str, Any]) -> float:
    """Return prompts a second over the measured steps."""
    return float(result["prompts"] / sum(result["seconds"]))


def where() -> str:
    """Say on what this was measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "trl"))
    return f"{date.today():%Y-%m-%d}, {platform.machine()}, {versions}"


if __name__ == "__main__":
    main()
