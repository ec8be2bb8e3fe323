"""Every encoder written with dense matrices, a node and a neighbour at a time where that reads better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gnn.encoders import APPNP, GAT, GCN, GIN, GPS, MLP, SAGE, SGC, SIGN, Exphormer, GATv2, SGFormer, TunedGNN


def smoothing(a: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2; a node that hears itself already does so once."""
    a = torch.maximum(a, torch.eye(len(a), dtype=a.dtype))
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale


def mlp(encoder: MLP, x: Tensor, a: Tensor) -> Tensor:
    for number, linear in enumerate(encoder.convs):
        x = (x.relu() if number else x) @ linear.weight.T + linear.bias
    return x


def gcn_conv(conv, x: Tensor, a: Tensor) -> Tensor:
    return smoothing(a) @ x @ conv.lin.weight.T + conv.bias


def gcn(encoder: GCN, x: Tensor, a: Tensor) -> Tensor:
    for number, conv in enumerate(encoder.convs):
        x = gcn_conv(conv, x.relu() if number else x, a)
    return x


def sgc(encoder: SGC, x: Tensor, a: Tensor) -> Tensor:
    return torch.matrix_power(smoothing(a), encoder.hops) @ x @ encoder.convs[0].weight.T + encoder.bias


def sign(encoder: SIGN, x: Tensor, a: Tensor) -> Tensor:
    (maps,) = encoder.convs
    joined = torch.cat(
        [
            torch.matrix_power(smoothing(a), hop) @ x @ linear.weight.T + linear.bias
            for hop, linear in enumerate(maps)
        ],
        dim=1,
    )
    y = torch.where(joined > 0, joined, encoder.joined.weight * joined)
    for number, layer in enumerate(encoder.layers):
        y = (y.relu() if number else y) @ layer.weight.T + layer.bias
    return y


def appnp(encoder: APPNP, x: Tensor, a: Tensor) -> Tensor:
    start = z = mlp(encoder, x, a)
    for _ in range(encoder.hops):
        z = (1 - encoder.alpha) * smoothing(a) @ z + encoder.alpha * start
    return z


def attended(conv, scores: Tensor, values: Tensor, a: Tensor) -> Tensor:
    """Scores ``[target, source, head]`` as shares of values ``[source, head, width]``."""
    heard = torch.maximum(a, torch.eye(len(a), dtype=a.dtype)).bool()
    shares = scores.masked_fill(~heard[..., None], float("-inf")).softmax(1)
    y = torch.einsum("tsh,shc->thc", shares, values)
    return (y.flatten(1) if conv.concat else y.mean(1)) + conv.bias


def gat_conv(conv, x: Tensor, a: Tensor) -> Tensor:
    h = (x @ conv.lin.weight.T).unflatten(1, (conv.heads, conv.out_channels))
    source, target = (h * conv.att_src).sum(-1), (h * conv.att_dst).sum(-1)
    return attended(conv, F.leaky_relu(target[:, None] + source[None], 0.2), h, a)


def gatv2_conv(conv, x: Tensor, a: Tensor) -> Tensor:
    source, target = (
        (x @ linear.weight.T + linear.bias).unflatten(1, (conv.heads, conv.out_channels))
        for linear in (conv.lin_l, conv.lin_r)
    )
    scores = (conv.att * F.leaky_relu(target[:, None] + source[None], 0.2)).sum(-1)
    return attended(conv, scores, source, a)


def gat(encoder: GAT, x: Tensor, a: Tensor) -> Tensor:
    one = gatv2_conv if isinstance(encoder, GATv2) else gat_conv
    for number, conv in enumerate(encoder.convs):
        x = one(conv, F.elu(x) if number else x, a)
    return x


def sage_conv(conv, x: Tensor, a: Tensor) -> Tensor:
    mean = (a @ x) / a.sum(1, keepdim=True).clamp(min=1)
    return mean @ conv.lin_l.weight.T + conv.lin_l.bias + x @ conv.lin_r.weight.T


def sage(encoder: SAGE, x: Tensor, a: Tensor) -> Tensor:
    for number, conv in enumerate(encoder.convs):
        x = sage_conv(conv, x.relu() if number else x, a)
    return x


def gin_conv(conv, x: Tensor, a: Tensor) -> Tensor:
    return conv.nn((1 + conv.eps) * x + a @ x)


def gin(encoder: GIN, x: Tensor, a: Tensor) -> Tensor:
    x = encoder.first(x)
    for block in encoder.blocks:
        x = block.norm(gin_conv(block.conv, x, a)).relu()
    return encoder.head(x)


def tuned(encoder: TunedGNN, x: Tensor, a: Tensor) -> Tensor:
    convs = {"GCNConv": gcn_conv, "SAGEConv": sage_conv, "GATConv": gat_conv, "GINConv": gin_conv}
    x = encoder.first(x)
    for block in encoder.blocks:
        u = block.norm(convs[type(block.conv).__name__](block.conv, x, a)).relu()
        x = x + u if block.residual else u
        if block.feedforward is not None:
            x = block.after(x + block.feedforward[3](block.feedforward[0](x).relu()))
    return encoder.head(x)


def self_attention(attention: torch.nn.MultiheadAttention, x: Tensor) -> Tensor:
    heads = attention.num_heads
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))
    scores = torch.einsum("thc,shc->tsh", q, k) / q.shape[-1] ** 0.5
    y = torch.einsum("tsh,shc->thc", scores.softmax(1), v).flatten(1)
    return y @ attention.out_proj.weight.T + attention.out_proj.bias


def gps(encoder: GPS, x: Tensor, a: Tensor) -> Tensor:
    x = encoder.first(x)
    for block in encoder.blocks:
        conv = block.conv
        first, second, third = (
            (lambda h: h) if norm is None else norm for norm in (conv.norm1, conv.norm2, conv.norm3)
        )
        u = first(x + gin_conv(conv.conv, x, a)) + second(x + self_attention(conv.attn, x))
        x = third(u + conv.mlp[3](conv.mlp[0](u).relu()))
    return encoder.head(x)


def exphormer(encoder: Exphormer, x: Tensor, a: Tensor, expander: Tensor | None = None) -> Tensor:
    """``expander`` counts edges, which may be there twice."""
    n, virtual = len(x), len(encoder.virtual)
    counts = torch.zeros(4, n + virtual, n + virtual, dtype=x.dtype)  # kind, target, source
    counts[0, :n, :n] = a
    if expander is not None:
        counts[1, :n, :n] = expander
    counts[2, n:, :n] = counts[3, :n, n:] = 1
    x = torch.cat([encoder.first(x), encoder.virtual])
    for block in encoder.blocks:
        attention = block.attention
        q, k, v = (
            linear(block.before(x)).unflatten(1, (attention.heads, attention.d_head))
            for linear in (attention.query, attention.key, attention.value)
        )
        weights = torch.einsum("thc,shc,rhc->rtsh", q, k, attention.kind) / attention.d_head**0.5
        weights = weights.exp() * counts[..., None]
        shares = weights.sum(0) / weights.sum((0, 2))[:, None].clamp(min=1e-300)
        x = x + attention.out(torch.einsum("tsh,shc->thc", shares, v).flatten(1))
        x = x + block.feedforward[3](block.feedforward[0](block.between(x)).relu())
    return encoder.head(x[:n])


def simple_attention(attention, x: Tensor) -> Tensor:
    """All pairs of nodes, the weights written out."""
    n, heard = len(x), []
    for q, k, v in zip(
        *(
            linear(x).chunk(attention.heads, 1)
            for linear in (attention.query, attention.key, attention.value)
        ),
        strict=True,
    ):
        weights = n * torch.eye(n, dtype=x.dtype) + (q / q.norm()) @ (k / k.norm()).T
        heard.append(weights @ v / weights.sum(1, keepdim=True))
    return torch.stack(heard).mean(0)


def sgformer(encoder: SGFormer, x: Tensor, a: Tensor) -> Tensor:
    near = encoder.graph_norm(encoder.graph_first(x)).relu()
    for block in encoder.blocks:
        near = near + block.norm(gcn_conv(block.conv, near, a)).relu()
    everywhere = encoder.norms[0](encoder.attention_first(x)).relu()
    for attention, norm in zip(encoder.attention, encoder.norms[1:], strict=True):
        everywhere = norm((everywhere + simple_attention(attention, everywhere)) / 2).relu()
    return encoder.head(encoder.graph_weight * near + (1 - encoder.graph_weight) * everywhere)
