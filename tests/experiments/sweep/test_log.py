"""W&B's log of an offline run: whatever of it is written already is read, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.errors import RunError
from experiments.sweep.log import BLOCK, RunLog, can_follow, find_log

STEPS = 150
# The text is long, so that records run across the blocks of the file.
SCRIPT = f"""
import wandb
with wandb.init() as run:
    run.define_metric("best", summary="min")
    for step in range({STEPS}):
        run.log({{"loss": 1 / (step + 1), "a": {{"b": step}}, "best": abs(step - 70), "text": "x" * 500}})
    run.log({{"loss": float("nan")}})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its parent holds no run of another test.
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_RUN_ID": "abc-0001"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env={**os.environ, **own}, check=True, capture_output=True
    )
    return folder


def log_of(folder: Path) -> Path:
    found = find_log(folder, "abc-0001", "")
    assert found is not None
    return found


def test_a_run_is_read_to_its_end(folder: Path) -> None:
    log = RunLog(log_of(folder), "loss")
    log.read()
    assert log.path.stat().st_size > 3 * BLOCK
    assert log.values == [1 / (step + 1) for step in range(STEPS)]
    assert {"loss", "a.b", "best"} <= log.names


def test_the_value_is_the_summary_of_the_run(folder: Path) -> None:
    found = {}
    for metric in ("a.b", "best"):
        log = RunLog(log_of(folder), metric)
        log.read()
        found[metric] = log.value
    assert found == {"a.b": STEPS - 1, "best": 0}


def test_what_ended_as_no_number_has_no_value_whatever_came_before(folder: Path) -> None:
    log = RunLog(log_of(folder), "loss")
    log.read()
    assert log.values[-1] == 1 / STEPS
    assert log.value is None


def test_a_file_that_grows_is_read_piece_by_piece(folder: Path, tmp_path: Path) -> None:
    content = log_of(folder).read_bytes()
    growing = tmp_path / "run-abc.wandb"
    growing.write_bytes(b"")
    log = RunLog(growing, "loss")
    seen = 0
    for end in [*range(0, len(content), 1013), len(content)]:
        growing.write_bytes(content[:end])
        log.read()
        assert len(log.values) >= seen
        seen = len(log.values)
    assert log.values == [1 / (step + 1) for step in range(STEPS)]


def test_another_format_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "run-abc.wandb"
    content = log_of(folder).read_bytes()
    for broken in (b"SQLite format 3", content[:7] + b"\xff" * 100, content[:14] + b"\xff" * 100):
        other.write_bytes(broken + content[200:])
        with pytest.raises(RunError, match="is no log that this version of mnemograph reads"):
            RunLog(other, "loss").read()


def test_a_log_is_found_wherever_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(folder)
    assert find_log(folder.parent, "other", "") == log
    assert find_log(tmp_path, "abc-0001", "") is None
    assert find_log(tmp_path, "abc-0001", f"wandb: Run data is saved locally in {log.parent}\n") == log
    # As where a program gives wandb.init(dir=".").
    monkeypatch.chdir(folder)
    assert find_log(tmp_path, "abc-0001", "") == log
    assert find_log(tmp_path, "abc-0002", "") is None


def test_the_installed_w_and_b_writes_while_it_runs() -> None:
    assert can_follow()
