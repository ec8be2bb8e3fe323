import numpy as np
import pytest

from experiments.controls.mixture import Mixture, cross_fitted_nats, mixing_price


def example(seed: int = 0, n: int = 60, time: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bucket = rng.integers(0, 3, (n, time))
    network = np.log(rng.uniform(0.01, 0.3, (n, time)))
    known = (bucket == 1) & (rng.random((n, time)) < 0.7)
    counts = rng.uniform(0.001, 0.02, (n, time)) + known * rng.uniform(0, 0.9, (n, time))
    return network, counts, bucket


def test_the_weights_are_the_best_there_are() -> None:
    network, counts, bucket = example(n=600)
    mixture = Mixture.fit(network, counts, bucket, 3, split="valid")
    grid = np.linspace(1e-3, 1 - 1e-3, 999)
    for b in range(3):
        p, q = np.exp(network[bucket == b]), counts[bucket == b]
        losses = [-np.log(weight * q + (1 - weight) * p).mean() for weight in grid]
        best = grid[int(np.argmin(losses))]
        assert mixture.weights[b] == pytest.approx(best, abs=0.02)
    assert mixture.weights[1] > 0.5 > max(mixture.weights[0], mixture.weights[2])


def test_losses_are_those_of_the_mixture_and_no_worse_than_the_network() -> None:
    mixture = Mixture.fit(*example(0), 3, split="valid")
    network, counts, bucket = example(1)
    nats = mixture.nats(network, counts, bucket, split="test")
    weights = mixture.weights[bucket]
    np.testing.assert_allclose(nats, -np.log(weights * counts + (1 - weights) * np.exp(network)))
    assert nats.mean() < -network.mean() - 0.05


def test_useless_counts_are_left_out() -> None:
    network, _, bucket = example()
    counts = np.full_like(network, 1e-9)
    mixture = Mixture.fit(network, counts, bucket, 3, split="valid")
    assert mixture.weights.max() < 0.02
    nats = mixture.nats(network, counts, bucket, split="test")
    assert np.abs(nats + network).max() < 0.03


def test_an_empty_bucket_takes_the_overall_weight() -> None:
    network, counts, bucket = example()
    mixture = Mixture.fit(network, counts, bucket, 5, split="valid")
    assert mixture.weights[3] == mixture.weights[4]
    assert mixture.weights[:3].min() < mixture.weights[3] < mixture.weights[:3].max()


def test_unscored_positions_do_not_count() -> None:
    network, counts, bucket = example()
    scored = np.ones_like(bucket, dtype=bool)
    scored[:, ::5] = False
    spoilt = np.where(scored, counts, 1.0)
    ours = Mixture.fit(network, spoilt, bucket, 3, split="valid", scored=scored)
    theirs = Mixture.fit(network[scored], counts[scored], bucket[scored], 3, split="valid")
    np.testing.assert_array_equal(ours.weights, theirs.weights)


def test_mixing_two_distributions_is_two_products_and_a_sum() -> None:
    a, b = np.full((2, 100), 0.01, np.float32)
    with_a, with_b = 0.25 * a, 0.75 * b
    mixed = with_a + with_b
    moved = [a, with_a, b, with_b, with_a, with_b, mixed]
    assert mixing_price(100) == (with_a.size + with_b.size + mixed.size, sum(x.nbytes for x in moved))


def test_never_reported_where_it_was_fitted() -> None:
    mixture = Mixture.fit(*example(), 3, split="valid")
    with pytest.raises(ValueError, match="were fitted on 'valid'; report another split"):
        mixture.nats(*example(), split="valid")


def test_cross_fitting_scores_no_window_with_weights_that_saw_it() -> None:
    network, counts, bucket = example()
    before = cross_fitted_nats(network, counts, bucket, 3)
    assert before.mean() < -network.mean() - 0.05
    changed = counts.copy()
    changed[0] = 1e-9  # window 0 may change the weights of odd windows, never those of even ones
    after = cross_fitted_nats(network, changed, bucket, 3)
    np.testing.assert_array_equal(after[2::2], before[2::2])
    assert (after[1::2] != before[1::2]).all()


def test_extreme_probabilities_stay_finite() -> None:
    network = np.array([[-800.0, -1e-12, -3.0]])
    counts = np.array([[0.5, 1e-300, 0.2]])
    bucket = np.zeros((1, 3), dtype=np.int64)
    mixture = Mixture.fit(network, counts, bucket, 1, split="valid")
    assert np.isfinite(mixture.nats(network, counts, bucket, split="test")).all()
