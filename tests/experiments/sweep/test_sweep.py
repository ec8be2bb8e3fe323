"""``mnemograph sweep``, for real: processes, W&B's offline runs, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from experiments.cli import main
from experiments.sweep.config import read_sweep
from experiments.sweep.sampler import Sampler
from tests.experiments.sweep.program import loss
from tests.experiments.sweep.test_process import gone

ROOT = Path(__file__).parents[3]
RANGE = {"min": 0.0, "max": 1.0}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "program": "tests.experiments.sweep.program",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "${args}"],
        "name": "toy",
        "method": "random",
        "metric": {"name": "loss"},
        "parameters": {"x": RANGE},
        **changes,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def outcomes(out: Path) -> dict[int, tuple[Any, ...]]:
    return {row["number"]: (row["params"], row["state"], row["value"], row["steps"]) for row in rows(out)}


def sweep(file: Path, *options: str) -> int:
    return main(["sweep", str(file), "--offline", "--out", "out", *options])


def test_a_grid_ends_by_itself_and_the_best_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parameters = {"x": {"values": [0.3, 0.9]}, "steps": {"value": 4}, "kind": {"values": ["good"]}}
    file = write(tmp_path / "sweep.yaml", method="grid", parameters=parameters, project="ours")
    assert sweep(file, "--workers", "2") == 0
    assert outcomes(tmp_path / "out") == {
        number: ({"kind": "good", "steps": 4, "x": x}, "finished", loss(x, 3, False), 4)
        for number, x in enumerate((0.3, 0.9))
    }
    said = capsys.readouterr()
    assert "2 trials (the whole grid), in out" in said.out
    table = said.out.split("trial")[2].splitlines()
    # What never varies is no column; the best trial is the first row.
    assert table[0].split() == ["loss", "x"]
    assert [line.split() for line in table[2:4]] == [["0", "0.25", "0.3"], ["1", "0.61", "0.9"]]
    assert "python -m tests.experiments.sweep.program --kind=good --steps=4 --x=0.3" in said.out
    assert "[2/2]" in said.err
    # Once more: nothing is left to do.
    before = rows(tmp_path / "out")
    assert sweep(file) == 0
    assert "2 of them ended before" in capsys.readouterr().out
    assert rows(tmp_path / "out") == before


def test_bad_trials_are_stopped_early_and_broken_ones_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write(
        tmp_path / "sweep.yaml",
        method="grid",
        parameters={
            "kind": {"values": ["good", "broken", "bad"]},
            "steps": {"value": 40},
            "pause": {"value": 0.02},
        },
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3},
    )
    assert sweep(file) == 0
    good, broken, bad = sorted(rows(tmp_path / "out"), key=lambda row: row["number"])
    assert (good["state"], good["steps"]) == ("finished", 40)
    assert good["stops"]["2"] == loss(0, 1, False)
    assert bad["state"] == "stopped early"
    assert 2 <= bad["steps"] < 40
    assert broken["state"] == "failed"
    said = capsys.readouterr()
    assert "RuntimeError: no luck with broken (exit code 1)" in said.err
    assert f"stopped early after {bad['steps']}" in said.out
    assert "1 of 3 trials failed" in said.out


def test_killed_outright_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    parameters = {"x": RANGE, "steps": {"value": 4}, "pause": {"value": 0.1}}
    file = write(tmp_path / "sweep.yaml", parameters=parameters)
    words = [sys.executable, "-m", "experiments", "sweep", str(file), "--offline", "--out", "out"]
    process = subprocess.Popen([*words, "--count", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    out = tmp_path / "out"
    wait(lambda: (out / "trials" / "0001" / "output.log").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = rows(out)
    assert [row["number"] for row in first] == [0]
    assert sweep(file, "--count", "2") == 0
    assert rows(out)[:1] == first
    sampler = Sampler(read_sweep(file), 0)
    expected = [sampler.params(sampler.place(number, [])) for number in range(2)]
    assert outcomes(out) == {
        number: (params, "finished", loss(params["x"], 3, False), 4) for number, params in enumerate(expected)
    }


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_trials_end_with_it_however_it_ends(by: signal.Signals, tmp_path: Path) -> None:
    file = write(tmp_path / "sweep.yaml", parameters={"x": RANGE, "pause": {"value": 30}})
    words = [sys.executable, "-m", "experiments", "sweep", str(file), "--offline", "--out", "out", "--fresh"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait(lambda: (tmp_path / "out" / "trials" / "0000" / "output.log").exists())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait(lambda: bool(children.read_text().split()))
    trial = int(children.read_text().split()[-1])
    process.send_signal(by)
    said = process.communicate(timeout=30)[1]
    assert gone(trial)
    assert rows(tmp_path / "out") == []
    assert "Traceback" not in said
    if by != signal.SIGKILL:
        assert process.returncode == 130
        assert f"To continue: mnemograph sweep {file} --offline --out out\n" in said


def test_when_the_first_trials_all_fail_it_gives_up(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "sweep.yaml", command=["sh", "-c", "echo no such luck; exit 3"], program=None)
    assert sweep(file) == 2
    said = capsys.readouterr()
    assert "neither run_cap nor --count says how many, so 20" in said.out
    assert "all 5 trials failed, the first with: no such luck (exit code 3)" in said.err
    assert "--retry" in said.err
    write(file, command=["true"], program=None, metric=None)
    assert sweep(file, "--fresh", "--count", "1") == 0
    assert "[1/1] trial 0 (x=0.637): done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": {"name": "lost"}}, "it did not log 'lost' but loss, step"),
        ({"parameters": {"kind": {"value": "nan"}}}, "loss was no finite number"),
        ({"command": ["true"], "program": None}, "it began no W&B run"),
    ],
)
def test_a_trial_without_its_metric_has_failed(
    changes: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep(write(tmp_path / "sweep.yaml", **changes), "--count", "1") == 2
    assert says in capsys.readouterr().err


def test_no_trial_begins_once_one_has_reached_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    metric = {"name": "loss", "goal": "minimize", "target": 5.0}
    assert sweep(write(tmp_path / "sweep.yaml", metric=metric, run_cap=9)) == 0
    assert len(rows(tmp_path / "out")) == 1
    assert "loss reached its target, 5." in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(file: Path, *options: str) -> str:
        assert sweep(file, *options) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        return told[0]

    assert refused(tmp_path / "none.yaml").startswith("mnemograph sweep: there is no file")
    file = write(tmp_path / "sweep.yaml", metod="grid")
    assert "metod: is no key" in refused(file)
    file = write(tmp_path / "sweep.yaml")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        assert "another mnemograph process works on out" in refused(file)


def test_without_a_key_it_runs_here_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    file = write(tmp_path / "sweep.yaml", command=["true"], program=None, metric=None, run_cap=1)
    # In a process of its own: W&B reads its environment once.
    words = [sys.executable, "-m", "experiments", "sweep", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "Offline (W&B has no API key here (wandb login sets one)): 1 trials (run_cap)" in done.stdout
    assert [row["state"] for row in rows(tmp_path / "runs" / "sweeps" / "toy")] == ["finished"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["sweep", str(file)]) == 0
    assert "Offline (WANDB_MODE is offline)" in capsys.readouterr().out


@pytest.mark.slow
def test_with_a_key_it_asks_w_and_b_and_says_what_else_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    # Nobody listens there.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    words = [sys.executable, "-m", "experiments", "sweep", str(write(tmp_path / "sweep.yaml"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "W&B did not create the sweep" in done.stderr
    assert "--offline runs the file here" in done.stderr
    done = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, check=False)
    assert "--workers goes with --offline" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_bayes_killed_outright_goes_on_exactly(tmp_path: Path) -> None:
    parameters = {"x": RANGE, "kind": {"values": ["good", "bad"]}, "steps": {"value": 1}}
    file = write(tmp_path / "sweep.yaml", method="bayes", parameters=parameters)
    words = [sys.executable, "-m", "experiments", "sweep", str(file), "--offline", "--out", "out"]
    process = subprocess.Popen(
        [*words, "--count", "13"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait(lambda: (tmp_path / "out" / "trials" / "0011" / "output.log").exists(), seconds=300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep(file, "--count", "13") == 0
    assert main(["sweep", str(file), "--offline", "--count", "13", "--out", "whole"]) == 0
    assert outcomes(tmp_path / "out") == outcomes(tmp_path / "whole")
    assert len(outcomes(tmp_path / "out")) == 13


def wait(until: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)
