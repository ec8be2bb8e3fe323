"""Files of sets that a run takes a moment on, and recipes to match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.graphs import recipes

NODES, WORDS, CLASSES = 60, 20, 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, laid out as downloads are; recipes of few epochs."""
    draw = np.random.default_rng(0)
    y = np.arange(NODES) % CLASSES
    edges = np.stack([(one := draw.integers(0, NODES, 150)), (one + 3) % NODES], axis=1)
    words = [np.unique([label * 4 + draw.integers(0, 4), draw.integers(0, WORDS)]) for label in y]
    place = tmp_path / "data"
    (place / "citations").mkdir(parents=True)
    (place / "minesweeper" / "raw").mkdir(parents=True)
    np.savez(
        place / "citations" / "cora.npz",
        edges=edges,
        x_indptr=np.cumsum([0, *map(len, words)]),
        x_indices=np.concatenate(words),
        x_shape=np.array([NODES, WORDS]),
        y=y,
        train_idx=np.arange(12),
        val_idx=np.arange(12, 30),
        test_idx=np.arange(30, NODES),
    )
    turned = [np.roll(np.arange(NODES), 7 * fold) for fold in range(10)]
    np.savez(
        place / "minesweeper" / "raw" / "minesweeper.npz",
        node_features=draw.normal(size=(NODES, 4)),
        node_labels=y % 2,
        edges=edges,
        train_masks=np.array([order < 30 for order in turned]),
        val_masks=np.array([(order >= 30) & (order < 45) for order in turned]),
        test_masks=np.array([order >= 45 for order in turned]),
    )
    short = {
        name: {model: replace(recipe, epochs=3, patience=None) for model, recipe in of_set.items()}
        for name, of_set in recipes.RECIPES.items()
    }
    narrow = {
        model: replace(one, options={**one.options, "hidden": 8})
        for model, one in short["minesweeper"].items()
    }
    for name, of_set in {**short, "minesweeper": narrow}.items():
        monkeypatch.setitem(recipes.RECIPES, name, of_set)
    return place


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    """Thirty triangles and paths, told apart by their labels' order, as a TU set's text files."""
    place = tmp_path / "data" / "PROTEINS"
    place.mkdir(parents=True)
    edges, owners, labels, targets = [], [], [], []
    for graph in range(30):
        first = 1 + 3 * graph
        links = [(first, first + 1), (first + 1, first + 2)] + [(first, first + 2)] * (graph % 2)
        edges += [pair for one, other in links for pair in ((one, other), (other, one))]
        owners += [graph + 1] * 3
        labels += [0, 1, graph % 2]
        targets.append(graph % 2)
    for part, lines in {
        "A": [f"{one}, {other}" for one, other in edges],
        "graph_indicator": owners,
        "graph_labels": targets,
        "node_labels": labels,
    }.items():
        (place / f"PROTEINS_{part}.txt").write_text("".join(f"{line}\n" for line in lines))
    return place
