"""Judges: what grades the responses of rows, or compares them in pairs."""

from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Matrix, Verdict, matrix_of, pairs, win_rates

__all__ = [
    "Cost",
    "Gives",
    "Judge",
    "JudgedRow",
    "Matrix",
    "Verdict",
    "matrix_of",
    "pairs",
    "win_rates",
]
