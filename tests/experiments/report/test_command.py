"""``mnemograph report``: any runs, any format, and one line where something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.report import FORMATS, Findings
from tests.experiments.synthetic import ARMS, rows

FEW = {key: ARMS[key] for key in list(ARMS)[:3]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "runs", rows(seeds=1, arms=FEW))


def written(folder: Path, given: list) -> Path:
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder


def test_one_text_format_is_printed_and_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture):
    before = sorted(folder.iterdir())
    assert main(["report", str(folder), "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("study,corpus,arm,")
    assert said.err == ""
    assert sorted(folder.iterdir()) == before


def test_without_a_format_the_usual_files_go_to_the_folder_or_to_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    usual = ["frontier.png", "report.html", "results.jsonl", "summary.json"]
    assert main(["report", str(folder / "results.jsonl")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == usual
    out = tmp_path / "elsewhere"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [name for name in usual if name != "results.jsonl"]
    assert "training seconds" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--format", "csv,latex"], ["--format", "csv", "--format", "latex"]])
def test_several_formats_are_files(given: list[str], folder: Path, capsys: pytest.CaptureFixture):
    assert main(["report", str(folder), *given]) == 0
    assert {"multipliers.csv", "tables.tex"} < {path.name for path in folder.iterdir()}
    assert not (folder / "report.html").exists()
    assert str(folder / "tables.tex") in capsys.readouterr().out


def test_all_means_every_format(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (folder / "about.json").write_text(json.dumps({"corpus": {"source": "code", "packages": ["sympy"]}}))
    assert main(["report", str(folder), "--format", "all", "--out", str(tmp_path / "o")]) == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {form.file for form in FORMATS.values()}
    assert "sympy" in (tmp_path / "o" / "report.html").read_text()
    assert "data code, fingerprint" in (tmp_path / "o" / "tables.tex").read_text()
    assert len(capsys.readouterr().out.splitlines()) == len(FORMATS)


def test_runs_of_two_folders_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture):
    given = rows(seeds=2, arms=FEW)
    one = written(tmp_path / "one", [row for row in given if row["seed"] == 0])
    two = written(tmp_path / "two", [row for row in given if row["seed"] == 1])
    (two / "about.json").write_text(json.dumps({"question": "Both?", "command": "mnemograph compare"}))
    assert main(["report", str(one), str(two), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert main(["report", str(one), str(two), "--format", "html", "--out", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Both?" in page
    assert f"mnemograph report {one} {two}" in page


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    try:
        code: object = main(["report", *arguments])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    return said.err


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file.jsonl"
    file.write_text("{}\n")
    assert "no run has finished" in refused([str(empty)], capsys)
    assert "there is no folder" in refused([str(tmp_path / "nowhere")], capsys)
    assert "is not called results.jsonl" in refused([str(file)], capsys)
    assert "there is no format 'pdf'" in refused([str(folder), "--format", "pdf"], capsys)
    assert "there is no format ''" in refused([str(folder), "--format", "csv,"], capsys)
    assert "give another --out" in refused([str(folder), "--out", str(file / "below")], capsys)
    assert "give another --out" in refused([str(folder), "--format", "svg", "--out", str(file)], capsys)
    twin = shutil.copytree(folder, tmp_path / "twin")
    assert "give --out" in refused([str(folder), str(twin)], capsys)
    assert "give --out" in refused([str(folder), str(twin), "--format", "png"], capsys)
    assert refused([], capsys)


def test_rows_that_cannot_be_compared_are_told_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = written(tmp_path / "other", [{**row, "corpus": "cd" * 32} for row in rows(seeds=1, arms={})])
    out = tmp_path / "out"
    assert "2 corpora" in refused([str(folder), str(other), "--out", str(out)], capsys)
    assert not out.exists()
    dense_less = written(tmp_path / "odd", [row for row in rows(seeds=1, arms=FEW) if row["arm"] != "dense"])
    assert "no finished dense run" in refused([str(dense_less), "--format", "latex"], capsys)


def test_a_damaged_about_does_not_stop_a_report(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "about.json").write_text("[1, 2]")
    assert main(["report", str(folder), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# ")


def test_the_report_is_written_all_or_nothing(invented: Findings, tmp_path: Path):
    from experiments.report import write_formats

    files = write_formats(invented, tmp_path / "new", ["latex", "svg"])
    assert [path.name for path in files] == ["tables.tex", "frontier.svg"]
    with pytest.raises(KeyError):
        write_formats(invented, tmp_path / "none", ["latex", "pdf"])
    assert not (tmp_path / "none").exists()
