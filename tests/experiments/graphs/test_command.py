from __future__ import annotations

import json
import re

import pytest

import experiments.graphs.runner
from experiments.cli import main
from experiments.graphs.sources import find
from experiments.results import read_rows
from tests.experiments.graphs.tiny import folder

__all__ = ["folder"]


@pytest.fixture
def asked(folder, tmp_path):
    return ["graphs", "cora", "--models", "mlp", "gcn", "--seeds", "2"], [
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "out"),
    ]


def refused(argv, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_runs_that_have_finished_are_not_repeated(asked, tmp_path, capsys, monkeypatch):
    which, where = asked
    assert main([*which, *where, "--plan"]) == 0
    said = capsys.readouterr().out
    assert "cora, perceptron at the FLOPs of gcn, seed 1: at most 3 epochs" in said
    assert said.endswith("6 of 6 runs are missing\n")
    assert not (tmp_path / "out").exists()
    assert main([*which, *where]) == 0
    first = capsys.readouterr().out
    assert "|gcn" in first
    rows, _ = read_rows(tmp_path / "out")
    assert [(row["model"], row["seed"], row["control"]) for row in rows] == [
        *[("mlp", 0, False), ("mlp", 1, False)],
        *[("gcn", 0, False), ("gcn", 0, True), ("gcn", 1, False), ("gcn", 1, True)],
    ]
    file = tmp_path / "out" / "results.jsonl"
    kept = file.read_text()
    # The last run was being written when the process died.
    file.write_text(kept[: kept.rindex('"seconds"')])
    ran = []
    real = experiments.graphs.runner.execute
    monkeypatch.setattr(
        experiments.graphs.runner, "execute", lambda run, *rest: ran.append(run.label()) or real(run, *rest)
    )
    assert main([*which, *where]) == 0
    again = capsys.readouterr()
    assert ran == ["cora, perceptron at the FLOPs of gcn, seed 1"]
    assert "will be repeated" in again.err
    # All but the seconds.
    tables = [re.sub(r"\| +[\d.]+ \|( +(?:-|[\d.]+ ±))", r"|\1", said) for said in (first, again.out)]
    assert tables[0] == tables[1]


def test_without_control_and_with_another_rule(asked, capsys):
    which, where = asked
    assert main([*which, *where, "--no-control", "--rule", "last"]) == 0
    said = capsys.readouterr()
    assert "epoch chosen by last" in said.out
    assert "as many FLOPs" not in said.out
    assert len(said.err.splitlines()) == 4


def test_what_is_asked_for_wrongly_is_named(asked, folder, tmp_path, capsys):
    _, where = asked
    assert "did you mean 'cora'?" in refused(["graphs", "coraa", *where], capsys)
    assert "did you mean 'gcn'?" in refused(["graphs", "cora", "--models", "gcnn", *where], capsys)
    assert "is no folder" in refused(["graphs", "cora", "--data", str(tmp_path / "nowhere")], capsys)
    line = refused(["graphs", "cora", "proteins", "--out", str(tmp_path / "out")], capsys)
    assert "cora needs cora.npz, and no --data DIR is given" in line
    assert "TUDataset(DIR, 'PROTEINS') downloads it" in line
    assert "citeseer needs citeseer.npz" in refused(["graphs", "citeseer", *where], capsys)


def test_damaged_files_and_results_of_something_else_are_refused(asked, folder, tmp_path, capsys):
    which, where = asked
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").write_text(json.dumps({"run": "a", "arm": "dense"}) + "\n")
    assert "none of graphs" in refused([*which, *where], capsys)
    (out / "results.jsonl").write_text("")
    assert main([*which, *where, "--no-control"]) == 0
    rows = [{**row, "code": "another"} for row in read_rows(out)[0]]
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert "of these runs by other code (cora, mlp, seed 0)" in refused([*which, *where], capsys)
    (folder / "citations" / "cora.npz").write_bytes(b"PK")
    assert main([*which, *where, "--fresh"]) == 2
    assert "cannot be read as plain arrays" in capsys.readouterr().err


def test_pickles_are_read_only_where_that_is_asked_for(tmp_path):
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for end in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        (raw / f"ind.cora.{end}").touch()
    assert find("cora", tmp_path) is None
    found = find("cora", tmp_path, pickles=True)
    assert found is not None
    assert found.path == raw / "ind.cora"
    assert len(found.files) == 8
