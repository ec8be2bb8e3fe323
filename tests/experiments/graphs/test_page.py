"""What docs/graphs.md says there is, there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments.cli import _parser
from experiments.commands.graphs import _models
from experiments.graphs.recipes import RECIPES

PAGE = (Path(__file__).parents[3] / "docs" / "graphs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"^\$ mnemograph (.*)$", PAGE, re.M))
def test_its_commands_are_understood(line):
    arguments = _parser().parse_args(shlex.split(line))
    assert arguments.command == "graphs"
    assert all(_models(arguments.sets or ["cora"], arguments.models).values())


def test_its_recipes_are_all_there_are():
    section = PAGE.split("## Recipes")[1].split("## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")][2:]
    told = {name: models for sets, *_, models in rows for name in re.split(r",\s*", sets.strip())}
    assert set(told) == set(RECIPES)
    missing = [
        (name, model)
        for name, of_set in RECIPES.items()
        for model in of_set
        if not re.search(rf"(?<![\w-]){re.escape(model)}(?![\w+-])", told[name])
    ]
    assert not missing
