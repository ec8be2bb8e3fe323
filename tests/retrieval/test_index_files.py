"""An index on the disk: it comes back as it was, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retrieval import Index, SnapshotError
from tests.retrieval.test_index import COARSE, CODED, EXACT, vectors


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("factory", [*EXACT, *CODED, *COARSE])
def test_it_comes_back_as_it_was(tmp_path, factory, mmap):
    index = Index(factory, "l2", nprobe=3, ef=40).add(vectors(1000))
    index.save(tmp_path / "index")
    again = Index.open(tmp_path / "index", mmap=mmap)
    queries = vectors(40, seed=1)
    found, before = again.search(queries, 6), index.search(queries, 6)
    assert torch.equal(found.ids, before.ids)
    assert torch.equal(found.scores, before.scores)
    assert found.work == before.work
    assert (again.factory, again.metric, again.nprobe, again.ef, len(again)) == (factory, "l2", 3, 40, 1000)
    assert (again.work, again.seconds) == (index.work, index.seconds)
    if mmap:
        with pytest.raises(ValueError, match="mmap=False"):
            again.add(vectors(3))
    else:
        assert torch.equal(
            again.add(vectors(3, seed=9)).search(queries, 6).ids,
            index.add(vectors(3, seed=9)).search(queries, 6).ids,
        )


def test_what_is_damaged_or_foreign_is_refused(tmp_path):
    path = tmp_path / "index"
    with pytest.raises(ValueError, match="nothing to save"):
        Index("Flat").save(path)
    with pytest.raises(SnapshotError, match="there is no index at"):
        Index.open(path)
    Index("IVF4,Flat").add(vectors(300)).save(path)
    file = path / "index.faiss"
    whole = file.read_bytes()
    for damaged, why in (
        (whole[:-7], "bytes, not"),
        (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "checksum"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=why):
            Index.open(path)
    file.write_bytes(whole)
    assert len(Index.open(path)) == 300
    file.unlink()
    with pytest.raises(SnapshotError, match="missing"):
        Index.open(path)


def test_an_index_of_another_faiss_is_named(tmp_path, monkeypatch):
    """A file that is whole but that this FAISS does not know."""
    path = tmp_path / "index"
    Index("Flat").add(vectors(10)).save(path)

    def unknown(_: object) -> None:
        raise RuntimeError("type not recognized")

    monkeypatch.setattr("retrieval.index.refuse_unpriced", unknown)
    with pytest.raises(
        SnapshotError, match=r"cannot be read by FAISS .* build the index again \(type not recognized\)"
    ):
        Index.open(path)


def test_saving_again_replaces_and_a_failure_keeps_the_old_one(tmp_path):
    path = tmp_path / "index"
    Index("Flat").add(vectors(10)).save(path)
    Index("Flat").add(vectors(20)).save(path)
    assert len(Index.open(path)) == 20
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["about"]["vectors"] == 20
    assert manifest["about"]["faiss"]
    assert [file.name for file in Path(tmp_path).iterdir()] == ["index"]
