from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.ordering import in_order, unpacked, words

SCORES = st.floats(width=32, allow_nan=False).map(lambda x: x + 0.0)
HITS = st.lists(st.tuples(SCORES, st.integers(-1, 2**31)), min_size=1, max_size=12)


@given(st.lists(HITS, min_size=1, max_size=4))
def test_in_order_is_sorting_pairs(rows):
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    scores = np.array([[hit[0] for hit in row] for row in rows], np.float32)
    ids = np.array([[hit[1] for hit in row] for row in rows], np.int64)
    expected = [sorted((id_ < 0, -score if id_ >= 0 else 0, id_) for score, id_ in row) for row in rows]
    found, names = in_order(scores, ids)
    for row, (a, b) in zip(expected, zip(found, names, strict=True), strict=True):
        assert [id_ for _, _, id_ in row] == b.tolist()
        assert [-score for gone, score, _ in row if not gone] == a[b >= 0].tolist()


def test_words_keep_every_bit():
    scores = np.array([3.4e38, 1.5, 1e-45, 0.0, -1e-45, -1.5, -np.inf], np.float32)
    ids = np.array([0, 2**32 - 1, 5, 7, 7, 1, 3], np.int64)
    packed = words(scores, ids)
    assert (np.diff(packed) > 0).all()
    back = unpacked(packed)
    assert np.array_equal(back[0], scores)
    assert np.array_equal(back[1], ids)
