"""The examples of docs/stores.md are executed, Python and commands, from top to bottom, as one session."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "stores.md"
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for number, other in enumerate(("dog", "hen", "owl")):
        (tmp_path / "notes" / f"tale{number}.txt").write_text(f"The cat met the {other}.\n" * 20)


@pytest.mark.usefixtures("_notes")
def test_examples_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    session: dict[str, object] = {"__name__": "stores"}
    commands = 0
    for number, (language, block) in enumerate(BLOCKS, start=1):
        if language == "python":
            exec(compile(block, f"stores.md, block {number}", "exec"), session)
            continue
        for line in block.splitlines():
            assert line.startswith("$ mnemograph "), line
            assert main(shlex.split(line)[2:]) == 0, line
            commands += 1
    assert commands > 10
    printed = capsys.readouterr().out
    assert "<- chosen" in printed
    assert "recall@8" in printed
    assert "The cat|" in printed
    with np.load("found.npz") as found:
        assert found["ids"].shape == (200, 8)
        assert (found["documents"][found["mask"]] != 0).all()
        assert (found["positions"] < 50).all()
    assert session["tokens"].shape == (200, 8)  # type: ignore[attr-defined]
    assert session["nearest"].mask.all()  # type: ignore[attr-defined]


def test_every_action_has_an_example() -> None:
    from experiments.commands.store import ACTIONS

    text = "".join(block for _, block in BLOCKS)
    assert [action for action in ACTIONS if f"mnemograph store {action} " not in text] == []
