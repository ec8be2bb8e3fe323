"""The report in W&B, offline: no account, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import UsageError

from experiments.cli import main
from experiments.errors import ResultsError
from experiments.report import FORMATS, Findings
from experiments.report.content import tables
from experiments.report.long import lines
from experiments.report.tracking import log_report, track
from tests.experiments.synthetic import rows


def media(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.rglob(f"media/{kind}/**/*.*"))


def logged_tables(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in media(folder, "table")]


def test_tables_figures_and_page_reach_an_open_run(invented: Findings, tmp_path: Path):
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off")) as run:
        log_report(run, invented)
    found = {tuple(table["columns"]): table["data"] for table in logged_tables(tmp_path)}
    for table in tables(invented.summary):
        texts = [[cell.text for cell in row] for row in table.rows]
        assert any(each["data"] == texts for each in logged_tables(tmp_path))
    numbers = next(data for columns, data in found.items() if "convention" in columns)
    assert len(numbers) == len(list(lines(invented.summary)))
    (page,) = media(tmp_path, "html")
    assert page.read_text() == FORMATS["html"].to_bytes(invented).decode()
    figures = media(tmp_path, "images")
    assert {path.name.partition("_")[0] for path in figures} == {"frontier", "profiles"}
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_the_command_logs_a_run_of_its_own_in_the_group_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    seen: dict[str, Any] = {}
    begin = wandb.init

    def watched(**given: Any) -> Any:
        run = begin(**given)
        seen.update(group=run.group, job=run.job_type, offline=run.settings._offline, project=run.project)
        return run

    monkeypatch.setattr(wandb, "init", watched)
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows(seeds=1, arms={})))
    assert main(["report", str(results), "--format", "json", "--wandb", "offline"]) == 0
    assert seen == {"group": "memory_per_flop", "job": "report", "offline": True, "project": "mnemograph"}
    assert list((tmp_path / "wandb").rglob("run-*.wandb"))
    said = capsys.readouterr()
    assert str(tmp_path / "wandb") in said.err
    assert json.loads(said.out)["study"] == "memory_per_flop"  # and nothing else is printed
    assert wandb.run is None


def test_what_wandb_refuses_is_told_with_what_to_type(
    invented: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**_: Any) -> None:
        raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ResultsError, match=r"No API key.*--wandb offline"):
        track(invented, "online", tmp_path)
