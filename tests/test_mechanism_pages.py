"""The pages of docs/mechanisms: their examples are executed, and no class that fills a slot is left out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from mann import networks
from tests.test_contracts import EXPORTED, NO_SLOT, slot_of

HOME = Path(__file__).parents[1] / "docs" / "mechanisms"
INDEX = HOME / "index.md"
PAGES = sorted(path for path in HOME.glob("*.md") if path != INDEX)
SECTIONS = ["What", "Use it", "When", "Cost", "Evidence for and against", "Traps"]
SLOTTED = sorted(name for name, cls in EXPORTED.items() if name not in NO_SLOT and slot_of(cls) is not None)
NETWORKS = sorted(name for name in networks.__all__ if not inspect.isabstract(getattr(networks, name)))


def named(text: str) -> set[str]:
    """What is written as code: alone, or as the last part of a dotted name."""
    return {name.rsplit(".", 1)[-1] for name in re.findall(r"`([\w.]+)`", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_examples_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    assert page.stem in "".join(blocks)
    session: dict[str, object] = {"__name__": page.stem}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), session)
    log_p, loss = session["log_p"], session["loss"]
    assert isinstance(log_p, torch.Tensor)
    assert isinstance(loss, torch.Tensor)
    assert loss.isfinite()
    assert loss.ndim == 0
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(log_p.shape[:-1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_has_all_sections_and_is_short(page: Path):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    assert 25 <= len(text.splitlines()) <= 70
    assert "Measured here" in text or "not measured" in text


@pytest.mark.parametrize("page", [INDEX, *PAGES], ids=lambda path: path.stem)
def test_links_lead_somewhere_and_lines_are_short(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (HOME / link).exists()] == []
    assert [line for line in text.splitlines() if len(line) >= 150 and not line.startswith("|")] == []


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert linked == {page.name for page in PAGES}


@pytest.mark.parametrize("name", [*SLOTTED, *NETWORKS])
def test_every_class_is_on_a_page_and_in_the_index(name: str):
    assert name in named(INDEX.read_text(encoding="utf-8")), f"add a row for {name} to {INDEX.name}"
    pages = [page.stem for page in PAGES if name in named(page.read_text(encoding="utf-8"))]
    assert pages, f"no page of docs/mechanisms names `{name}`: write {name}.md"
