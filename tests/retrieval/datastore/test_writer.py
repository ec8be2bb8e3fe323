from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from retrieval.datastore.entries import Layout
from retrieval.datastore.segment import Segment
from retrieval.datastore.writer import SegmentWriter, segment_rows

LAYOUT = Layout(2, "float16", 0)


def columns(ids):
    keys = np.stack([ids, -ids], axis=1).astype(np.float16)
    return {"keys": keys, "values": ids.astype(np.int32), "documents": ids * 2, "positions": ids * 3}


def written(folder, pieces, rows):
    with SegmentWriter(folder, 7, rows, LAYOUT, {}) as writer:
        for ids in pieces:
            writer.add(columns(ids), ids)
    return [Segment(folder / name) for name in writer.names]


@pytest.mark.parametrize("rows", [1, 4, 5, 100])
def test_pieces_of_any_size_become_segments_of_at_most_so_many_rows(tmp_path, rows):
    ids = np.concatenate([np.arange(3, 14), [20, 22, 23]])
    segments = written(tmp_path, np.split(ids, [1, 1, 9]), rows)
    assert [segment.name for segment in segments] == [f"seg-{i:06d}" for i in range(7, 7 + len(segments))]
    assert [len(segment) for segment in segments[:-1]] == [rows] * (len(segments) - 1)
    found = np.concatenate([segment.ids(np.arange(len(segment))) for segment in segments])
    assert found.tolist() == ids.tolist()
    for segment in segments:
        own = segment.ids(np.arange(len(segment)))
        for name, column in columns(own).items():
            assert segment.take(name, np.arange(len(segment))).numpy().tolist() == column.tolist()
        assert segment.places(own).tolist() == list(range(len(segment)))
        assert segment.last_id == own[-1]
        others = np.setdiff1d(np.arange(-2, 30), own)
        assert (segment.places(others) == -1).all()
        dense = own[-1] - own[0] + 1 == len(own)
        assert (segment.path / "ids.npy").exists() != dense, "ids without a gap need no file"


def test_an_error_leaves_no_half_written_segment(tmp_path):
    def pieces():
        yield np.arange(7)
        raise KeyError("from the caller's data")

    with pytest.raises(KeyError, match="caller"):
        written(tmp_path, pieces(), 5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["seg-000007"], (
        "the complete one is swept by the store"
    )


def test_rows_of_a_segment_follow_from_the_memory():
    assert segment_rows(4 << 30, Layout(256, "float16", 0)) > 5e5
    assert segment_rows(1 << 30, LAYOUT) < segment_rows(2 << 30, LAYOUT)
    with pytest.raises(ValueError, match=r"is too little: give ([0-9,]+) or more") as caught:
        segment_rows(1000, LAYOUT)
    enough = int(str(caught.value).split("give ")[1].split()[0].replace(",", ""))
    assert segment_rows(enough, LAYOUT) == 1024


MEMORY = """
import resource, sys, torch
from retrieval.datastore import Datastore
torch.set_num_threads(1)
n, d, ceiling = 200_000, 128, 48 << 20
piece = torch.randn(2000, d)
Datastore.build(sys.argv[1] + "/small", [(piece, torch.arange(2000))], factory=sys.argv[2], dtype="float32").close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = ((piece, torch.arange(2000)) for _ in range(n // 2000))
store = Datastore.build(sys.argv[1] + "/store", batches, dtype="float32", factory=sys.argv[2], memory_bytes=ceiling)
store.delete([0, n - 1])
store.compact()
store.merge([store])
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert len(store) == 2 * n - 4, len(store)
print(store.info()["bytes"], ceiling, growth)
"""


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_memory_while_writing_stays_below_the_ceiling(tmp_path, factory):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), factory], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    stored, ceiling, growth = map(int, run.stdout.split())
    assert growth < ceiling < stored / 4
