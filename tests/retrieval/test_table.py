from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from retrieval import ContextSource, NeighborTable, SnapshotError, SuffixSource
from retrieval.snapshot import writing_snapshot
from tests.retrieval.crashes import killed_before_step, small_disk, with_files_of_at_most
from tests.retrieval.stores import documents, queries


def batches(passages, sizes=(3, 1, 4)):
    return [tuple(queries(i, passages, batch=n)[name] for name in ("tokens", "documents", "exclude"))
            for i, n in enumerate(sizes)]  # fmt: skip


@pytest.mark.parametrize("make", [SuffixSource, ContextSource])
def test_rows_are_what_the_source_says(tmp_path, make):
    passages = documents(1, n=2, longest=6)
    source = make(passages)
    done: list[int] = []
    table = NeighborTable.build(tmp_path / "t", source, batches(passages), 4, progress=done.append)
    assert done == [3, 4, 8]
    assert len(table) == 8
    assert (table.k, table.time, table.source) == (4, 14, source.fingerprint)
    assert table.seconds > 0
    found = [source.search(t, 4, documents=d, exclude=e) for t, d, e in batches(passages)]
    index = torch.tensor([6, 0, 3])
    read = table.rows(index)
    assert torch.equal(read.ids, torch.cat([f.ids for f in found])[index])
    assert torch.equal(read.mask, torch.cat([f.mask for f in found])[index])
    assert not read.mask.all()
    assert torch.allclose(read.scores, torch.cat([f.scores for f in found])[index], atol=1e-3)
    for name, amount in table.work.items():
        assert amount.sum() == sum(f.work[name] for f in found)
        assert amount[:3].sum() == found[0].work[name]
    assert read.work == {name: amount[index].sum() for name, amount in table.work.items()}
    assert set(read.work) == set(found[0].work)


def test_tables_are_maps_of_plain_arrays(tmp_path):
    passages = documents(2)
    NeighborTable.build(tmp_path / "t", SuffixSource(passages), batches(passages, (5,)), 3)
    ids = np.load(tmp_path / "t" / "ids.npy", mmap_mode="r")
    assert (ids.dtype, ids.shape) == (np.int32, (5, 14, 3))
    assert np.load(tmp_path / "t" / "scores.npy").dtype == np.float16


def test_a_table_of_another_source_is_refused(tmp_path):
    passages = documents(3)
    source = SuffixSource(passages)
    NeighborTable.build(tmp_path / "t", source, batches(passages), 3)
    NeighborTable.open(tmp_path / "t", source=source.fingerprint)
    with pytest.raises(SnapshotError, match="another source"):
        NeighborTable.open(tmp_path / "t", source=SuffixSource(documents(4)).fingerprint)


FILES = ("ids.npy", "manifest.json", "scores.npy", "work.npy")


def built(path, seed=3):
    passages = documents(seed)
    return NeighborTable.build(path, SuffixSource(passages), batches(passages), 3)


def same(one, other):
    index = torch.arange(8)
    return len(one) == len(other) == 8 and torch.equal(one.rows(index).ids, other.rows(index).ids)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_refused(tmp_path, name):
    built(tmp_path / "t")
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == list(FILES)
    file = tmp_path / "t" / name
    good = file.read_bytes()
    for place in np.unique(np.linspace(0, len(good) - 1, 60).astype(int)).tolist():
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bad)
        with pytest.raises(SnapshotError, match=r"damaged|foreign|missing|holds no|is a .*, not a|format"):
            NeighborTable.open(tmp_path / "t")
    file.write_bytes(good)
    NeighborTable.open(tmp_path / "t")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_refused(tmp_path, name, verify):
    built(tmp_path / "t")
    file = tmp_path / "t" / name
    good = file.read_bytes()
    for content in (b"", good[: len(good) // 2], good[:-1]):
        file.write_bytes(content)
        with pytest.raises(SnapshotError, match=r"bytes, not|damaged or foreign"):
            NeighborTable.open(tmp_path / "t", verify=verify)
    file.unlink()
    with pytest.raises(SnapshotError, match=r"missing|holds no"):
        NeighborTable.open(tmp_path / "t", verify=verify)


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match="there is no neighbor table"):
        NeighborTable.open(tmp_path / "t")
    (tmp_path / "t").mkdir()
    with pytest.raises(SnapshotError, match="holds no neighbor table"):
        NeighborTable.open(tmp_path / "t")
    SuffixSource(documents(3)).save(tmp_path / "s")
    with pytest.raises(SnapshotError, match="is a suffix source, not a neighbor table"):
        NeighborTable.open(tmp_path / "s")
    for version, message in ((99, "format 99 .* update mnemograph"), (2, "build it again")):
        with writing_snapshot(tmp_path / "new", "neighbor table", version, {}):
            pass
        with pytest.raises(SnapshotError, match=message):
            NeighborTable.open(tmp_path / "new")


def test_files_of_different_tables_are_refused(tmp_path):
    built(tmp_path / "t")
    about = json.loads((tmp_path / "t" / "manifest.json").read_text())["about"]
    for wrong in ({"k": 4}, {"time": 13}, {"work": ["flops"]}):
        with writing_snapshot(tmp_path / "w", "neighbor table", 2, about | wrong) as folder:
            for name in ("ids", "scores", "work"):
                (folder / f"{name}.npy").write_bytes((tmp_path / "t" / f"{name}.npy").read_bytes())
        with pytest.raises(SnapshotError, match="different tables"):
            NeighborTable.open(tmp_path / "w")
    with writing_snapshot(tmp_path / "w", "neighbor table", 2, {**about, "work": None}) as folder:
        for name in ("ids", "scores", "work"):
            np.save(folder / f"{name}.npy", np.zeros(3))
    with pytest.raises(SnapshotError, match="build it again"):
        NeighborTable.open(tmp_path / "w")


def test_a_killed_build_leaves_the_table_that_was_there(tmp_path):
    old = built(tmp_path / "t")
    passages = documents(4)
    source = SuffixSource(passages)

    def build():
        NeighborTable.build(tmp_path / "t", source, batches(passages), 3)

    steps, kept = 0, 0
    new = NeighborTable.build(tmp_path / "new", source, batches(passages), 3)
    while killed_before_step(steps, build):
        found = NeighborTable.open(tmp_path / "t")
        kept += same(found, old)
        assert same(found, old) or same(found, new)
        steps += 1
        if same(found, new):
            old = built(tmp_path / "t")
    assert steps > 10
    assert kept > 5
    assert same(NeighborTable.open(tmp_path / "t"), new)
    built(tmp_path / "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "t"]


def test_a_full_disk_leaves_the_table_that_was_there(tmp_path):
    passages = documents(4)
    source = SuffixSource(passages)
    large = [tuple(queries(i, passages, batch=200)[name] for name in ("tokens", "documents", "exclude"))
             for i in range(4)]  # fmt: skip
    with small_disk(tmp_path / "disk", 128) as disk:
        old = built(disk / "t")
        with pytest.raises(OSError, match="space"):
            NeighborTable.build(disk / "t", source, large, 8)
        assert same(NeighborTable.open(disk / "t"), old)
        assert [path.name for path in disk.iterdir()] == ["t"]


@pytest.mark.parametrize("size_bytes", [100, 1000, 2000, 40_000])
def test_a_file_that_cannot_grow_leaves_the_table_that_was_there(tmp_path, size_bytes):
    old = built(tmp_path / "t")
    passages = documents(4)
    source = SuffixSource(passages)
    batch = [tuple(queries(1, passages, batch=200)[name] for name in ("tokens", "documents", "exclude"))]
    assert (
        with_files_of_at_most(size_bytes, lambda: NeighborTable.build(tmp_path / "t", source, batch, 5)) == 1
    )
    assert same(NeighborTable.open(tmp_path / "t"), old)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    passages = documents(3)
    source = SuffixSource(passages)
    for bad, match in (
        ([], "no rows"),
        ([*batches(passages), (torch.ones(1, 5, dtype=torch.long), None, None)], "14"),
    ):
        with pytest.raises(ValueError, match=match):
            NeighborTable.build(tmp_path / "t", source, bad, 3)
        assert not list(tmp_path.iterdir())


def test_rows_outside_are_an_error(tmp_path):
    passages = documents(3)
    table = NeighborTable.build(tmp_path / "t", SuffixSource(passages), batches(passages), 3)
    for row in (-1, 8):
        with pytest.raises(IndexError, match="table of 8"):
            table.rows(torch.tensor([row]))
