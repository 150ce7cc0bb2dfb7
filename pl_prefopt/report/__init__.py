"""A page that compares runs, made from what they left in their folders. Loads no model."""

from pl_prefopt.report.page import Report, build_report
from pl_prefopt.report.runs import Run, find_config, read_runs
from pl_prefopt.report.static import write_figures

__all__ = ["Report", "Run", "build_report", "find_config", "read_runs", "write_figures"]
