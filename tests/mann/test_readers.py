import dataclasses

import pytest
import torch

from mann import AttentionReader
from mann.readers import ScoreFeatures
from retrieval import Neighbors
from tests.contracts import VOCAB, opened
from tests.mann.inputs import assert_same, randn


def inputs(k: int = 5):
    generator = torch.Generator().manual_seed(0)
    scores = (9 * torch.rand(2, 7, k, generator=generator)).sort(-1, descending=True).values
    mask = torch.rand(2, 7, k, generator=generator) < 0.7
    found = Neighbors(scores * mask, torch.zeros(2, 7, k, dtype=torch.int64), mask)
    window = torch.randint(0, VOCAB, (2, 7, k, 2), generator=generator)
    return randn(2, 7, 8, dtype=torch.float32), found, window


def reader(**settings):
    torch.manual_seed(0)
    return opened(AttentionReader(8, VOCAB, d_read=6, **settings))


def naive_reader(model, x, found, window):
    """Position by position, only the neighbours there are."""
    rows = []
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        kept = found.mask[b, t]
        answers, scores = window[b, t, kept, 1], found.scores[b, t, kept]
        a, c = model.score.slope
        logits = model.keys(answers) @ model.query(x[b, t]) + a * scores + c * torch.log(1 + scores)
        logits = torch.cat([logits + model.score.rank[: found.k][kept], model.sink[None]])
        rows.append(model.out(logits.softmax(0)[:-1] @ model.values(answers)))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("k", [1, 5, 16])
def test_it_equals_its_formula(k):
    x, found, window = inputs(k)
    model = reader()
    assert_same(
        lambda x, *_: model(x, found, window),
        lambda x, *_: naive_reader(model, x, found, window),
        x,
        *model.parameters(),
        tolerance=1e-4,
    )


def test_masked_neighbors_change_nothing():
    x, found, window = inputs()
    loud = dataclasses.replace(found, scores=found.scores.masked_fill(~found.mask, 1e6))
    other = window.masked_fill(~found.mask[..., None], 3)
    assert torch.equal(reader()(x, loud, other), reader()(x, found, window))


def test_without_neighbors_there_is_no_update_and_a_finite_gradient():
    x, _, window = inputs()
    model = reader()
    update = model(x, Neighbors.none(2, 7, 5), window)
    assert not update.any()
    update.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_it_reads_its_own_position_only():
    x, found, window = inputs()
    update = reader()(x, found, window)
    for t in range(7):
        (grad,) = torch.autograd.grad(update[:, t].sum(), x, retain_graph=True)
        assert not grad[:, :t].any()
        assert not grad[:, t + 1 :].any()


def test_it_reads_the_token_after_the_match():
    x, found, window = inputs()
    before, after = window.clone(), window.clone()
    before[..., 0] = (before[..., 0] + 1) % VOCAB
    after[..., 1] = (after[..., 1] + 1) % VOCAB
    start = reader()(x, found, window)
    assert torch.equal(reader()(x, found, before), start)
    assert not torch.equal(reader()(x, found, after), start)


def test_more_neighbors_than_it_was_built_for_are_named():
    x, found, window = inputs(k=5)
    with pytest.raises(ValueError, match=r"5 neighbours .* at most 3: build it with k=5"):
        reader(k=3)(x, found, window)


def test_score_features_follow_their_formula():
    features = opened(ScoreFeatures(6))
    scores = torch.tensor([[[7.0, 0.5, -2.0, 0.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    a, b = features.slope.tolist()
    expected = a * scores + b * torch.tensor([[8.0, 1.5, 1.0, 1.0]]).log() + features.rank[:4]
    expected[0, 0, 3] = float("-inf")
    torch.testing.assert_close(
        features(Neighbors(scores, torch.zeros(1, 1, 4, dtype=torch.int64), mask)), expected
    )
