"""What a trained model is worth: losses, probes, and the rows derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data import Corpus, Split, Windows, evaluation_rows
from experiments.ledger import Ledger
from experiments.neighborhood import Neighborhood
from mann import Transformer
from retrieval import Neighbors

BATCH = 16


@dataclass(frozen=True)
class Scored:
    """Loss of every scored target of a split.

    Args:
        nll: Nats, one per target.
        target_bytes: Bytes of text each target stands for.
        documents: Place in the split of the document each target belongs to.
        n_documents: Documents of the split.
    """

    nll: np.ndarray
    target_bytes: np.ndarray
    documents: np.ndarray
    n_documents: int

    @property
    def n_bytes(self) -> int:
        """Bytes of text all targets stand for."""
        return int(self.target_bytes.sum())

    def summary(self) -> dict[str, float]:
        """Nats per token and bits per byte."""
        total = float(self.nll.sum(dtype=np.float64))
        return {
            "nats_per_token": total / max(1, len(self.nll)),
            "bits_per_byte": total / math.log(2) / max(1, self.n_bytes),
        }

    def by_document(self) -> dict[str, list[Any]]:
        """Summed nats and bytes of each document, in the order of the split.

        A window may hold parts of several documents and a document may lie in several windows; what evaluation does not
        reach is 0 in both lists. Nats are rounded to a ten-thousandth.
        """
        places, weights = self.documents, self.nll.astype(np.float64)
        nats = np.bincount(places, weights=weights, minlength=self.n_documents)
        sizes = np.bincount(places, weights=self.target_bytes, minlength=self.n_documents)
        return {"nats": nats.round(4).tolist(), "bytes": sizes.astype(np.int64).tolist()}


def losses_of(scored: Mapping[str, Scored]) -> dict[str, dict[str, Any]]:
    """The losses of a row: each split in sum, and test, on which arms are compared, document by document."""
    losses: dict[str, dict[str, Any]] = {name: dict(split.summary()) for name, split in scored.items()}
    if "test" in scored:
        losses["test"]["documents"] = scored["test"].by_document()
    return losses


@dataclass(frozen=True)
class Evaluation:
    """Held-out windows of one split, with their neighbours where the arm reads a store.

    Args:
        windows: The split in windows.
        chosen: Which of them.
        neighbors: Their neighbours, row by row.
        token_bytes: Bytes per token.
    """

    windows: Windows
    chosen: np.ndarray
    neighbors: Neighborhood | None
    token_bytes: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, split: Split, length: int, n_tokens: int) -> Evaluation:
        """The windows everybody is evaluated on."""
        chosen = evaluation_rows(split, length, n_tokens)
        return cls(Windows(split, length), chosen, None, corpus.token_bytes)

    def batches(self) -> Iterator[dict[str, Any]]:
        """Batches in order."""
        for start in range(0, len(self.chosen), BATCH):
            batch: dict[str, Any] = self.windows.batch(self.chosen[start : start + BATCH])
            if self.neighbors is not None:
                batch["neighbors"] = self.neighbors.rows(
                    torch.arange(start, min(start + BATCH, len(self.chosen)))
                )
            yield batch


@torch.no_grad()
def evaluate(
    network: Transformer, evaluation: Evaluation, *, forget: bool = False, autocast: bool = True
) -> Scored:
    """Score every target of the evaluation windows.

    Args:
        network: The trained model.
        evaluation: What to score.
        forget: Give an arm with a store no neighbours at all.
        autocast: Compute in bfloat16 as in training.
    """
    network.eval()
    losses: list[Tensor] = []
    targets: list[Tensor] = []
    documents: list[Tensor] = []
    for batch in evaluation.batches():
        neighbors = batch.get("neighbors")
        if forget and neighbors is not None:
            neighbors = Neighbors.none(*neighbors.scores.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nll = network.loss(batch["tokens"], batch["targets"], batch["documents"], neighbors)
        scored = batch["targets"] >= 0
        losses.append(nll[scored].float())
        targets.append(batch["targets"][scored])
        documents.append(batch["documents"][scored])
    return Scored(
        torch.cat(losses).numpy(),
        evaluation.token_bytes[torch.cat(targets).numpy()],
        torch.cat(documents).numpy(),
        evaluation.windows.split.n_documents,
    )


def read_bill(network: Transformer, batch: dict[str, Any], *, autocast: bool = True) -> Ledger:
    """The bill of the distributions over the next token, as at inference; searching not included."""
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.no_grad(), Ledger(network) as ledger, mixed:
        network(batch["tokens"], batch["documents"], batch.get("neighbors"))
    return ledger
