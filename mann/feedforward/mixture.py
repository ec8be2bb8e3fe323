"""A mixture of experts: several feedforward layers, of which each token chooses a few, and some that all use."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.grouped import grouped_linear
from mann.linear import Linear
from mann.topk import top_ids
from retrieval.rows import sum_rows

Weights = Float[Tensor, "tokens k"]
Experts = Int[Tensor, "tokens k"]


class MixtureOfExperts(nn.Module):
    r"""Gated feedforward layers :math:`E_i`, of which a router chooses :math:`k` for each token, beside shared ones.

    .. math::
        s = \operatorname{sigmoid}(W_r x), \qquad S = \operatorname{top}_k(s + b), \qquad
        y = E_{\text{shared}}(x) + \sum_{i \in S} \frac{s_i}{\sum_{j \in S} s_j} E_i(x), \qquad
        E(x) = W_2 (\operatorname{SiLU}(W_1 x) \odot W_3 x)

    No token is dropped. Load is balanced without a loss: the bias :math:`b` takes part in the choice alone and has no
    gradient. After each step :math:`b_i \leftarrow b_i + \gamma \operatorname{sign}(\bar c - c_i)`, :math:`c` counting
    who chose what in the batches of the step. So a choice depends on the token and on earlier steps, never on later
    tokens. A backward pass counts, and a step is over once the router's weight has been changed in place: gradients of
    several batches make one step, and what a checkpoint computes again is the same. Where a process group is
    initialised the counts of all its processes are added up, so all have one bias: every one of them must then make the
    same backward passes, as they do under data parallelism.

    :math:`W_2` starts at zero, so the layer starts as a no-op. Left out: the small loss that balances each sequence,
    and the limit on how many devices a token may reach.

    References:
        DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024. arXiv:2412.19437;
        Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024. arXiv:2408.15664.

    Args:
        d_model: Width of the residual stream.
        n_experts: Experts to choose from.
        k: Experts that a token chooses; two at least, since the weight of a single one would teach the router nothing.
        n_shared: Experts that every token uses.
        hidden: Hidden width of an expert; the default makes a token's experts together about as wide as
            :class:`~mann.SwiGLU`, in steps of 16.
        rate: :math:`\gamma`.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If a token cannot choose ``k`` experts, or there are fewer than no shared ones.
    """

    bias: Tensor
    load: Tensor

    def __init__(
        self,
        d_model: int,
        n_experts: int = 8,
        k: int = 2,
        n_shared: int = 1,
        hidden: int | None = None,
        rate: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 2 <= k <= n_experts:
            raise ValueError(f"k={k} of {n_experts} experts: give 2 <= k <= n_experts")
        if n_shared < 0:
            raise ValueError(f"n_shared={n_shared} experts: give 0 for none")
        hidden = hidden or max(16, round(8 * d_model / 3 / (k + n_shared) / 16) * 16)
        self.n_experts, self.k, self.rate = n_experts, k, rate
        self.router = Linear(d_model, n_experts)
        self.register_buffer("bias", torch.zeros(n_experts))
        self.register_buffer("load", torch.zeros(n_experts))
        # The version of the router's weight for which load was counted.
        self._counted = -1
        self.up = nn.Parameter(
            torch.empty(n_experts * 2 * hidden, d_model).uniform_(-(d_model**-0.5), d_model**-0.5)
        )
        self.down = nn.Parameter(torch.zeros(n_experts * d_model, hidden))
        for stack, count in ((self.up, 2 * n_experts), (self.down, n_experts)):
            stack.role, stack.matrices = "matrix", count  # type: ignore[attr-defined]
        self.shared_up = Linear(d_model, 2 * n_shared * hidden) if n_shared else None
        self.shared_down = Linear(n_shared * hidden, d_model) if n_shared else None
        if self.shared_down is not None:
            nn.init.zeros_(self.shared_down.weight)

    def route(self, x: Float[Tensor, "tokens width"]) -> tuple[Weights, Experts]:
        """The experts that each token chooses and their weights, which sum to one.

        Shapes:
            x: ``[tokens, width]``; results: ``[tokens, k]``
        """
        scores = self.router(x).float().sigmoid()
        experts = top_ids(scores.detach() + self._balanced(), self.k)
        chosen = scores.gather(-1, experts)
        return chosen / chosen.sum(-1, keepdim=True), experts

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        tokens = x.flatten(0, 1)
        weights, experts = self.route(tokens)
        chosen, order = experts.flatten().sort(stable=True)
        ends = torch.searchsorted(chosen, torch.arange(self.n_experts, device=x.device), right=True)
        up, down = (stack.unflatten(0, (self.n_experts, -1)) for stack in (self.up, self.down))
        gathered = tokens.index_select(0, order.div(self.k, rounding_mode="floor"))
        said = grouped_linear(_gated(grouped_linear(gathered, up, ends)), down, ends)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        y = sum_rows(said.to(weights.dtype), place.view_as(experts), weights).view_as(x).to(x.dtype)
        if self.shared_up is not None and self.shared_down is not None:
            y = y + self.shared_down(_gated(self.shared_up(x)))
        if self.training and y.requires_grad:
            y.register_hook(lambda grad: self._count(ends))
        return y

    @torch.no_grad()
    def _balanced(self) -> Float[Tensor, "experts"]:
        """The bias of this step."""
        rate = self.rate if self._stepped() else 0.0
        return self.bias + rate * (self.load.mean() - self.load).sign()

    @torch.no_grad()
    def _count(self, ends: Int[Tensor, "experts"]) -> None:
        self.bias.copy_(self._balanced())
        if self._stepped():
            self.load.zero_()
        counts = ends.diff(prepend=ends.new_zeros(1))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Here, and not when the bias is next needed: so that what a checkpoint holds is of all processes.
            dist.all_reduce(counts)
        self.load.add_(counts)
        self._counted = self.router.weight._version

    def _stepped(self) -> bool:
        return self._counted != self.router.weight._version


def _gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value
