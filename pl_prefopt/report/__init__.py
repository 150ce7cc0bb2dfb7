"""Pages on runs, on preference data and on benchmarks, made from files. Loads no model."""

from pl_prefopt.report.bench_page import bench_tables, is_bench, read_results
from pl_prefopt.report.data_page import data_tables
from pl_prefopt.report.page import Report, build_report
from pl_prefopt.report.plain_page import Table, plain_page
from pl_prefopt.report.runs import Run, find_config, read_runs
from pl_prefopt.report.static import write_figures

__all__ = [
    "Report",
    "Run",
    "Table",
    "bench_tables",
    "build_report",
    "data_tables",
    "find_config",
    "is_bench",
    "plain_page",
    "read_results",
    "read_runs",
    "write_figures",
]
