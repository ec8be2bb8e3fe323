from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import ContextSource, NeighborTable, SnapshotError, SuffixSource
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


def test_a_damaged_table_is_refused(tmp_path):
    passages = documents(3)
    NeighborTable.build(tmp_path / "t", SuffixSource(passages), batches(passages), 3)
    content = bytearray((tmp_path / "t" / "ids.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t" / "ids.npy").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"ids\.npy is damaged"):
        NeighborTable.open(tmp_path / "t")


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
