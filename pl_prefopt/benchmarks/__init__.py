"""Benchmarks of judges, reward models and implicit rewards, in their published formats, and data reports.

Scorers are pure functions of a judge's answers; ``prefopt bench`` reads the files, asks the judge and
writes the numbers.
"""

from pl_prefopt.benchmarks import alpaca_eval, ifeval
from pl_prefopt.benchmarks.asking import ask_all
from pl_prefopt.benchmarks.estimates import Estimate, combine, estimate, estimates
from pl_prefopt.benchmarks.judgebench import JudgeBench
from pl_prefopt.benchmarks.results import Result
from pl_prefopt.benchmarks.rewardbench import (
    RewardBench,
    RewardBench2,
    best_point,
    pair_point,
    tie_stats,
    ties,
)
from pl_prefopt.benchmarks.rewardmath import RewardMATH, ranked
from pl_prefopt.benchmarks.rm_bench import RMBench, difficulties
from pl_prefopt.benchmarks.tasks import Answers, Ask, Benchmark, Task, read_tasks

BENCHMARKS: dict[str, type[Benchmark]] = {
    one.name: one for one in (RewardBench, RewardBench2, RMBench, JudgeBench, RewardMATH)
}
"""The benchmarks that ask a judge, by name."""

__all__ = [
    "BENCHMARKS",
    "Answers",
    "Ask",
    "Benchmark",
    "Estimate",
    "JudgeBench",
    "RMBench",
    "Result",
    "RewardBench",
    "RewardBench2",
    "RewardMATH",
    "Task",
    "alpaca_eval",
    "ask_all",
    "best_point",
    "combine",
    "difficulties",
    "estimate",
    "estimates",
    "ifeval",
    "pair_point",
    "ranked",
    "read_tasks",
    "tie_stats",
    "ties",
]
