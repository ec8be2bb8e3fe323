"""One-way attention from retrieved entries to the tokens that retrieved them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter, softmax

__all__ = ["EntryAttention"]


class EntryAttention(MessagePassing):
    r"""Each token hears the entries it retrieved, and a learned null entry, through one softmax.

    Scores depend on token and entry together, so the ranking of entries differs from token to token (`How Attentive
    are Graph Attention Networks? <https://arxiv.org/abs/2105.14491>`_, Brody et al., 2022). Keys and values
    are the entry itself, shared by all heads; what would be a key or value weight acts on the token's side, once for
    each token instead of once for each entry. For token :math:`t`, entry :math:`n` and head :math:`h`:

    .. math::
        \mathbf{q}_{th} &= \mathbf{W}^q_h \mathbf{x}_t, \qquad
        \mathbf{g}_{th} = \mathbf{W}^g_h \mathbf{x}_t + \mathbf{b}_h

        e_{tnh} &= \mathbf{q}_{th}^\top \mathbf{z}_n / \sqrt{d}
        + \mathbf{g}_{th}^\top (1,\ s_{tn},\ s_{tn} - \max_m s_{tm}), \qquad
        e_{t\emptyset h} = \mathbf{q}_{th}^\top \mathbf{z}_\emptyset / \sqrt{d}

        \mathbf{u}_t &= \sum_h \mathbf{W}^o_h \sum_{n \in \mathcal{N}(t) \cup \emptyset}
        \mathrm{softmax}_n(e_{tnh})\, \mathbf{z}_n

    with :math:`s = \mathrm{sign}(\mathrm{score}) \log(1 + |\mathrm{score}|)`. The null entry takes the weight when no
    neighbour deserves it, and all of it when there is none. :math:`\mathbf{W}^o` starts at zero, so the update does.

    Args:
        d_model: Size of a token's state :math:`\mathbf{x}_t`, which comes normalised.
        width: Size of an entry's state.
        n_heads: Softmaxes a token has.
        null_sink: Whether there is a null entry. Without one, a token that has no neighbour hears zero.

    Shapes:
        x: entries ``[entries, width]`` and tokens ``[tokens, d_model]``, edge_index: ``[2, edges]``,
        score: ``[edges]``, result: ``[tokens, d_model]``
    """

    def __init__(self, d_model: int, width: int, n_heads: int = 4, *, null_sink: bool = True) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.d_model, self.width, self.n_heads = d_model, width, n_heads
        self.query = nn.Linear(d_model, n_heads * width, bias=False)
        self.trust = nn.Linear(d_model, n_heads * 3)
        self.null = nn.Parameter(torch.zeros(width)) if null_sink else None
        self.out = nn.Linear(n_heads * width, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Closes the gate, and lets better scores weigh more from the start, whatever the token."""
        super().reset_parameters()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.trust.weight)
        with torch.no_grad():
            self.trust.bias.view(self.n_heads, 3).copy_(torch.tensor([0.0, 0.0, 1.0]))

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``[tokens, heads, width]``, scaled, and score weights ``[tokens, heads, 3]`` of tokens."""
        query = self.query(x).view(-1, self.n_heads, self.width) * self.width**-0.5
        return query, self.trust(x).view(-1, self.n_heads, 3)

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, score: Tensor) -> Tensor:
        """Runs the attention over a list of edges."""
        entry, token = x
        n_entries, n_tokens = entry.shape[0], token.shape[0]
        query, trust = self.ask(token)
        target = edge_index[1]
        score = compress(score)
        best = scatter(score, target, dim_size=n_tokens, reduce="max")
        feature = torch.stack([torch.ones_like(score), score, score - best[target]], dim=-1)
        if self.null is not None:  # one more entry, heard by every token
            entry = torch.cat([entry, self.null.unsqueeze(0).to(entry.dtype)])
            everyone = torch.arange(n_tokens, device=target.device)
            edge_index = torch.cat(
                [edge_index, torch.stack([torch.full_like(everyone, n_entries), everyone])], dim=1
            )
            feature = torch.cat([feature, feature.new_zeros(n_tokens, 3)])
        heard = self.propagate(
            edge_index,
            x=(entry, query),
            trust=(None, trust),
            feature=feature,
            size=(entry.shape[0], n_tokens),
        )
        return self.out(heard.flatten(1))

    def message(
        self, x_j: Tensor, x_i: Tensor, trust_i: Tensor, feature: Tensor, index: Tensor, size_i: int
    ) -> Tensor:
        """An entry, weighted for each head of the token that hears it."""
        logit = (x_i * x_j.unsqueeze(1)).sum(-1) + (trust_i * feature.unsqueeze(1)).sum(-1)
        return softmax(logit, index, num_nodes=size_i).unsqueeze(-1) * x_j.unsqueeze(1)

    def dense(self, entry: Tensor, token: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        """The same where every token has ``k`` places for entries, without lists of edges. First derivatives only.

        Shapes:
            entry: ``[tokens, k, width]``, token: ``[tokens, d_model]``, score and mask: ``[tokens, k]``,
            result: ``[tokens, d_model]``
        """
        query, trust = self.ask(token)
        lowest = torch.finfo(score.dtype).min
        score = compress(score).masked_fill(~mask, lowest)
        margin = (score - score.amax(-1, keepdim=True)).masked_fill_(~mask, 0.0)
        score = score.masked_fill(~mask, 0.0)
        heard = _DenseAttention.apply(
            entry.to(query.dtype),
            query,
            trust.to(torch.promote_types(trust.dtype, score.dtype)),
            self.null,
            score,
            margin,
            mask,
        )
        return self.out(heard.flatten(1))


class _DenseAttention(torch.autograd.Function):
    # The gradients autograd would add up come laid out in two ways, which takes longer than the products.
    @staticmethod
    def forward(ctx, entry, query, trust, null, score, margin, mask):  # type: ignore[override]
        k = entry.shape[1]
        one, slope, lead = trust.unsqueeze(-1).unbind(2)
        score, margin, hidden = score.unsqueeze(1), margin.unsqueeze(1), ~mask.unsqueeze(1)
        logit = trust.new_empty(*query.shape[:2], k + (null is not None))
        body = logit[..., :k]
        body.copy_(_product(query, entry.mT)).add_(one).addcmul_(slope, score).addcmul_(lead, margin)
        body.masked_fill_(hidden, torch.finfo(logit.dtype).min)
        if null is not None:
            null = null.to(query.dtype)
            logit[..., k] = query @ null
        weight = logit.softmax(-1)
        if null is None:
            weight.masked_fill_(hidden, 0.0)  # without any entry the softmax is even, not empty
        share = weight[..., :k].to(entry.dtype)
        heard = _product(share, entry)
        if null is not None:
            heard.addcmul_(weight[..., k:].to(null.dtype), null)
        ctx.save_for_backward(entry, query, trust, null, score, margin, weight, share)
        return heard

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        entry, query, trust, null, score, margin, weight, share = ctx.saved_tensors
        k = entry.shape[1]
        wanted = torch.empty_like(weight)
        wanted[..., :k] = _product(grad, entry.mT)
        if null is not None:
            wanted[..., k] = grad @ null
        logit = torch._softmax_backward_data(wanted, weight, -1, weight.dtype)
        body = logit[..., :k]
        grad_trust = torch.stack([body.sum(-1), (body * score).sum(-1), (body * margin).sum(-1)], -1)
        low = body.to(entry.dtype)
        grad_query = _product(low, entry)
        grad_entry = _product(share.mT, grad).baddbmm_(low.mT, query)
        grad_null = None
        if null is not None:
            kept, asked = weight[..., k:].to(grad.dtype), logit[..., k:].to(grad.dtype)
            grad_query.addcmul_(asked, null)
            grad_null = kept.flatten() @ grad.flatten(0, 1) + asked.flatten() @ query.flatten(0, 1)
        of_scores = [
            (body * trust[..., i, None]).sum(1) if needed else None
            for i, needed in enumerate(ctx.needs_input_grad[4:6], start=1)
        ]
        return grad_entry, grad_query, grad_trust, grad_null, *of_scores, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A batch of products, which autocast leaves alone where the result is given."""
    return torch.bmm(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))


def compress(score: Tensor) -> Tensor:
    """Match lengths and similarities on one scale, sign kept."""
    return score.sign() * torch.log1p(score.abs())
