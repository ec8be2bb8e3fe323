"""The norm all layers share: per node, so that no node learns anything about another from it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["inverse_rms"]


def inverse_rms(x: Float[Tensor, "*nodes width"], eps: float = 1e-6) -> Float[Tensor, "*nodes 1"]:
    r"""One over the root mean square of each node's features, in float32 or better.

    The factor of `Root Mean Square Layer Normalization <https://arxiv.org/abs/1910.07467>`_ (Zhang and Sennrich, 2019).
    Norms over a graph or a batch (PyG's ``LayerNorm`` by default, ``BatchNorm``, ``GraphNorm``) would let later tokens
    change earlier ones.

    .. math::
        r(\mathbf{x}) = \big(\tfrac{1}{d} \lVert \mathbf{x} \rVert^2 + \epsilon\big)^{-1/2}
    """
    x = x if x.dtype == torch.float64 else x.float()
    return torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps)
