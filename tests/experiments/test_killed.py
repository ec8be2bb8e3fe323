"""A study killed again and again, at any moment, ends with the results of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 10
STUDY = """
'''Is nothing lost?'''
from pathlib import Path

from experiments.data import TextCorpus
from experiments.study import Study

study = Study(
    data=TextCorpus(Path({text!r}), vocab_size=257, pattern="*.py"),
    arms=("ngram", "graph"),
    whole_corpus=("knn",),
    widths=(16,),
    frontier=1,
    budgets=(4e9,),
    reach=(2e9, 8e9),
    seeds=range(2),
    settings=dict(layers=1, heads=2, batch=8, time=64, k=4, evaluation_tokens=512),
)
"""
# What a clock says.
TIMES = ("seconds", "train_seconds", "started")


def start(study: Path, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "compare", str(study), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "MNEMOGRAPH_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def rows(out: Path) -> dict[tuple[str, str, str], Any]:
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    keyed = {(row["run"], row["arm"], row["regime"]): row for row in found}
    assert len(keyed) == len(found), "a run was carried out twice"
    return {
        key: {name: value for name, value in row.items() if name not in TIMES} for key, row in keyed.items()
    }


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_results(tmp_path: Path) -> None:
    study = tmp_path / "lost.py"
    study.write_text(STUDY.format(text=str(ROOT / "tests")))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(study, whole, tmp_path / "cache 1"))
    moments = random.Random(os.urandom(8))
    for _ in range(KILLS):
        process = start(study, killed, tmp_path / "cache 2")
        try:
            process.wait(timeout=moments.uniform(1.0, 9.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(study, killed, tmp_path / "cache 2"))
    assert rows(killed) == rows(whole)
    assert json.loads((killed / "summary.json").read_text())["missing"] == []
