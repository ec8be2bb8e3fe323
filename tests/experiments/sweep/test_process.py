"""A trial as a process: W&B's command line, W&B's environment, and an end when it is asked for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.sweep.config import Sweep, read_sweep
from experiments.sweep.process import TrialProcess, command_line, environment

PARAMS = {"lr": 0.1, "deep": True, "flat": False, "opt": {"name": "sgd"}}


def sweep_of(tmp_path: Path, command: list[str], **more: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    content = {"method": "random", "parameters": {"x": {"value": 1}}, "command": command, "program": "mine"}
    path.write_text(yaml.safe_dump({**content, **more}))
    return read_sweep(path)


@pytest.mark.parametrize(
    ("macro", "words"),
    [
        ("${args}", ["--lr=0.1", "--deep=True", "--flat=False", "--opt={'name': 'sgd'}"]),
        ("${args_no_hyphens}", ["lr=0.1", "deep=True", "flat=False", "opt={'name': 'sgd'}"]),
        ("${args_no_boolean_flags}", ["--lr=0.1", "--deep", "--opt={'name': 'sgd'}"]),
        ("${args_json}", [json.dumps(PARAMS)]),
        ("${program}", ["mine"]),
        ("${interpreter}", ["python"]),
        ("${env}", ["/usr/bin/env"]),
        ("--path=${envvar:SWEPT}/x", ["--path=here/x"]),
        ("plain", ["plain"]),
    ],
)
def test_the_command_is_filled_in_as_by_w_and_b(
    macro: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT", "here")
    sweep = sweep_of(tmp_path, ["first", macro, "last"])
    assert command_line(sweep, PARAMS, tmp_path) == ["first", *words, "last"]
    # Once more: filling it in leaves the file's own words alone.
    assert command_line(sweep, PARAMS, tmp_path) == ["first", *words, "last"]


def test_parameters_can_go_through_a_file(tmp_path: Path) -> None:
    words = command_line(sweep_of(tmp_path, ["x", "${args_json_file}"]), PARAMS, tmp_path)
    assert json.loads(Path(words[1]).read_text()) == PARAMS


def test_a_program_finds_an_offline_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "another")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = sweep_of(tmp_path, ["x"], name="mine", project="ours")
    environ = environment(sweep, PARAMS, "abc-0003", tmp_path, 3, workers=64)
    assert {name: environ.get(name) for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_NAME")} == {
        "WANDB_MODE": "offline",
        "WANDB_RUN_ID": "abc-0003",
        "WANDB_NAME": "mine-3",
    }
    assert (environ["WANDB_RUN_GROUP"], environ["WANDB_PROJECT"]) == ("mine", "ours")
    assert "WANDB_SWEEP_ID" not in environ
    assert environ["OMP_NUM_THREADS"] == "1"
    held = yaml.safe_load(Path(environ["WANDB_SWEEP_PARAM_PATH"]).read_text())
    assert held == {"wandb_version": 1, **{name: {"value": value} for name, value in PARAMS.items()}}


def test_ending_a_trial_ends_what_it_started(tmp_path: Path) -> None:
    script = f"sleep 100 & echo $! > {tmp_path / 'child'}; echo ready; wait"
    process = TrialProcess(["sh", "-c", script], os.environ, tmp_path)
    while "ready" not in process.said():
        assert process.code() is None
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    process.end()
    assert process.code() is not None
    assert gone(child)


def test_its_last_words_are_its_own(tmp_path: Path) -> None:
    said = "Traceback:\\nValueError: boom\\n\\n\\033[1;34mwandb\\033[0m: You can sync\\nwandb: Find logs\\n"
    process = TrialProcess(["printf", said], os.environ, tmp_path)
    while process.code() is None:
        time.sleep(0.01)
    assert process.last_words() == "ValueError: boom"


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends soon; one that nobody has waited for counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False
