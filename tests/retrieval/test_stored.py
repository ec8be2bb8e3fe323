from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import Passages, SnapshotError
from retrieval.stored import StoredPassages, mapped, stored_passages, write_passages
from tests.retrieval.stores import documents, windows


@pytest.mark.parametrize("make", [documents, windows])
def test_passages_come_back_as_they_were(tmp_path, make):
    passages = make(1)
    again = StoredPassages(tmp_path, write_passages(tmp_path, passages))
    assert again.fingerprint == passages.fingerprint
    made = Passages(again.tokens, again.offsets, again.documents, vocab_size=again.vocab_size)
    assert made.fingerprint == passages.fingerprint
    assert (len(again), again.n_entries, repr(again)) == (len(passages), passages.n_entries, repr(passages))
    ids = torch.from_numpy(passages.entries())
    assert torch.equal(again.window(ids, 3, 3), passages.window(ids, 3, 3))
    assert np.array_equal(again.labels, passages.labels)


def test_nothing_is_read_when_they_are_opened(tmp_path):
    about = write_passages(tmp_path, windows(1))
    for array in vars(StoredPassages(tmp_path, about)).values():
        if isinstance(array, np.ndarray):
            assert isinstance(array.base, np.memmap)
            assert not array.flags.writeable


def test_the_callers_passages_must_be_the_same(tmp_path):
    about = write_passages(tmp_path, windows(1))
    mine = windows(1)
    assert stored_passages(tmp_path, about, mine) is mine
    with pytest.raises(SnapshotError, match="other passages"):
        stored_passages(tmp_path, about, windows(2))
    with pytest.raises(SnapshotError, match="holds no passages"):
        stored_passages(tmp_path, {"vocab_size": 6}, mine)


def test_what_is_no_array_is_refused_and_runs_no_code(tmp_path):
    for number, content in enumerate((b"", b"not an array", b"\x93NUMPY\x01\x00")):
        (tmp_path / f"{number}.npy").write_bytes(content)
        with pytest.raises(SnapshotError, match="cannot be read"):
            mapped(tmp_path, str(number))
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(SnapshotError, match="cannot be read"):
        mapped(tmp_path, "objects")
    with pytest.raises(SnapshotError, match="cannot be read"):
        mapped(tmp_path, "missing")
