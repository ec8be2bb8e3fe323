"""The examples of docs/attach.md are executed, from top to bottom, as one session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "attach.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "attach"}
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"attach.md, block {number}", "exec"), session)
    assert len(BLOCKS) == 4
    assert (tmp_path / "memory" / "memory.safetensors").exists()
