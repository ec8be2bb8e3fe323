"""What a trained model is worth: losses, probes, and the rows derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        n_bytes: Bytes of text the targets stand for.
    """

    nll: np.ndarray
    n_bytes: int

    def summary(self) -> dict[str, float]:
        """Nats per token and bits per byte."""
        total = float(self.nll.sum(dtype=np.float64))
        return {
            "nats_per_token": total / max(1, len(self.nll)),
            "bits_per_byte": total / math.log(2) / max(1, self.n_bytes),
        }


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
    n_bytes = 0
    for batch in evaluation.batches():
        neighbors = batch.get("neighbors")
        if forget and neighbors is not None:
            neighbors = Neighbors.none(*neighbors.scores.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nll = network.loss(batch["tokens"], batch["targets"], batch["documents"], neighbors)
        scored = batch["targets"] >= 0
        losses.append(nll[scored].float())
        n_bytes += int(evaluation.token_bytes[batch["targets"][scored].numpy()].sum())
    return Scored(torch.cat(losses).numpy(), n_bytes)


@contextmanager
def without_memory(network: Transformer) -> Iterator[None]:
    """The same weights with every memory slot empty."""
    kept, network.memory = network.memory, nn.ModuleDict()
    try:
        yield
    finally:
        network.memory = kept


def read_bill(network: Transformer, batch: dict[str, Any], *, autocast: bool = True) -> Ledger:
    """The bill of the distributions over the next token, as at inference; searching not included."""
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.no_grad(), Ledger(network) as ledger, mixed:
        network(batch["tokens"], batch["documents"], batch.get("neighbors"))
    return ledger
