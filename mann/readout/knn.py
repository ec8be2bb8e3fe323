"""A readout that interpolates with what followed the nearest stored states (kNN-LM)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.norm import sum_dtype
from mann.past import token_masses
from mann.readout.base import IGNORE, Readout, SoftmaxReadout
from mann.sourced import Sourced
from retrieval import Datastore, Neighbors, Source

__all__ = ["KNNReadout"]

NOTHING = float("-inf")
# What the mixture weight starts at, as published for WikiText-103.
WEIGHT = 0.25


@runtime_checkable
class Follower(Protocol):
    """A store that is told the text as well, to search less often; see :class:`mann.readout.automaton.Automaton`."""

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        tokens: Tensor,
        documents: Tensor | None = None,
        exclude: Tensor | None = None,
        visible_at: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Neighbors:
        """As :meth:`retrieval.Datastore.search`, at every position of a batch."""
        ...

    def values(self, ids: Neighbors) -> Tensor:
        """As :meth:`retrieval.Datastore.values`."""
        ...


class KNNReadout(Sourced, Readout):
    r"""Interpolates the vocabulary distribution with one over the answers of the nearest stored entries.

    .. math::
        p(v) = (1 - \lambda)\, \mathrm{softmax}(W x)_v + \lambda \sum_i w_i \, [y_i = v], \qquad
        w = \mathrm{softmax}_i(s_i / T)

    with :math:`s_i` the score of neighbour :math:`i`: minus the squared distance :math:`-\lVert x - k_i \rVert^2` in a
    store by ``"l2"``, always that of the stored key and never of its code. :math:`\lambda = 0` where there is no
    neighbour. A :class:`retrieval.Datastore` is searched with the state :math:`x` itself, and nothing is learned
    through it: fill one with a trained model, give that model this readout with the head it had, and choose
    :math:`\lambda` and :math:`T` on held-out text (:mod:`mann.knn_store`)::

        store = build_datastore(model, batches, path)
        readout = KNNReadout(model.d_model, model.vocab_size, datastore=store, k=64)
        readout.softmax.load_state_dict(model.readout.state_dict())
        model.readout = readout
        tune(model, held_out)

    A store may hold the text that is read, and with it the answers. What each position must not be given is said by
    :meth:`hiding`; in train mode a datastore is not asked before something has been said. A ``source`` is guarded as it
    is elsewhere: by ``exclude`` beside the tokens, or neighbours that were found with it.

    References:
        Khandelwal et al., "Generalization through memorization" (kNN-LM), 2020. arXiv:1911.00172;
        He, Neubig and Berg-Kirkpatrick, "Efficient nearest neighbor language models" (adaptive weight), 2021.
        arXiv:2109.04212.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        source: Where neighbours come from by their tokens; give this or ``datastore``.
        k: Neighbours per position.
        datastore: Where they come from by their states: a :class:`retrieval.Datastore`, or an automaton over one.
        adaptive: Compute :math:`\lambda` from the state, by a perceptron of one hidden layer; else it is one number.
        threshold: Positions whose :math:`\lambda` is smaller are not searched for, and have none. It saves searches
            where :math:`\lambda` is adaptive.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.

    Raises:
        ValueError: If there is not one of ``source`` and ``datastore``, or ``threshold`` is set for what cannot leave
            out positions; in train mode, if a datastore is asked outside of :meth:`hiding`, or nobody has said what a
            loss must not be given of a source.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        source: Source | None = None,
        k: int = 16,
        datastore: Datastore | Follower | None = None,
        adaptive: bool = False,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if (source is None) == (datastore is None):
            raise ValueError("KNNReadout(source=...) or KNNReadout(datastore=...): give one of them")
        if threshold and not (adaptive and isinstance(datastore, Datastore)):
            raise ValueError("threshold needs adaptive=True and datastore=retrieval.Datastore: leave it at 0")
        self.source = source
        self.datastore = datastore
        self.k = k
        self.threshold = threshold
        self.rules: Mapping[str, Tensor] | None = None
        self.softmax = SoftmaxReadout(d_model, vocab_size)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        # The logit of the weight.
        start = math.log(WEIGHT / (1 - WEIGHT))
        if adaptive:
            self.gate = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, 1))
            last = self.gate[-1]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.constant_(last.bias, start)  # type: ignore[arg-type]
            # One row is no matrix to make orthogonal.
            last.weight.role = "scalar"  # type: ignore[union-attr]
        else:
            self.gate = None
            self.logit = nn.Parameter(torch.tensor(start))

    @contextmanager
    def hiding(self, **rules: Tensor) -> Iterator[None]:
        """Say what positions must not be given, for all forward passes inside.

        Args:
            rules: ``exclude``, ``visible_at`` and ``own`` of :meth:`retrieval.Datastore.search`; none of them says that
                the text is not in the store.

        Shapes:
            rules: ``[batch, time]``
        """
        before, self.rules = self.rules, rules
        try:
            yield
        finally:
            self.rules = before

    def gates(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time"]:
        r"""The logit of :math:`\lambda` at every position."""
        if self.gate is None:
            return self.logit.expand(x.shape[:-1])
        return self.gate(x).squeeze(-1).to(sum_dtype(x))

    def find(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> tuple[Neighbors, Int[Tensor, "batch time k"]]:
        """Neighbours of every position, and their answers."""
        if self.source is not None:
            found = context.retrieve(self.source, self.k)
            return found, context.window(self.source, self.k, 0, 1)[..., 1]
        if self.training and self.rules is None:
            raise ValueError(
                "a datastore may hold the text that a model is trained on: say what each position must not be given by "
                "readout.hiding(exclude=...), or that it holds none of it by readout.hiding()"
            )
        store: Any = self.datastore
        rules, asked = self.rules or {}, x.detach()
        if not isinstance(store, Datastore):
            found = store.search(asked, self.k, tokens=context.tokens, documents=context.documents, **rules)
        elif self.threshold:
            wanted = self.gates(asked).sigmoid() >= self.threshold
            some = store.search(asked[wanted], self.k, **{name: rule[wanted] for name, rule in rules.items()})
            found = _placed(some, wanted)
        else:
            found = store.search(asked, self.k, **rules)
        # What exists in shape only has no values to look up.
        return found, torch.zeros_like(found.ids) if x.is_meta else store.values(found).long()

    def log_weights(
        self, x: Float[Tensor, "batch time width"], found: Neighbors
    ) -> tuple[Float[Tensor, "batch time k"], Float[Tensor, "batch time"]]:
        """Logs of the weights of all neighbours and of the vocabulary."""
        nobody = ~found.mask.any(-1)
        scores = found.scores.to(sum_dtype(x)) * torch.exp(-self.log_temperature)
        # Where there is no neighbour at all, places are given any weight: theirs is taken away below.
        logs = scores.masked_fill(~found.mask & ~nobody[..., None], NOTHING).log_softmax(-1)
        gate = self.gates(x)
        weight = F.logsigmoid(gate).masked_fill(nobody, NOTHING)
        return logs + weight[..., None], F.logsigmoid(-gate).masked_fill(nobody, 0.0)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        if targets is not None and self.source is not None:
            self.refuse_own(context, context.exclude)
        found, answers = self.find(x, context)
        weights, vocabulary = self.log_weights(x, found)
        if targets is None:
            log_p = self.softmax(x, context) + vocabulary[..., None]
            return torch.logaddexp(log_p, token_masses(weights, answers, log_p.shape[-1]))
        right = weights.masked_fill(answers != targets[..., None], NOTHING)
        log_p = vocabulary - self.softmax(x, context, targets)
        mixed = -torch.logsumexp(torch.cat([right, log_p[..., None]], -1), -1)
        return mixed.masked_fill(targets == IGNORE, 0.0)


def _placed(found: Neighbors, wanted: Bool[Tensor, "batch time"]) -> Neighbors:
    """Neighbours of some positions where they belong, and none elsewhere."""
    placed = Neighbors.none(*wanted.shape, found.k, device=found.ids.device)
    placed.scores[wanted], placed.ids[wanted], placed.mask[wanted] = found.scores, found.ids, found.mask
    return placed
