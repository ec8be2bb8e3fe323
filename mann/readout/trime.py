"""A readout whose softmax runs over the vocabulary and the past of the text."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.cross_entropy import linear_cross_entropy_and_total
from mann.linear import Linear
from mann.norm import sum_dtype
from mann.past import check_past, past_mass, past_masses, remembered
from mann.readout.base import IGNORE, Readout, SoftmaxReadout
from mann.state import Streaming


class TRIMEReadout(Streaming, Readout):
    r"""One softmax over the vocabulary and the earlier positions of the same document.

    .. math::
        p_t(v) \propto \exp(w_v^\top x_t) + \sum_{s < t}
        \exp\Big(\frac{\langle g(x_t), g(x_s) \rangle}{\tau \sqrt d}\Big) \, [x_{s+1} = v]

    A token is likely if its own embedding is near or if it followed a state like this one. It is trained with what it
    is tested with: the loss is minus the logarithm of the above, and its gradient goes through the earlier states too,
    so that states before the same token become alike. With ``d_key=None``, :math:`g` is the identity, as published, and
    there is no weight that the usual head lacks.

    The loss needs the sums of the softmax and no distribution: logits of the vocabulary once, in the type of autocast,
    and the scores of earlier positions. A :class:`~mann.State` holds the last states and tokens: with a ``window`` no
    longer than ``cache``, or with a ``cache`` as long as the text, segments equal one long row.

    Reference:
        Zhong, Lei and Chen, "Training language models with memory augmentation" (TRIME), 2022. arXiv:2205.12674.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        temperature: :math:`\tau`.
        d_key: Width :math:`d` in which states are compared, through a learned linear map :math:`g`; ``None`` compares
            them as they are.
        cache: Positions that a :class:`~mann.State` holds from one segment to the next.
        window: Positions that may be pointed at, those just before one's own; ``None``: whatever is there, which makes
            the last position of a segment see more than the first.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.

    Raises:
        ValueError: If ``temperature`` is not positive, or ``cache`` or ``window`` is smaller than 1.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        temperature: float = 1.0,
        d_key: int | None = None,
        cache: int = 512,
        window: int | None = None,
    ) -> None:
        super().__init__()
        check_past(cache, window)
        self.cache, self.window = cache, window
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}: the published one is 1")
        self.softmax = SoftmaxReadout(d_model, vocab_size)
        self.project = nn.Identity() if d_key is None else Linear(d_model, d_key)
        self.scale = 1 / (temperature * (d_model if d_key is None else d_key) ** 0.5)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        keys = self.project(x)
        queries, held = keys * self.scale, remembered(self, keys, context, self.cache, self.window)
        head = self.softmax.head
        if targets is None:
            logits = head(x)
            logits = logits.to(sum_dtype(logits))
            past, pointed = past_masses(queries, held, context, head.out_features)
            everything = torch.logaddexp(logits.logsumexp(-1), past)
            return torch.logaddexp(logits, pointed) - everything[..., None]
        ignored = targets == IGNORE
        nll, total = linear_cross_entropy_and_total(
            x.flatten(0, 1), head.weight, targets.masked_fill(ignored, 0).flatten()
        )
        nll, total = nll.view_as(targets), total.view_as(targets)
        past, pointed = past_mass(queries, held, context, targets)
        loss = torch.logaddexp(total, past) - torch.logaddexp(total - nll, pointed)
        return loss.masked_fill(ignored, 0.0)
