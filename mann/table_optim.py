"""Optimisers of memory tables, of which a step touches few rows.

They differ in what happens to the rows that a step does not touch. :class:`RowAdam` lets them rest, and their moments
with them. Adam itself goes on moving them by what is left of their momentum; :class:`CatchUpAdam` does the same, but
only once a row is touched or read again. :class:`RowScalarAdam` rests as the first, with a second moment a row in place
of one a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import SparseAdam
from torch.utils.hooks import RemovableHandle

from mann.adam_rows import CACHED, adam_rows
from mann.norm import sum_dtype
from retrieval.rows import gradient_rows

__all__ = ["CatchUpAdam", "RowAdam", "RowScalarAdam", "about_to_read", "clip_factor", "round_stochastically"]

Rows = Int[Tensor, " rows"]
Values = Float[Tensor, "rows width"]
# What is left of a momentum after so many steps that no more of it can be seen.
SPENT = 2.0**-40
# Rows that are brought up to date at once where all are.
PIECE = 1 << 16


class _RowOptimizer(SparseAdam):
    """A step for gradients that are sparse by rows; what it does to the rows is for the kinds of it to say."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, maximize)
        self.defaults["clip_norm"] = clip_norm
        for group in self.param_groups:
            group.setdefault("clip_norm", clip_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse or table.grad.sparse_dim() != 1:
                    raise ValueError(
                        "a table whose gradient is not sparse by rows: make it nn.Embedding(..., sparse=True), or "
                        "take AdamW for it"
                    )
                rows, values = gradient_rows(table.grad)
                values = values.to(sum_dtype(table))
                if group["maximize"]:
                    values = -values
                if group.get("clip_norm") is not None:
                    values = values * clip_factor(values, group["clip_norm"])
                self._prepare(table)
                self.state[table]["step"] += 1
                self._update(table, rows, values, group)
        return loss

    def _prepare(self, table: Tensor) -> None:
        """Make the state of a table that has none."""
        if not self.state[table]:
            self.state[table] |= {"step": 0} | {
                name: table.new_zeros(shape, dtype=sum_dtype(table))
                for name, shape in self._moments(table).items()
            }

    def _moments(self, table: Tensor) -> dict[str, tuple[int, ...]]:
        return {"exp_avg": tuple(table.shape), "exp_avg_sq": tuple(table.shape)}

    def _update(self, table: Tensor, rows: Rows, values: Values, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, in the types it was given in."""
        super().load_state_dict(state_dict)
        # The base class casts all of it to the type of the table.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        tables = [table for group in self.param_groups for table in group["params"]]
        for number, table in zip(numbers, tables, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[table][name] = value.to(table.device, copy=True)


class RowAdam(_RowOptimizer):
    r"""Adam on the rows of a table that have a gradient; the others rest, and so do their moments.

    .. math::
        m_i \leftarrow \beta_1 m_i + (1 - \beta_1) g_i, \qquad
        v_i \leftarrow \beta_2 v_i + (1 - \beta_2) g_i^2, \qquad
        w_i \leftarrow w_i - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, \frac{m_i}{\sqrt{v_i} + \epsilon}

    for the rows :math:`i` of this step. Equal to :class:`torch.optim.SparseAdam`, whose sums of sparse and dense
    matrices take four times as long on CPUs. Tables in half precision have moments in float32 and are rounded by
    chance (:func:`round_stochastically`).

    Args:
        params: Tables with row-sparse gradients.
        lr: Step size.
        betas: :math:`\beta_1` and :math:`\beta_2`.
        eps: :math:`\epsilon`.
        maximize: Whether to climb.
        clip_norm: Largest norm of a table's gradient; a longer one is scaled down to it.

    Raises:
        ValueError: If a gradient is not sparse by rows.
    """

    def _update(self, table: Tensor, rows: Rows, values: Values, group: dict[str, Any]) -> None:
        state = self.state[table]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        settings = {name: group[name] for name in ("lr", "betas", "eps")} | {"step": state["step"]}
        if table.dtype == values.dtype:
            adam_rows(table, mean, square, rows, values, **settings)
            return
        # Rounding by chance is no part of the operator.
        size = max(1, CACHED // (values.element_size() * table.shape[1]))
        for here, grad in zip(rows.split(size), values.split(size), strict=True):
            weights = table.index_select(0, here).to(grad.dtype)
            new_mean, new_square = mean.index_select(0, here), square.index_select(0, here)
            every = torch.arange(len(here), device=here.device)
            adam_rows(weights, new_mean, new_square, every, grad, **settings)
            mean.index_copy_(0, here, new_mean)
            square.index_copy_(0, here, new_square)
            _write(table, here, weights, state["step"])


class RowScalarAdam(_RowOptimizer):
    r"""As :class:`RowAdam`, with one second moment for a whole row of :math:`d` numbers.

    .. math:: v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \tfrac{1}{d} \lVert g_i \rVert^2

    The state of a table is half as large; without momentum, :math:`\beta_1 = 0`, it is next to nothing. The numbers
    of a row keep the proportions of the gradient.

    Args:
        params: Tables with row-sparse gradients.
        lr: Step size.
        betas: :math:`\beta_1` and :math:`\beta_2`.
        eps: :math:`\epsilon`.
        maximize: Whether to climb.
        clip_norm: Largest norm of a table's gradient; a longer one is scaled down to it.

    Raises:
        ValueError: If a gradient is not sparse by rows.
    """

    def _moments(self, table: Tensor) -> dict[str, tuple[int, ...]]:
        momentum = any(group["betas"][0] for group in self.param_groups)
        return ({"exp_avg": tuple(table.shape)} if momentum else {}) | {"exp_avg_sq": (len(table), 1)}

    def _update(self, table: Tensor, rows: Rows, values: Values, group: dict[str, Any]) -> None:
        state = self.state[table]
        beta1, beta2 = group["betas"]
        mean = values
        if "exp_avg" in state:
            mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
            state["exp_avg"].index_copy_(0, rows, mean)
        power = values.square().mean(-1, keepdim=True)
        square = state["exp_avg_sq"].index_select(0, rows).lerp_(power, 1 - beta2)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        rate = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        weights = table.index_select(0, rows).to(mean.dtype)
        weights.addcmul_(mean, square.sqrt_().add_(group["eps"]).reciprocal_(), value=-rate)
        _write(table, rows, weights, state["step"])


class CatchUpAdam(_RowOptimizer):
    r"""Adam on a whole table, at the price of the rows that are touched: the others catch up when they are next.

    Had a row of moments :math:`m, v` since step :math:`s` had no gradient up to step :math:`t`, Adam would have let
    the moments fade and moved the row by the momentum that was left,

    .. math::
        m \leftarrow \beta_1^{t-s} m, \qquad v \leftarrow \beta_2^{t-s} v, \qquad
        w \leftarrow w - \sum_{j=s+1}^{t} \frac{\eta_j b_j}{1 - \beta_1^j}
        \frac{\beta_1^{j-s} m}{\beta_2^{(j-s)/2} \sqrt v + b_j \epsilon}, \qquad b_j = \sqrt{1 - \beta_2^j}.

    For :math:`\epsilon = 0` the sum is :math:`C_s \, m / \sqrt v` with a number :math:`C_s` that all rows of one
    :math:`s` share, kept for every step so far (16 bytes a step). For :math:`\epsilon > 0`
    the factors of :math:`\epsilon` relative to :math:`\sqrt v` are replaced by their mean, weighted as the terms are.

    Given the same gradients, rows that have caught up are equal to those of :class:`torch.optim.Adam` up to rounding
    for :math:`\epsilon = 0`, or where no row rests for more than one step, and else to first order in
    :math:`\epsilon / \sqrt v`. Without ``movement`` only the moments are equal, given the same gradients. What a
    network reads, and so its gradients, is equal too if rows catch up *before* they are read: :meth:`follow`. Before a
    table is used without its optimiser, :meth:`settle`.

    Tables in half precision have moments in float32 and are rounded by chance (:func:`round_stochastically`).

    References:
        Kingma and Ba, "Adam: a method for stochastic optimization", 2014. arXiv:1412.6980.

    Args:
        params: Tables with row-sparse gradients.
        lr: Step size.
        betas: :math:`\beta_1` and :math:`\beta_2`, the first less than the second.
        eps: :math:`\epsilon`.
        maximize: Whether to climb.
        clip_norm: Largest norm of a table's gradient; a longer one is scaled down to it.
        movement: Whether rows catch up, or their moments alone.

    Raises:
        ValueError: If a gradient is not sparse by rows, or :math:`\beta_1 \ge \beta_2`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        clip_norm: float | None = None,
        movement: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, maximize, clip_norm)
        self.defaults["movement"] = movement
        for group in self.param_groups:
            group.setdefault("movement", movement)
            if group["betas"][0] >= group["betas"][1]:
                raise ValueError(
                    f"betas={group['betas']}: momentum that outlives the second moment moves a resting row ever "
                    "further: give a first beta less than the second"
                )

    def _prepare(self, table: Tensor) -> None:
        if not self.state[table]:
            super()._prepare(table)
            self.state[table]["last"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
            self.state[table]["missed"] = torch.zeros(2, 1024, dtype=torch.float64, device=table.device)

    def _update(self, table: Tensor, rows: Rows, values: Values, group: dict[str, Any]) -> None:
        state = self.state[table]
        beta1, beta2 = group["betas"]
        weights, mean, square = self._caught_up(table, rows, state["step"] - 1, group)
        mean.lerp_(values, 1 - beta1)
        square.mul_(beta2).addcmul_(values, values, value=1 - beta2)
        spread = (1 - beta2 ** state["step"]) ** 0.5
        rate = group["lr"] * spread / (1 - beta1 ** state["step"])
        weights.addcdiv_(mean, square.sqrt().add_(group["eps"] * spread), value=-rate)
        self._miss(state, group)
        self._keep(table, rows, weights, mean, square, state["step"])

    def _caught_up(
        self, table: Tensor, rows: Rows, step: int, group: dict[str, Any]
    ) -> tuple[Values, Values, Values]:
        """Rows and their moments as Adam would have them after a step."""
        state = self.state[table]
        last = state["last"].index_select(0, rows).long()
        mean, square = (state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq"))
        weights = table.index_select(0, rows).to(mean.dtype)
        if group["movement"]:
            missed = state["missed"].index_select(1, last)[..., None]
            moved, epsilon = missed[0], group["eps"] * missed[1] / missed[0].clamp_min(1e-30)
            # A row that never moved has no moments: nothing by next to nothing is nothing.
            below = square.sqrt().add_(epsilon.to(mean.dtype)).clamp_min_(1e-30)
            weights.sub_((mean * moved.to(mean.dtype)).div_(below))
        rested = (step - last)[:, None].to(mean.dtype)
        beta1, beta2 = group["betas"]
        return weights, mean.mul_(beta1**rested), square.mul_(beta2**rested)

    def _keep(
        self, table: Tensor, rows: Rows, weights: Values, mean: Values, square: Values, step: int
    ) -> None:
        state = self.state[table]
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        state["last"].index_fill_(0, rows, step)
        _write(table, rows, weights, step)

    def _miss(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Note what a row of each earlier step would have moved by in this one."""
        step, (beta1, beta2) = state["step"], group["betas"]
        if step >= state["missed"].shape[1]:
            state["missed"] = torch.cat([state["missed"], torch.zeros_like(state["missed"])], 1)
        missed = state["missed"]
        ratios = beta1 / beta2**0.5, beta1 / beta2
        seen = 1 if beta1 == 0 else math.ceil(math.log(SPENT) / math.log(max(ratios)))
        first = max(0, step - seen)
        ages = torch.arange(step - first, 0, -1, dtype=torch.float64, device=missed.device)
        spread = (1 - beta2**step) ** 0.5
        rate = group["lr"] * spread / (1 - beta1**step)
        for row, ratio, share in zip(missed, ratios, (rate, rate * spread), strict=True):
            row[first:step].add_(ratio**ages, alpha=share)

    @torch.no_grad()
    def catch_up(self, table: Tensor, rows: Int[Tensor, "..."]) -> None:
        """Bring rows of a table to where Adam would have them by now.

        Args:
            table: One of ``params``.
            rows: Which rows, in any shape, as often as they like.
        """
        group = next(group for group in self.param_groups if any(table is one for one in group["params"]))
        self._prepare(table)
        rows, step = rows.to(table.device).flatten().unique(), self.state[table]["step"]
        self._keep(table, rows, *self._caught_up(table, rows, step, group), step)

    def follow(self, embedding: nn.Module) -> RemovableHandle:
        """From now on, bring rows up to date whenever an embedding reads them, in training and evaluation.

        Whoever followed it before no longer does.

        Args:
            embedding: Called with rows of its ``weight``, which is one of ``params``.
        """
        earlier = getattr(embedding, "followed", None)
        if earlier is not None:
            earlier.remove()
        # Made now, so that the first step costs as much as any.
        self._prepare(embedding.get_parameter("weight"))
        embedding.followed = embedding.register_forward_pre_hook(partial(_before_reading, self))  # type: ignore[assignment]
        return embedding.followed  # type: ignore[return-value]

    def settle(self) -> None:
        """Bring every row of every table up to date."""
        for group in self.param_groups:
            for table in group["params"]:
                for rows in torch.arange(len(table), device=table.device).split(PIECE):
                    self.catch_up(table, rows)


def about_to_read(embedding: nn.Module, rows: Int[Tensor, "..."]) -> None:
    """Say which rows are read, where an embedding's weight is read without calling it: who follows it wants to know."""
    for hook in embedding._forward_pre_hooks.values():
        hook(embedding, (rows,))


def _before_reading(optimizer: CatchUpAdam, embedding: nn.Module, given: tuple[Any, ...]) -> None:
    optimizer.catch_up(embedding.get_parameter("weight"), given[0])


def clip_factor(values: Float[Tensor, "..."], most: float) -> Float[Tensor, ""]:
    """What to multiply a gradient by, so that its norm is no more than it may be.

    Args:
        values: All of the gradient that is not zero.
        most: Largest norm.

    Shapes:
        values: any; result: a scalar.
    """
    return (most / (torch.linalg.vector_norm(values) + 1e-6)).clamp_max(1.0)


def round_stochastically(values: Float[Tensor, "..."], seed: int) -> Float[Tensor, "..."]:
    """bfloat16 numbers whose expectation is what was rounded: up with the chance that is how near the upper one is.

    To the nearest, a step of less than 1/512 of a weight would be lost each time; by chance it is taken now and then.

    Args:
        values: In float32.
        seed: Of the chance; the same seed rounds the same way.

    Shapes:
        values and result: any, the same.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    # The lower half of the bits is what bfloat16 lacks; a carry out of it is a step up, away from zero.
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).bfloat16()


def _write(table: Tensor, rows: Rows, weights: Values, step: int) -> None:
    rounded = (
        round_stochastically(weights, step) if table.dtype == torch.bfloat16 else weights.to(table.dtype)
    )
    table.index_copy_(0, rows, rounded)
