"""Optimisers by the role of a parameter: matrices, embeddings, head, scalars, memory tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mann.host_table import HostTable
from mann.table_optim import CatchUpAdam, RowAdam, RowScalarAdam, clip_factor

__all__ = [
    "ROLES",
    "TABLE_MODES",
    "Muon",
    "RoleOptimizer",
    "RowAdam",
    "linear_schedule",
    "orthogonalize",
    "parameter_roles",
]

ROLES = ("matrix", "embedding", "head", "scalar", "table")
# How a table is trained; "dense" is AdamW on all of it.
TABLE_MODES = {"lazy": RowAdam, "catch_up": CatchUpAdam, "row_scalar": RowScalarAdam, "dense": AdamW}


def parameter_roles(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    r"""Sort the trainable parameters of a model by what they are.

    A parameter says its role by an attribute ``role``; without one the rule is: row-sparse embeddings are
    ``"table"``, other embeddings ``"embedding"``, the readout's matrix ``"head"``, other matrices ``"matrix"``,
    everything else ``"scalar"``.

    Args:
        model: Any module.

    Raises:
        ValueError: If a parameter carries a role that is none of those.
    """
    roles: dict[str, list[nn.Parameter]] = {role: [] for role in ROLES}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            role = getattr(parameter, "role", None) or _default_role(module, name, parameter)
            if role not in roles:
                raise ValueError(f"parameter {name!r} has role {role!r}: use one of {', '.join(ROLES)}")
            roles[role].append(parameter)
    return roles


def _default_role(module: nn.Module, name: str, parameter: Tensor) -> str:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "table" if module.sparse else "embedding"
    return "matrix" if isinstance(module, nn.Linear) and name == "weight" else "scalar"


def _loss(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step gives, which computes gradients where the step itself has them off."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Muon(Optimizer):
    r"""Momentum whose update is made (nearly) orthogonal, all matrices of one shape in one batch.

    .. math::
        M \leftarrow \mu M + G, \qquad
        W \leftarrow W - \eta \sqrt{\max(1, r/c)} \; \mathrm{NS}_n(G + \mu M)

    with :math:`n` Newton-Schulz iterations in bfloat16 for an ``r`` by ``c`` matrix. Three instead of the
    usual five cost 40 % less; single runs at width 64 showed no clear difference in loss. Equal to
    :class:`torch.optim.Muon` with the same coefficients; that one loops over matrices, which on narrow models costs
    more than the arithmetic. A weight whose rows are several matrices (queries, keys and values in one product) says
    how many by an attribute ``matrices``; each is made orthogonal by itself.

    Reference:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
        https://kellerjordan.github.io/posts/muon/

    Args:
        params: Matrices.
        lr: Step size.
        momentum: :math:`\mu`.
        weight_decay: Decoupled decay, times ``lr``.
        steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = _loss(closure)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in weights]
            grads: list[Tensor] = [p.grad for p in weights if p.grad is not None]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, grads)
            updates = torch._foreach_add(grads, momenta, alpha=group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            self._apply(weights, list(updates), group)
        return loss

    def _apply(self, weights: list[nn.Parameter], updates: list[Tensor], group: dict[str, Any]) -> None:
        batches: dict[tuple[int, int], list[tuple[Tensor, Tensor, float, bool]]] = {}
        for weight, update in zip(weights, updates, strict=True):
            count = getattr(weight, "matrices", 1)
            for part, piece in zip(weight.chunk(count), update.chunk(count), strict=True):
                height, width = piece.shape
                tall = height > width
                key = (width, height) if tall else (height, width)
                batches.setdefault(key, []).append((part, piece, max(1.0, height / width) ** 0.5, tall))
        for batch in batches.values():
            stacked = torch.stack([piece.t() if tall else piece for _, piece, _, tall in batch])
            for (part, _, scale, tall), direction in zip(
                batch, orthogonalize(stacked, group["steps"]), strict=True
            ):
                part.add_(direction.t() if tall else direction, alpha=-group["lr"] * scale)


def orthogonalize(x: Tensor, steps: int = 3) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: Newton-Schulz with singular values ending near 1.

    Args:
        x: Matrices ``[batch, rows, columns]`` with rows <= columns.
        steps: Iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.float()


class RoleOptimizer(Optimizer):
    r"""One optimiser made of one per role, so that Lightning and schedulers see a single one.

    Matrices go to :class:`Muon`, memory tables to :class:`RowAdam` (a step costs the rows it touches), everything
    else to :class:`torch.optim.AdamW`. Attributes of a parameter change that:

    - ``rate_multiplier``: times the rate of its role;
    - ``decay = False``: a matrix without weight decay; nothing else has any;
    - ``table_mode`` of a table: ``"lazy"`` (:class:`RowAdam`), ``"row_scalar"``
      (:class:`~mann.table_optim.RowScalarAdam`), ``"dense"`` (:class:`torch.optim.AdamW` on the whole table) or
      ``"catch_up"``, which gives what ``"dense"`` gives (:class:`~mann.table_optim.CatchUpAdam`): rows catch up before
      an ``nn.Embedding`` or a :class:`~mann.host_table.HostTable` reads them, the rest when :meth:`settle` is called;
    - ``clip_norm`` of a table: the largest norm of its gradient.

    Args:
        model: Its trainable parameters are sorted by :func:`parameter_roles`.
        rates: Step size per role; roles the model lacks are ignored.
        betas: Moment decays of AdamW and of tables.
        weight_decay: Decoupled decay of matrices.

    Raises:
        ValueError: If a role of the model has no rate, or an attribute says what does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        rates: dict[str, float],
        betas: tuple[float, float] = (0.8, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        roles = {role: params for role, params in parameter_roles(model).items() if params}
        missing = sorted(set(roles) - set(rates))
        if missing:
            raise ValueError(f"no rate for {', '.join(missing)}: add them to rates={rates}")
        tables = roles.pop("table", [])
        if any(hasattr(parameter, "clip_norm") for params in roles.values() for parameter in params):
            raise ValueError(
                "a parameter that is no table has an attribute clip_norm: tables alone are clipped"
            )
        self.parts: list[Optimizer] = []
        if "matrix" in roles:
            groups = _groups(roles["matrix"], rates["matrix"], weight_decay)
            self.parts.append(Muon(groups, lr=rates["matrix"], weight_decay=weight_decay))
        dense = [
            group
            for role in ("embedding", "head", "scalar")
            for group in _groups(roles.get(role, []), rates[role] if role in roles else 0.0)
        ]
        if dense:
            self.parts.append(AdamW(dense, betas=betas, eps=1e-10, weight_decay=0.0, fused=True))
        self._whole: list[nn.Parameter] = []
        for mode, params in _by_mode(tables).items():
            more: dict[str, Any] = {"weight_decay": 0.0, "fused": True} if mode == "dense" else {}
            groups = _groups(params, rates["table"])
            self.parts.append(TABLE_MODES[mode](groups, betas=betas, eps=1e-10, **more))
            if mode == "dense":
                self._whole = params
        _follow(model, self.parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        # The base class copies the groups; sharing the parts' own lets schedulers reach them.
        self.param_groups = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = _loss(closure)
        for table in self._whole:
            if table.grad is not None:
                table.grad = table.grad.to_dense() if table.grad.is_sparse else table.grad
                if (most := getattr(table, "clip_norm", None)) is not None:
                    table.grad.mul_(clip_factor(table.grad, most))
        for part in self.parts:
            part.step()
        return loss

    def settle(self) -> None:
        """Bring tables that catch up later to where they should be, before they are used without their optimiser."""
        for part in self.parts:
            if isinstance(part, CatchUpAdam):
                part.settle()

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """The parts' states, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if len(state_dict["parts"]) != len(self.parts):
            raise ValueError(
                f"the checkpoint holds {len(state_dict['parts'])} optimisers, this model needs {len(self.parts)}: "
                "it was written by another arm"
            )
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _groups(
    params: list[nn.Parameter], rate: float, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameters of one role by what their attributes ask for."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in params:
        multiplier = getattr(parameter, "rate_multiplier", 1.0)
        wanted: dict[str, Any] = {"lr": rate * multiplier}
        if weight_decay is not None:
            wanted["weight_decay"] = weight_decay if getattr(parameter, "decay", True) else 0.0
        if (most := getattr(parameter, "clip_norm", None)) is not None:
            wanted["clip_norm"] = most
        groups.setdefault(tuple(wanted.values()), {"params": [], **wanted})["params"].append(parameter)
    return list(groups.values())


def _by_mode(tables: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    modes: dict[str, list[nn.Parameter]] = {}
    for table in tables:
        mode = getattr(table, "table_mode", "lazy")
        if mode not in TABLE_MODES:
            raise ValueError(f"a table has table_mode {mode!r}: use one of {', '.join(TABLE_MODES)}")
        modes.setdefault(mode, []).append(table)
    return modes


def _follow(model: nn.Module, parts: list[Optimizer]) -> None:
    for part in parts:
        if isinstance(part, CatchUpAdam):
            own = {id(table) for group in part.param_groups for table in group["params"]}
            for module in model.modules():
                if isinstance(module, (nn.Embedding, HostTable)) and id(module.weight) in own:
                    part.follow(module)


def linear_schedule(step: int, total_steps: int, warmup: float = 0.03, decay: float = 0.6) -> float:
    """Rate multiplier: linear warm-up over a share of the steps, then flat, then linearly to zero.

    Args:
        step: Steps done.
        total_steps: Length of the run.
        warmup: Share of the steps for the warm-up.
        decay: Share of the steps for the decay at the end.
    """
    if step < warmup * total_steps:
        return (step + 1) / (warmup * total_steps + 1)
    return min(1.0, max(0.0, (total_steps - step) / max(decay * total_steps, 1e-9)))
