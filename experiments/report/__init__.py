"""The answer for people: in the terminal, as a figure, a page, and tables for papers and for other programs."""

from experiments.report.findings import Findings, find
from experiments.report.formats import FORMATS
from experiments.report.table import print_table
from experiments.report.write import write_formats, write_report

__all__ = ["FORMATS", "Findings", "find", "print_table", "write_formats", "write_report"]
