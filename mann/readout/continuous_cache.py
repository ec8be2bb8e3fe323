"""A readout that remembers what followed the earlier states of the text."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.past import check_past, past_mass, past_masses, remembered
from mann.readout.base import IGNORE, Readout, SoftmaxReadout
from mann.state import Streaming


class CacheReadout(Streaming, Readout):
    r"""Mixes the vocabulary distribution with a cache of the earlier positions of the same document.

    .. math::
        p_t(v) = (1 - \lambda_t)\, \mathrm{softmax}(W x_t)_v + \lambda_t\, \frac{1}{Z_t} \sum_{s < t}
        \exp(\theta\, \langle x_t, x_s \rangle)\, [x_{s+1} = v], \qquad
        Z_t = \sum_{s < t} \exp(\theta\, \langle x_t, x_s \rangle)

    Published with one fixed :math:`\lambda`, which ``weight`` gives. Without it the cache shares a softmax with a
    learned "not in the cache", :math:`\lambda_t = Z_t / (Z_t + e^{\langle c, x_t \rangle + b})`, so that its weight
    grows with the likeness of what it holds. Where there is no past, :math:`\lambda_t = 0`.

    A :class:`~mann.State` holds the last states and tokens. With a ``window`` no longer than ``cache``, or with a
    ``cache`` as long as the text, segments equal one long row.

    Differs from :class:`~mann.readout.trime.TRIMEReadout`, whose one softmax weighs the cache against the vocabulary's
    logits.

    References:
        Grave, Joulin and Usunier, "Improving neural language models with a continuous cache", 2017. arXiv:1612.04426;
        Merity et al., "Pointer sentinel mixture models", 2016. arXiv:1609.07843.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        theta: Start of the learned :math:`\theta`; by default :math:`1/\sqrt d`.
        weight: A fixed :math:`\lambda` between 0 and 1; ``None`` learns one for every position.
        cache: Positions that a :class:`~mann.State` holds from one segment to the next.
        window: Positions that may be pointed at, those just before one's own; ``None``: whatever is there, which makes
            the last position of a segment see more than the first.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.

    Raises:
        ValueError: If ``weight`` is not between 0 and 1, or ``cache`` or ``window`` is smaller than 1.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        theta: float | None = None,
        weight: float | None = None,
        cache: int = 512,
        window: int | None = None,
    ) -> None:
        super().__init__()
        check_past(cache, window)
        self.cache, self.window = cache, window
        if weight is not None and not 0 < weight < 1:
            raise ValueError(
                f"weight must be between 0 and 1, got {weight}: for no cache at all take SoftmaxReadout"
            )
        self.softmax = SoftmaxReadout(d_model, vocab_size)
        self.theta = nn.Parameter(torch.tensor(d_model**-0.5 if theta is None else theta))
        self.weights = None if weight is None else (math.log1p(-weight), math.log(weight))
        if weight is None:
            self.sink = nn.Linear(d_model, 1)
            nn.init.zeros_(self.sink.weight)
            # One row is no matrix to make orthogonal.
            self.sink.weight.role = "scalar"  # type: ignore[attr-defined]
            # As much as some hundred states that are nothing like this one.
            nn.init.constant_(self.sink.bias, 6.0)

    def log_weights(
        self, x: Float[Tensor, "batch time width"], past: Float[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        r"""Logs of :math:`1 - \lambda` and of :math:`\lambda / Z`, given :math:`\log Z`."""
        if self.weights is not None:
            nothing = past == float("-inf")
            vocabulary, cache = self.weights
            kept = torch.zeros_like(past).masked_fill(~nothing, vocabulary)
            return kept, cache - past.masked_fill(nothing, 0.0)
        sink = self.sink(x).squeeze(-1).to(past.dtype)
        everything = torch.logaddexp(sink, past)
        return sink - everything, -everything

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        queries, held = x * self.theta, remembered(self, x, context, self.cache, self.window)
        if targets is None:
            past, pointed = past_masses(queries, held, context, self.softmax.head.out_features)
            vocabulary, cache = (log[..., None] for log in self.log_weights(x, past))
            return torch.logaddexp(self.softmax(x, context) + vocabulary, pointed + cache)
        past, pointed = past_mass(queries, held, context, targets)
        vocabulary, cache = self.log_weights(x, past)
        nll = self.softmax(x, context, targets)
        return -torch.logaddexp(vocabulary - nll, pointed + cache).masked_fill(targets == IGNORE, 0.0)
