"""The study in docs/studies.md is executed, and the commands beside it print what it says they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
CONSOLE = dict(re.findall(r"^```console\n\$ ([^\n]*)\n(.*?)^```$", PAGE, re.M | re.S))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader has: the file, and a folder of text."""
    (study,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "shift.py").write_text(study)
    (tmp_path / "texts").mkdir()
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 5)) for _ in range(2000)]
    for number in range(12):
        lines = [" ".join(draw.choice(words, 12)) for _ in range(900)]
        (tmp_path / "texts" / f"tale{number}.txt").write_text("\n".join(lines))
    monkeypatch.setenv("MNEMOGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def shape(text: str) -> list[str]:
    """Lines without what differs from text to text and from machine to machine."""
    return [re.sub(r"about .* with \d+ process(es)?", "about", line) for line in text.strip().splitlines()]


def test_the_plan_is_the_one_on_the_page(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "shift", raising=False)
    assert main(["compare", "shift.py", "--plan"]) == 0
    assert shape(capsys.readouterr().out) == shape(CONSOLE["mnemograph compare shift.py --plan"])


@pytest.mark.slow
def test_the_comparison_prints_the_lines_on_the_page() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "compare", "shift.py"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    printed = [re.sub(r"[\d.+-]+", "0", line) for line in shape(done.stdout + done.stderr)]
    for line in shape(CONSOLE["mnemograph compare shift.py"]):
        if line and line != "..." and not set(line) <= set("|-"):
            expected = re.sub(r"[\d.+-]+", "0", line)
            squeezed = [re.sub(r"\s+", " ", found) for found in printed]
            assert re.sub(r"\s+", " ", expected) in squeezed, line
    assert "Not there" not in done.stdout
