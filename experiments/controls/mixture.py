"""A network's probabilities interpolated with those of counts, weighted by what other text shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

STEPS = 150  # enough to come within a hundredth of a weight at the edge, 0 or 1
PRIOR = 20.0  # tokens' worth of the overall weight given to each bucket, so that a rare one is not overfitted


def mixing_price(vocab_size: int) -> tuple[int, int]:
    """FLOPs and bytes of mixing two whole distributions: scale one, scale the other, add.

    A network that is to be mixed gives probabilities where it would give their logarithms, at the same price.

    Args:
        vocab_size: Tokens the distributions are over; every number is read and written at 4 bytes.
    """
    return 3 * vocab_size, 4 * (2 + 2 + 3) * vocab_size


@dataclass(frozen=True)
class Mixture:
    r"""Counts' weight in each bucket: :math:`p = \lambda_b\, p_{counts} + (1 - \lambda_b)\, p_{network}`.

    Args:
        weights: :math:`\lambda_b` of each bucket.
        fitted_on: name of the split they were fitted on; the mixture refuses to be reported there.
    """

    weights: Float[np.ndarray, " bucket"]
    fitted_on: str

    @classmethod
    def fit(
        cls,
        network: Float[np.ndarray, "*shape"],
        counts: Float[np.ndarray, "*shape"],
        bucket: Int[np.ndarray, "*shape"],
        n_buckets: int,
        *,
        split: str,
        scored: Bool[np.ndarray, "*shape"] | None = None,
    ) -> "Mixture":
        """The weights under which the targets of a split are most likely, by expectation maximisation.

        Args:
            network: log-probability the network gives each target.
            counts: probability the counts give it.
            bucket: bucket of each position.
            n_buckets: how many there are.
            split: name of the split the positions are of.
            scored: which positions have a target; all by default.
        """
        chosen = np.ones(np.shape(network), dtype=bool) if scored is None else np.asarray(scored, dtype=bool)
        ratio = _ratio(np.asarray(network)[chosen], np.asarray(counts)[chosen])
        where = np.asarray(bucket)[chosen]
        overall = np.array([0.5])
        for _ in range(STEPS):
            overall = np.array([_share(overall[0], ratio).mean()]) if ratio.size else overall
        weights = np.full(n_buckets, overall[0])
        size = np.bincount(where, minlength=n_buckets)
        for _ in range(STEPS):
            shares = np.bincount(where, weights=_share(weights[where], ratio), minlength=n_buckets)
            weights = (shares + PRIOR * overall[0]) / (size + PRIOR)
        return cls(weights, split)

    def nats(
        self,
        network: Float[np.ndarray, "*shape"],
        counts: Float[np.ndarray, "*shape"],
        bucket: Int[np.ndarray, "*shape"],
        *,
        split: str,
    ) -> Float[np.ndarray, "*shape"]:
        """The negative log-probability of each target under the mixture.

        Raises:
            ValueError: the split is the one the weights were fitted on.
        """
        if split == self.fitted_on:
            raise ValueError(
                f"the weights were fitted on {split!r}; report another split, or use cross_fitted_nats there"
            )
        weights = self.weights[bucket]
        with np.errstate(divide="ignore"):
            return -np.logaddexp(np.log1p(-weights) + network, np.log(weights) + np.log(counts))


def cross_fitted_nats(
    network: Float[np.ndarray, "n time"],
    counts: Float[np.ndarray, "n time"],
    bucket: Int[np.ndarray, "n time"],
    n_buckets: int,
    *,
    scored: Bool[np.ndarray, "n time"] | None = None,
) -> Float[np.ndarray, "n time"]:
    """The mixture's loss on the split it is fitted on: every other row takes its weights from the rest.

    For the validation loss, where the weights would otherwise have seen the targets they are scored on.
    """
    chosen = np.ones(np.shape(network), dtype=bool) if scored is None else np.asarray(scored, dtype=bool)
    result = np.empty(np.shape(network))
    odd = np.arange(len(network)) % 2 == 1
    for half in (odd, ~odd):
        mixture = Mixture.fit(
            network[~half], counts[~half], bucket[~half], n_buckets, split="other half", scored=chosen[~half]
        )
        result[half] = mixture.nats(network[half], counts[half], bucket[half], split="this half")
    return result


def _ratio(network: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts' probability over the network's, kept inside what floats hold."""
    return np.exp(np.clip(np.log(counts) - network, -60.0, 60.0))


def _share(weight: np.ndarray | float, ratio: np.ndarray) -> np.ndarray:
    """The probability that a target came from the counts."""
    return weight * ratio / (weight * ratio + (1.0 - weight))
