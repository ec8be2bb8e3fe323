"""An arm of one's own is another one when it is made otherwise, and the same when only its study changes."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from experiments.arms import Arm
from experiments.definition import definition
from experiments.errors import RunError

STUDY = '''"""A question."""
import functools
import torch
from torch import nn
from experiments.arms import Arm
from mann import Memory

SIZE = 3
NAMES = {"early", "late", "never", "always", "first", "second", "third"}
SHIFTS = (1,)

class Shift(Memory):
    """A memory."""
    step = 1
    def __init__(self, d_model):
        super().__init__()
        self.mix = nn.Linear(d_model, SIZE)
    def forward(self, x, context):  # a comment
        assert "early" in {"early", "late", "never", "always", "first", "second", "third"}
        return self.mix(x.roll(SHIFTS[0], 1))

class Kind:
    def __init__(self, size): self.size = size

def slots(n_layers, source, act=None, kind=None, weights=None):
    return {"memory": {0: Shift}} if NAMES else {}

slots = functools.partial(slots, act=torch.relu, kind=Kind(2), weights=torch.arange(3.0))
seeds = range(2)
arm = Arm("shift", slots)
'''


CHANGES = [
    ("x.roll(SHIFTS[0], 1)", "x.roll(SHIFTS[0], 0)"),
    ("SHIFTS = (1,)", "SHIFTS = (2,)"),
    ("SIZE = 3", "SIZE = 4"),
    ("step = 1", "step = 2"),
    ('NAMES = {"early", ', "NAMES = {"),
    ("torch.relu", "torch.tanh"),
    ("Kind(2)", "Kind(3)"),
    ("torch.arange(3.0)", "torch.arange(1.0, 4.0)"),
    ("{0: Shift}", "{1: Shift}"),
]

SCRIPT = """
import importlib, linecache, sys
from experiments.definition import definition
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    sys.modules.pop("mine", None)
    linecache.clearcache()
    importlib.invalidate_caches()
    print(definition(importlib.import_module("mine").arm))
    sys.path.remove(folder)
"""


def digests(folder: Path, texts: list[str], seed: int) -> list[str]:
    """What the definition of each is, in a process whose hashes begin with a seed."""
    folders = [folder / str(i) for i in range(len(texts))]
    for each, text in zip(folders, texts, strict=True):
        each.mkdir(parents=True)
        (each / "mine.py").write_text(text)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders)],
        env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path.cwd()), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_what_it_is_made_of_counts_and_nothing_else(tmp_path):
    assert all(STUDY.count(old) == 1 for old, _ in CHANGES)
    made = digests(tmp_path / "1", [STUDY, *(STUDY.replace(*change) for change in CHANGES)], 1)
    assert len(set(made)) == 1 + len(CHANGES)
    same = (
        STUDY.replace("range(2)", "range(5)").replace("A question", "Another").replace("# a comment", "# so")
    )
    # In another process, too, whose sets and addresses are others.
    assert digests(tmp_path / "2", [STUDY, same], 2) == made[:1] * 2


def test_what_cannot_be_told_again_is_refused():
    arm = Arm("locked", partial(dict, lock=threading.Lock()))
    with pytest.raises(RunError, match=r"'locked' is made with a _thread.lock .* Give the class a __repr__"):
        definition(arm)
