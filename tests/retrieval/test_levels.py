from __future__ import annotations

import numpy as np
import pytest

from retrieval.levels import packed, read_levels, sort_levels, write_levels
from retrieval.passages import Passages
from tests.retrieval.stores import contexts, documents, windows


@pytest.mark.parametrize("make", [documents, windows])
@pytest.mark.parametrize("depth", [1, 4, 13])
def test_entries_stand_in_the_order_of_their_contexts(make, depth):
    passages = make(1)
    passages = Passages(passages.tokens, passages.offsets, passages.documents, vocab_size=40_000)
    levels, order, moved = sort_levels(passages, depth)
    assert levels[-1].width >= depth
    width = min(levels[-1].width, 2 * depth + 1)  # what no query asks for need not be told apart
    backwards = {p: context[::-1][:width] for p, context, _ in contexts(passages)}
    assert order.tolist() == sorted(backwards, key=lambda p: (backwards[p], p))
    assert moved > 0
    for level in levels:
        cut = [backwards[p][: level.width] for p in order.tolist()]
        distinct = [i for i in range(len(cut)) if not i or cut[i] != cut[i - 1]]
        assert level.first.tolist() == [0, *distinct, len(cut)]
        assert len(level.keys) == len(distinct) + 1
        assert (np.diff(level.keys) > 0).all()


def test_levels_come_back_as_they_were(tmp_path):
    levels, _, _ = sort_levels(windows(2), 50)
    assert len(levels) > 1
    again = read_levels(tmp_path, write_levels(tmp_path, levels))
    for one, other in zip(levels, again, strict=True):
        assert one.width == other.width
        for name in ("keys", "first", "children"):
            array, same = getattr(one, name), getattr(other, name)
            assert np.array_equal(array, same) if array is not None else same is None
            assert array is None or array.dtype == same.dtype


@pytest.mark.parametrize("vocab_size", [1, 2, 256, 4096, 65_536, 2**31 - 1, 2**40])
def test_packed_tokens_fit_63_bits(vocab_size):
    base, unit = packed(vocab_size)
    assert unit >= 1
    assert base**unit + base < 2**63 or unit == 1
