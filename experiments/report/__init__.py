"""The answer for people: a table in the terminal, a figure, and one self-contained page."""

from experiments.report.table import print_table
from experiments.report.write import write_report

__all__ = ["print_table", "write_report"]
