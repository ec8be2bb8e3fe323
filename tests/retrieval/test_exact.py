from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.exact import exact_search


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_against_a_loop(metric):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(
        -2, 3, (5, 3), generator=generator
    ).float()  # small integers: exact, with many ties
    keys = torch.randint(-2, 3, (40, 3), generator=generator).float()
    allowed = torch.rand(5, 40, generator=generator) < 0.5
    found = exact_search(queries, keys, 6, metric=metric, allowed=allowed)
    for i in range(5):
        scored = []
        for j in np.flatnonzero(allowed[i].numpy()):
            q, x = queries[i], keys[j]
            scored.append((-float(q @ x) if metric == "ip" else float(((q - x) ** 2).sum()), int(j)))
        assert [(-s, j) for s, j in sorted(scored)[:6]] == list(
            zip(found.scores[i].tolist(), found.ids[i].tolist(), strict=True)
        )
    assert found.flops == (2 if metric == "ip" else 3) * 5 * 40 * 3


def test_fewer_keys_than_asked_for_nan_and_no_keys():
    keys = torch.eye(3)
    keys[1, 1] = torch.nan
    found = exact_search(torch.eye(3)[:1], keys, 5)
    assert found.mask.tolist() == [[True, False, False, False, False]] or found.ids[0, 0] == 0
    assert not exact_search(torch.full((2, 3), torch.nan), torch.eye(3), 2).mask.any()
    assert not exact_search(torch.eye(3), torch.zeros(0, 3), 2).mask.any()
