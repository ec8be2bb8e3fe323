"""Where the numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.frontier import ResultsError
from experiments.report import write_report
from tests.experiments.report.test_report import read
from tests.experiments.synthetic import rows


def test_the_page_says_which_arithmetic_the_runs_had(tmp_path: Path):
    table = rows(arms={}, seeds=2)
    for row in table:
        row["settings"] = {"precision": "bf16-mixed" if row["seed"] else "32-true"}
    with pytest.raises(ResultsError, match=r"different precision \(32-true: .*bf16-mixed: .*--allow-mixed"):
        write_report(table, tmp_path, corpus=None, audit=None, command="x")
    summary = write_report(table, tmp_path, corpus=None, audit=None, command="x", allow_mixed=True)
    assert "Runs of different precision" in summary["verdict"]
    assert "32-true and bf16-mixed (runs of the two differ" in "".join(read(tmp_path).text)
