"""Where a node is, as numbers: encodings to be joined to its features before anything is trained.

Random walks (RWSE), the chances of being back after 1, 2, ..., K steps, are PyG's ``AddRandomWalkPE(K)``, used as it
is; with ``attr_name=None`` it joins them to ``x``. They have no sign to choose. Up to 2000 nodes it multiplies dense
matrices, :math:`2 (K - 1) n^3` FLOPs; above, sparse ones, which fill up from step to step. All of it runs in torch, so
a ledger opened around the transform bills it. PyG's ``AddLaplacianEigenvectorPE`` computes in NumPy and SciPy, where
no ledger looks, draws signs from torch's global generator, and gives small graphs fewer columns than others:
:class:`LaplacianEigenvectors` stands in its place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.transforms.add_positional_encoding import add_node_attr

__all__ = ["LaplacianEigenvectors", "laplacian_eigenvectors"]


def laplacian_eigenvectors(
    edge_index: Tensor, n_nodes: int, k: int, dense_up_to: int = 1000
) -> Float[Tensor, "nodes k"]:
    r"""Eigenvectors of the smallest eigenvalues of :math:`\mathbf{I} - \mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}`.

    Without the first, which only tells degrees. Small graphs are decomposed whole, :math:`9 n^3` FLOPs; for larger ones
    ``torch.lobpcg`` multiplies sparse matrices, :math:`2 (k + 1)` FLOPs an edge each time it does, to about five
    digits. Each vector has length 1, and its entry of largest size is positive: which of a vector and its opposite is
    meant, nobody can say. Vectors of one eigenvalue (several components, symmetric graphs) may be any of their span.

    Args:
        edge_index: Both directions of every edge.
        n_nodes: Number of nodes.
        k: Vectors; those that a graph is too small for are zero.
        dense_up_to: Nodes up to which a graph is decomposed whole.

    Shapes:
        edge_index: ``[2, edges]``, result: ``[n_nodes, k]``

    Raises:
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"{k=} eigenvectors: give at least 1")
    found = torch.zeros(n_nodes, k, device=edge_index.device)
    if n_nodes < 2:
        return found
    degrees = torch.bincount(edge_index[1], minlength=n_nodes).float()
    scale = degrees.clamp(min=1).rsqrt()
    matrix = torch.sparse_coo_tensor(
        edge_index.flip(0), scale[edge_index[0]] * scale[edge_index[1]], (n_nodes, n_nodes)
    ).coalesce()
    # The largest of the adjacency are the smallest of the Laplacian. A node without edges has a zero there, in the
    # Laplacian too: as PyG has it, and everyone.
    if n_nodes <= max(dense_up_to, 3 * (k + 1)):
        vectors = torch.linalg.eigh(matrix.to_dense())[1].flip(1)
    else:
        start = torch.randn(n_nodes, k + 1, generator=torch.Generator().manual_seed(0), device="cpu").to(
            edge_index.device
        )
        vectors = torch.lobpcg(matrix.to_sparse_csr(), k + 1, X=start, largest=True, niter=500, tol=1e-5)[1]
    vectors = vectors[:, 1 : k + 1]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    found[:, : vectors.shape[1]] = vectors * torch.where(largest < 0, -1.0, 1.0)
    return found


class LaplacianEigenvectors(BaseTransform):
    """Adds :func:`laplacian_eigenvectors` to a graph.

    After `Benchmarking Graph Neural Networks <https://arxiv.org/abs/2003.00982>`_ (Dwivedi et al., 2020). That paper
    flips signs at random each time a graph is seen, so that a network learns to ignore them: do so with ``seed``, in a
    data set's ``transform`` (each time), not in its ``pre_transform`` (once).

    Args:
        k: Vectors.
        attr_name: Attribute to hold them; ``None``: joined to ``x``.
        seed: Of a generator of random signs; ``None``: the largest entry is positive.
    """

    def __init__(
        self, k: int, attr_name: str | None = "laplacian_eigenvector_pe", seed: int | None = None
    ) -> None:
        self.k, self.attr_name, self.seed = k, attr_name, seed
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(self, data: Data) -> Data:
        """A graph with the encoding."""
        if data.edge_index is None:
            raise ValueError("a graph without edge_index has no Laplacian")
        vectors = laplacian_eigenvectors(data.edge_index, int(data.num_nodes or 0), self.k)
        if self._generator is not None:
            flip = torch.randint(0, 2, (self.k,), generator=self._generator).to(vectors.device)
            vectors = vectors * (1 - 2 * flip)
        return add_node_attr(data, vectors, attr_name=self.attr_name)
