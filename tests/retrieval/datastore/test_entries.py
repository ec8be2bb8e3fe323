from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.datastore import Datastore
from retrieval.datastore.entries import Entries
from retrieval.snapshot import SnapshotError


def keys(n=4, d=3):
    return torch.ones(n, d)


def changed(array, row, value):
    array = array.clone()
    array[row] = value
    return array


IDS = torch.arange(4)
WRONG = {
    "nan": ((changed(keys(), 2, torch.nan), IDS), "key of row 12 is not finite"),
    "infinite": ((changed(keys(), 1, -torch.inf), IDS), "key of row 11 is not finite"),
    "too large for 16 bits": (
        (changed(keys(), 3, 7e4), IDS),
        r"row 13 does not fit float16 .* dtype='float32'",
    ),
    "value nan": ((keys(), changed(torch.ones(4, 2), 0, torch.nan)), "value of row 10 is not finite"),
    "token too large": ((keys(), changed(IDS, 3, 2**31)), "value of row 13 does not fit int32"),
    "negative document": ((keys(), IDS, changed(IDS, 1, -1)), "document of row 11 is negative"),
    "other d": ((keys(4, 5), IDS), "row 10 has keys of 5 dimensions .* the rows before it keys of 3"),
    "other values": ((keys(), torch.ones(4, 2)), "values of 2 dimensions, the rows before it .* token ids"),
    "lengths": ((keys(), IDS[:3]), "columns of different lengths"),
    "no floats": ((torch.ones(4, 3, dtype=torch.int64), IDS), r"keys must be floats \[n, d\]"),
    "one axis": ((torch.ones(4), IDS), r"keys must be floats \[n, d\]"),
    "tokens as floats": ((keys(), torch.ones(4)), r"values must be token ids \[n\] or floats"),
    "documents as floats": ((keys(), IDS, torch.ones(4)), r"documents must be integers"),
    "no tuple": (keys(), "a batch is Entries"),
    "one column": ((keys(),), "a batch is Entries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_named_and_nothing_is_stored(tmp_path, name):
    batch, message = WRONG[name]
    good = (torch.ones(10, 3), torch.arange(10))
    with pytest.raises(ValueError, match=message):
        Datastore.build(tmp_path / "new", [good, batch])
    with pytest.raises(SnapshotError, match="build it first"):
        Datastore.open(tmp_path / "new")
    store = Datastore.build(tmp_path / "store", [good])
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message.replace("before it", ".*")):
        store.append([good, batch])
    assert len(store) == len(Datastore.open(store.path)) == 10
    assert sorted(tmp_path.rglob("*")) == files


def test_nothing_to_store_is_an_error(tmp_path):
    for batches in ([], [(torch.ones(0, 3), torch.arange(0))]):
        with pytest.raises(
            ValueError, match=r"there are no entries to build .* from: give at least one batch"
        ):
            Datastore.build(tmp_path / "store", batches)
    store = Datastore.build(tmp_path / "store", [(torch.ones(0, 3), torch.arange(0)), (keys(), IDS)])
    with pytest.raises(ValueError, match="no entries to append"):
        store.append([])
    assert len(store) == 4


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, np.float32])
def test_keys_of_any_float_and_integers_of_any_width(tmp_path, kind):
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    given = rows.numpy() if kind is np.float32 else rows.to(kind)
    values = np.arange(6, dtype=np.uint16)
    store = Datastore.build(tmp_path / "store", [Entries(given, values)], dtype="float32")
    expected = rows if kind is np.float32 else rows.to(kind).float()
    assert torch.equal(store.keys(torch.arange(6)), expected)
    assert store.values(torch.arange(6)).dtype == torch.int32
    assert store.documents(torch.arange(6)).tolist() == store.positions(torch.arange(6)).tolist() == [0] * 6


def test_values_may_be_vectors(tmp_path):
    values = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    store = Datastore.build(tmp_path / "store", [(torch.eye(6), values)])
    found = store.search(torch.eye(6).view(2, 3, 6), 2)
    assert torch.equal(store.values(found)[..., 0, :], values.view(2, 3, 2))
    store.append([(torch.eye(6), 2 * values)])
    store.compact()
    assert torch.equal(store.values(torch.arange(12)), torch.cat([values, 2 * values]))
