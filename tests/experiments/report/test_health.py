from __future__ import annotations

from pathlib import Path

from experiments.report import write_report
from tests.experiments.report.test_report import AUDIT, COMMAND, CORPUS
from tests.experiments.synthetic import ARMS, rows


def test_the_page_says_how_tables_are_used(tmp_path: Path):
    table = rows(seeds=2, arms={key: ARMS[key] for key in list(ARMS)[:2]})
    write_report(table, tmp_path / "none", corpus=CORPUS, audit=AUDIT, command=COMMAND)
    for title in ("How tables are used", "How far gates are open"):
        assert title not in (tmp_path / "none" / "report.html").read_text()
    for row in table:
        if row["arm"] == "ngram":
            health = {"reads": 9.0, "used": 0.125, "dead": 7.0, "kl_to_uniform": 2.08, "top_percent": 0.5}
            shuffled = {"nats_per_token": row["losses"]["test"]["nats_per_token"] + 0.25}
            row["probes"] |= {"tables": {"memory.0.table": health}, "shuffled": shuffled}
            row["probes"]["gates"] = {
                "memory.0": {
                    "values": 8,
                    "mean": 0.375,
                    "shut": 0.5,
                    "open": 0.25,
                    "histogram": [0.5, 0.25, 0.25],
                }
            }
    write_report(table, tmp_path / "some", corpus=CORPUS, audit=AUDIT, command=COMMAND)
    page = (tmp_path / "some" / "report.html").read_text()
    for told in (
        "How tables are used",
        "How far gates are open",
        "memory.0.table",
        "12.5%",
        "2.08",
        "50.0%",
        "+0.250",
        "0.38",
        "25%",
        "█▄▄",
    ):
        assert told in page
