"""What must run beside a claim: counts without a network, the overlap of the text, the copying probe."""

from experiments.controls.audit import overlap
from experiments.controls.counts import CountModel, CountScores
from experiments.controls.mixture import Mixture, cross_fitted_nats
from experiments.controls.probe import Copying, copying
from experiments.controls.recency import recency

__all__ = [
    "Copying",
    "CountModel",
    "CountScores",
    "Mixture",
    "copying",
    "cross_fitted_nats",
    "overlap",
    "recency",
]
