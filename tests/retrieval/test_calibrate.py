from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from retrieval import Index, calibrate
from retrieval.calibrate import Trial, candidates


def clustered(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, d, generator=generator)
    picked = centres[torch.randint(40, (n,), generator=generator)]
    return normalize(picked + 0.3 * torch.randn(n, d, generator=generator), dim=1)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_it_chooses_the_fastest_that_finds_enough(metric):
    keys, queries = clustered(4000), clustered(100, seed=1)
    seen: list[Trial] = []
    found = calibrate(keys, queries, k=10, batch=50, recall=0.95, metric=metric, progress=seen.append)
    assert tuple(seen) == tuple(found.trials)
    assert found.trials[0].factory == "Flat"
    assert found.trials[0].recall == 1
    good = [trial for trial in found.trials if trial.recall >= 0.95]
    assert found.chosen is min(good, key=lambda trial: trial.seconds_per_query)
    assert len({trial.factory for trial in found.trials}) == len(candidates(4000, 16))
    index = found.index().add(keys)
    assert (index.factory, index.nprobe, index.ef) == (
        found.chosen.factory,
        found.chosen.nprobe,
        found.chosen.ef,
    )
    # What it is said to cost is what it costs.
    cost = index.search(queries[:50], 10)
    assert cost.flops / 50 == found.chosen.flops_per_query
    assert "<- chosen" in str(found)
    assert found.why in str(found)
    assert found.chosen.factory in found.why


def test_recall_is_by_score_of_the_vectors_themselves():
    """All keys are one vector: whatever is found is as near as the nearest, by codes too."""
    keys = clustered(1)[:1].expand(3000, -1).contiguous()
    found = calibrate(keys, k=5, batch=8, factories=["SQ4", "Flat"])
    assert [trial.recall for trial in found.trials] == [1, 1]


def test_what_cannot_be_tried_is_named():
    keys = clustered(300)
    found = calibrate(keys, k=400, batch=4, factories=["IVF1000,Flat", "LSH"])
    assert found.chosen.factory == "Flat"
    assert "nothing faster" in found.why
    assert len(found.skipped) == 2
    assert "IVF1000,Flat was not tried" in str(found)
    with pytest.raises(ValueError, match="no keys"):
        calibrate(keys[:0])
    with pytest.raises(ValueError, match="recall"):
        calibrate(keys, recall=90.0)
    for name in ("k", "batch"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            calibrate(keys, **{name: 0})
    with pytest.raises(ValueError, match="no queries"):
        calibrate(keys, keys[:0])
    with pytest.raises(ValueError, match="query 2 has a value that is not finite"):
        calibrate(keys, torch.full((3, 16), 1.0).index_fill(0, torch.tensor(2), torch.nan))


def test_exact_search_finds_everything_where_scores_are_nearly_zero():
    generator = torch.Generator().manual_seed(0)
    for n, k in ((64, 32), (300, 150), (1000, 500)):
        keys = torch.randn(n, 64, generator=generator)
        found = calibrate(keys, k=k, recall=1.0, batch=8)
        assert (found.chosen.factory, found.trials[0].recall) == ("Flat", 1)


@pytest.mark.parametrize(("n", "d"), [(2000, 16), (5000, 30), (100_000, 64), (1_000_000, 257)])
def test_candidates_can_be_made(n, d):
    assert candidates(100, d) == ["Flat"]
    for factory in candidates(n, d):
        assert Index(factory)._made(d) is not None
    assert ("HNSW16" in candidates(n, d)) == (n <= 200_000)
