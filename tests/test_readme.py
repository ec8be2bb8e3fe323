"""The README's Python is executed, from top to bottom, as one session."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from experiments.frontier import answer
from experiments.report.table import print_by_budget

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
)
ROOMS = ("retrieval", "mann", "gnn", "experiments/ledger")


def test_there_are_snippets():
    assert len(SNIPPETS) >= 4


@pytest.mark.skipif(
    not all((ROOT / room / "__init__.py").exists() for room in ROOMS), reason="a package is not written yet"
)
def test_snippets_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "readme"}
    for number, snippet in enumerate(SNIPPETS, start=1):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), session)
    assert capsys.readouterr().out.strip(), "print(ledger) printed nothing"
    assert session["ledger"].flops > 0  # type: ignore[attr-defined]
    assert session["context"].shape == (2, 64, 8, 4)  # type: ignore[attr-defined]


def test_the_results_are_those_of_the_committed_study():
    """No number in the README that a command does not reproduce: `mnemograph report` prints these very lines."""
    summary = json.loads((ROOT / "docs" / "results" / "scaling" / "summary.json").read_text(encoding="utf-8"))
    # The README leaves out what the full tables say about knocked-out arms.
    kept = {name: budgets for name, budgets in summary["arms"].items() if "memory off" not in name}
    printed = io.StringIO()
    print_by_budget({**summary, "arms": kept}, printed)
    printed.write(answer(summary))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- RESULTS -->\n(.*?)<!-- END RESULTS -->", text, re.S)
    assert [line.rstrip() for line in block.strip().splitlines()] == [
        line.rstrip() for line in printed.getvalue().strip().splitlines()
    ]
