"""Where the files of a set are, and how a set is read with one of its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch_geometric.data import Data

from experiments.data.csl import csl_graphs
from experiments.data.graph_files import GraphFileError
from experiments.data.heterophilous import read_heterophilous
from experiments.data.planetoid import read_planetoid
from experiments.data.tu import read_tu
from experiments.graphs.recipes import SETS, GraphSet
from gnn.splits import Split, fold_split

__all__ = ["Source", "find", "missing_files"]

# As somebody puts a file there, as an archive unpacks, and as PyG's data sets lay out what they download.
_PLACES = ("", "*/", "*/raw/", "*/*/raw/")


@dataclass(frozen=True)
class Source:
    """The files of a set, found.

    Args:
        name: Of the set.
        path: What its reader takes; ``None`` for what is generated.
        files: All that is read, for the fingerprint.
    """

    name: str
    path: Path | None
    files: tuple[Path, ...]

    @property
    def about(self) -> GraphSet:
        """The set."""
        return SETS[self.name]

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over what the files hold."""
        digest = hashlib.sha256(self.name.encode())
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:12]

    def nodes(self, seed: int) -> Data:
        """The graph of a set of nodes, with the split of this seed and its masks."""
        assert self.path is not None
        if self.about.kind == "planetoid":
            return read_planetoid(self.path)
        return read_heterophilous(self.path, seed % self.about.folds)

    def graphs(self, seed: int) -> tuple[list[Data], Split]:
        """The graphs of a set of graphs, and the split of this seed: one fold is tested, the next one chooses.

        Raises:
            GraphFileError: If graphs have no features.
        """
        about = self.about
        if self.path is None:
            graphs: Sequence[Data] = csl_graphs()
        else:
            graphs = read_tu(self.path, about.file)
            if graphs[0].x is None:
                raise GraphFileError(f"{self.path}: the graphs of {about.file} have no features")
        y = torch.cat([graph["y"] for graph in graphs])
        return list(graphs), fold_split(y, seed % about.folds, about.folds)


def find(name: str, folder: Path | None, *, pickles: bool = False) -> Source | None:
    """The files of a set in a folder or two levels below it; ``None`` if they are not there.

    Args:
        name: Of the set.
        folder: Where to look.
        pickles: Whether files that run code when they are read will do.
    """
    about = SETS[name]
    if about.kind == "csl":
        return Source(name, None, ())
    if folder is None:
        return None
    if about.kind == "tu":
        needed = tuple(f"{about.file}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels"))
        for path in _matching(folder, needed[0]):
            if all((path.parent / one).is_file() for one in needed):
                return Source(name, path.parent, tuple(path.parent / one for one in needed))
        return None
    for path in _matching(folder, about.file):
        return Source(name, path, (path,))
    if about.kind == "planetoid" and pickles:
        stem = about.file.removesuffix(".npz")
        for path in _matching(folder, f"ind.{stem}.allx"):
            return Source(name, path.with_suffix(""), tuple(sorted(path.parent.glob(f"ind.{stem}.*"))))
    return None


def missing_files(name: str, folder: Path | None) -> str:
    """What is wanted and where it comes from, for an error."""
    about = SETS[name]
    wanted = f"{about.file}_A.txt and its companions" if about.kind == "tu" else about.file
    where = "no --data DIR is given" if folder is None else f"{folder} and the folders in it have none"
    return f"{name} needs {wanted}, and {where}: {about.obtain}"


def _matching(folder: Path, file: str) -> list[Path]:
    return [path for place in _PLACES for path in sorted(folder.glob(f"{place}{file}")) if path.is_file()]
