"""The delta rule: attention whose state is one matrix, corrected by each new key and value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.linear import Linear
from mann.norm import rms_norm, sum_dtype
from mann.projection import head_width
from mann.shift import previous, without_autocast
from mann.state import Streaming


class DeltaRule(Streaming, nn.Module):
    r"""Fast weights: a matrix per head that is told what to answer to each key, and asked by each query.

    .. math::
        S_t = \alpha_t S_{t-1} (I - \beta_t k_t k_t^\top) + \beta_t v_t k_t^\top, \qquad
        y_t = W_o \, \mathrm{rms}(S_t q_t)

    with keys and queries of unit length, keys mixed with the ones before them as in :class:`~mann.CausalAttention`,
    and :math:`\beta_t = \sigma(w_\beta x_t)`: at 1 the old answer to :math:`k_t` is replaced, at 0 it stays. What
    was written decays by :math:`\alpha_t = \exp(-a \, \mathrm{softplus}(w_\alpha x_t + b))` if gated, else
    :math:`\alpha_t = 1`. The matrix is zero at the beginning of a document, and a :class:`~mann.State` carries it to
    the next segment: cost and memory do not grow with the text.

    References:
        Schlag et al., "Linear transformers are secretly fast weight programmers", 2021. arXiv:2102.11174;
        Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024.
        arXiv:2406.06484;
        Yang et al., "Gated delta networks", 2024. arXiv:2412.06464.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model``.
        gated: Whether what was written decays.
        chunk: Positions computed at once; changes the speed, not the result.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model``, or a chunk has no positions.
    """

    def __init__(self, d_model: int, n_heads: int, gated: bool = False, chunk: int = 32) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads, even=False)
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: give at least 1 position, such as 32")
        self.n_heads, self.d_head = n_heads, d_head
        self.gated = gated
        self.chunk = chunk
        self.qkv = Linear(d_model, 3 * d_model)
        # Each is made orthogonal by itself.
        self.qkv.weight.matrices = 3  # type: ignore[attr-defined]
        self.gates = Linear(d_model, n_heads * (2 if gated else 1))
        self.out = Linear(d_model, d_model)
        # As in attention: every other head begins mostly as one that looks one position back.
        self.shift = nn.Parameter(torch.tensor([1.5, -1.5]).repeat(n_heads)[:n_heads, None])
        if gated:
            # Half of it is left after 8 positions in the first head, after 1,000 in the last.
            half_lives = torch.logspace(3, 10, n_heads, base=2)
            self.rate = nn.Parameter(half_lives.reciprocal().log())
            self.bias = nn.Parameter(torch.zeros(n_heads))
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.n_heads, self.d_head).unbind(2)
        gates = self.gates(x).transpose(1, 2).to(sum_dtype(x))
        beta, decay = torch.sigmoid(gates[:, : self.n_heads]), None
        if self.gated:
            fall = F.softplus(gates[:, self.n_heads :] + self.bias[:, None])
            decay = -self.rate.exp()[:, None] * fall
        start = {
            "fast": beta.new_zeros(()).expand(batch, self.n_heads, self.d_head, self.d_head),
            "key": k[:, 0],
        }
        held = start if context.state is None else context.state.read(self, start)
        last = k[:, -1]
        k = torch.lerp(k, previous(k, held["key"], context), torch.sigmoid(self.shift).to(k.dtype))
        with without_autocast(x):
            # A root mean square of one over the root of the width is unit length.
            q, k = (rms_norm(part.to(beta.dtype)) * self.d_head**-0.5 for part in (q, k))
            q, k, v = (part.to(beta.dtype).transpose(1, 2) for part in (q, k, v))
            y, fast = delta_rule(q, k, v, beta, decay, held["fast"], context.documents, self.chunk)
            y = rms_norm(y).transpose(1, 2).reshape(batch, time, width)
        if context.state is not None:
            context.state.write(self, fast=fast, key=last)
        return self.out(y.to(x.dtype))


def delta_rule(
    q: Float[Tensor, "batch heads time d_key"],
    k: Float[Tensor, "batch heads time d_key"],
    v: Float[Tensor, "batch heads time d_value"],
    beta: Float[Tensor, "batch heads time"],
    decay: Float[Tensor, "batch heads time"] | None,
    fast: Float[Tensor, "batch heads d_value d_key"],
    documents: Int[Tensor, "batch time"] | None,
    chunk: int,
) -> tuple[Float[Tensor, "batch heads time d_value"], Float[Tensor, "batch heads d_value d_key"]]:
    r"""The recurrence of :class:`DeltaRule`, one chunk after the other.

    Inside a chunk that begins with :math:`S`, the state is :math:`b_i S + \sum_{j \le i} D_{ij} u_j k_j^\top`, where
    :math:`D_{ij}` is the decay from :math:`j` to :math:`i`, :math:`b_i` that from the beginning, and the corrections
    :math:`u` solve one triangular system,

    .. math:: (I + \mathrm{tril}_{-1}(\beta \, D \odot K K^\top)) \, U = \beta (V - b \, K S^\top).

    It is solved for all chunks at once, for :math:`V` and for :math:`b K`; what remains for a loop over chunks is
    :math:`S \leftarrow S G + F`. Where the document changes :math:`D` and :math:`b` are zero.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        beta: How much of the old answer is replaced.
        decay: Logarithms of :math:`\alpha`; ``None``: nothing decays.
        fast: The state before the first position.
        documents: Document numbers from 0; ``fast`` belongs to document 0.
        chunk: Positions computed at once.

    Shapes:
        q, k: ``[batch, heads, time, d_key]``; v and first output: ``[batch, heads, time, d_value]``;
        beta, decay: ``[batch, heads, time]``; fast and second output: ``[batch, heads, d_value, d_key]``.
    """
    time = q.shape[2]
    chunk = min(chunk, time)
    # Places that fill the last chunk write nothing.
    q, k, v = (_chunked(part, 2, chunk) for part in (q, k, v))
    beta = _chunked(beta, 2, chunk)[..., None]
    within, reach = _decays(None if decay is None else _chunked(decay, 2, chunk), documents, beta, time)
    strength = beta * within
    system = torch.einsum("bhnid,bhnjd->bhnij", k, k) * strength
    right = torch.cat([v, k * reach], -1) * beta
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    corrections, answers = solved.split([v.shape[-1], k.shape[-1]], -1)
    leaving = k * within[..., -1, :, None]
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    turn = eye * reach[..., -1:, :] - answers.mT @ leaving
    states = _scan(turn, corrections.mT @ leaving, fast)
    begin = states[:, :, :-1].mT
    corrections = corrections - answers @ begin
    y = (q * reach) @ begin + (torch.einsum("bhnid,bhnjd->bhnij", q, k) * within) @ corrections
    return y.flatten(2, 3)[:, :, :time], states[:, :, -1]


def _chunked(x: Tensor, dim: int, chunk: int) -> Tensor:
    lack = -x.shape[dim] % chunk
    if lack:
        x = torch.cat([x, x.new_zeros(*x.shape[:dim], lack, *x.shape[dim + 1 :])], dim)
    return x.unflatten(dim, (-1, chunk))


def _decays(decay: Tensor | None, documents: Tensor | None, beta: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """Of each pair of places in a chunk, and of each place from before the chunk; zero in another document."""
    chunks, chunk = beta.shape[2:4]
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=beta.device).tril()
    inside = seen.new_ones(chunk)
    if documents is not None:
        labels = F.pad(documents[:, None], (0, chunks * chunk - time), "replicate").unflatten(2, (-1, chunk))
        seen = (labels[..., None] == labels[..., None, :]) & seen
        inside = labels == F.pad(labels[:, :, :-1, -1:], (0, 0, 1, 0))
    if decay is None:
        return seen.to(beta.dtype), inside[..., None].to(beta.dtype)
    # Sums of each pair's own terms, not differences of sums from the beginning: those would round by other documents.
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=beta.device).tril(-1)
    terms = decay[..., None].expand(*decay.shape, chunk).masked_fill(~later, 0.0)
    within = terms.cumsum(-2).masked_fill(~seen, float("-inf")).exp()
    return within, decay.cumsum(-1).masked_fill(~inside, float("-inf")).exp()[..., None]


def _scan(turn: Tensor, push: Tensor, state: Tensor) -> Tensor:
    """All states of ``S <- S turn + push``, the first and the last among them, along the third dimension."""
    states = [state.flatten(0, 1)]
    for one, other in zip(turn.flatten(0, 1).unbind(1), push.flatten(0, 1).unbind(1), strict=True):
        states.append(torch.baddbmm(other, states[-1], one))
    return torch.stack(states, 1).unflatten(0, turn.shape[:2])
